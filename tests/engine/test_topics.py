"""Topics through the scheduler over the strict fake: what is held is used, exactly, and never another's."""

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine import slots
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.scheduler import Done, Ended, Event, Prefilled, Scheduler, job
from node.engine.shelf import Shelf
from node.types import Message, SamplingParams


class Chat:
    """A scheduler and the conversations that clients have with it."""

    def __init__(
        self, spec: FakeSpec | None = None, memory: int = 1 << 20, shelf: Shelf | None = None, **limits: int
    ) -> None:
        self.backend = FakeBackend(spec or FakeSpec(), **limits)  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.backend, lambda: 0.0, node="here", memory=memory, shelf=shelf)
        self.conversations: dict[str, list[Message]] = {}
        self.turns = 0

    def turn(
        self, topic: str, text: str, candidates: int = 1, winner: int | None = 1, *, named: bool = True
    ) -> tuple[int, int]:
        """One turn; answers (prompt, cached) tokens. `winner` None: it was on another node and said "elsewhere"."""
        conversation = self.conversations.setdefault(topic, [])
        conversation.append(Message("user", text))
        prompt = self.backend.tokenize(self.backend.render(conversation, []))
        self.turns += 1
        id = f"job{self.turns}"
        before = self.scheduler.prefilled_tokens
        params = SamplingParams(max_tokens=20)
        self.scheduler.submit(job(id, prompt, range(1, candidates + 1), params, 7, topic=topic if named else ""))
        events: list[Event] = []
        while not self.scheduler.idle:
            events += self.scheduler.step()
        said = {e.candidate.id: e.candidate.text for e in events if isinstance(e, Done)}
        assert all(t.startswith("echo: ") and text.startswith(t.removeprefix("echo: ")) for t in said.values())
        conversation.append(Message("assistant", said[winner] if winner else "elsewhere"))
        self.scheduler.commit(id, winner or 0)
        [prefilled] = [e for e in events if isinstance(e, Prefilled)]
        assert isinstance(events[-1], Ended)
        assert self.scheduler.prefilled_tokens - before == prefilled.prompt - prefilled.cached
        return prefilled.prompt, prefilled.cached

    def check(self) -> None:
        held = self.scheduler.slots
        assert self.scheduler.free_sequences == self.backend.info.sequences
        assert self.backend.used_sequences == held.resident
        assert self.scheduler._pool.cells == self.backend.info.cells - held.idle_cells
        on_disk = sum(s.held.bytes for s in held._slots.values() if s.held.is_on_disk)
        assert held.disk_bytes == on_disk <= (held._shelf.limit if held._shelf else 0)
        assert held.parked_bytes == sum(s.held.bytes for s in held._slots.values()) - on_disk <= held._memory


def test_a_second_turn_computes_its_new_tokens_only() -> None:
    chat = Chat()
    first, cached = chat.turn("a", "one two three")
    assert cached == 0
    second, cached = chat.turn("a", "four five")
    # All of the first prompt and the answer, whose words come back as the same tokens (the fake's template closes the
    # answer with a line break, which joins no word).
    assert cached == first + len(chat.backend.tokenize("echo: one two three"))
    assert second > cached
    chat.check()


def test_when_another_node_won_the_prompt_is_kept_and_the_text_is_computed() -> None:
    chat = Chat()
    first, _ = chat.turn("a", "one two three", candidates=4, winner=None)
    _, cached = chat.turn("a", "four", candidates=4)
    assert cached == first
    chat.check()


def test_equal_system_prompts_are_computed_once() -> None:
    chat = Chat()
    system = Message("system", " ".join(f"rule{i}" for i in range(50)))
    chat.conversations["a"] = [system]
    chat.conversations["b"] = [system]
    chat.turn("a", "hello")
    _, cached = chat.turn("b", "goodbye")
    assert cached >= 50
    chat.check()


def test_a_client_without_topic_names_is_served_from_its_prefix() -> None:
    chat = Chat()
    first, _ = chat.turn("x", " ".join(f"w{i}" for i in range(30)), named=False)
    _, cached = chat.turn("x", "and then", named=False)
    assert cached > first
    assert chat.scheduler.slots.resident == 1  # taken over, not copied
    chat.check()


def test_topics_are_parked_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "IDLE_CELLS", 40)
    chat = Chat()
    for turn in range(3):
        for topic in "abcdefgh":
            prompt, cached = chat.turn(topic, " ".join(f"{topic}{turn}-{i}" for i in range(20)))
            assert (cached > 0) == (turn > 0), (topic, turn, prompt, cached)
            while chat.scheduler.rest():
                pass
            assert chat.scheduler.slots.idle_cells <= max(40, prompt + 20 + 2)
            chat.check()
    assert chat.scheduler.slots.parked > 0


def test_without_memory_what_does_not_fit_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "IDLE_CELLS", 0)
    chat = Chat(memory=0)
    for turn in range(2):
        for topic in "ab":
            _, cached = chat.turn(topic, " ".join(f"{topic}{turn}-{i}" for i in range(20)))
            while chat.scheduler.rest():
                pass
    assert cached == 0
    assert chat.scheduler.slots.parked == 0
    chat.check()


def test_what_memory_has_no_room_for_comes_back_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "IDLE_CELLS", 0)
    shelf = Shelf(tmp_path, 1 << 20)
    chat = Chat(memory=1500, shelf=shelf)
    for turn in range(3):
        for topic in "abcdef":
            _, cached = chat.turn(topic, " ".join(f"{topic}{turn}-{i}" for i in range(20)))
            assert (cached > 0) == (turn > 0)
            while chat.scheduler.rest():
                pass
            chat.check()
        shelf.wait()
    assert any(s.held.is_on_disk for s in chat.scheduler.slots._slots.values())
    for path in tmp_path.iterdir():
        path.write_bytes(b"not this")
    for topic in "abcdef":
        chat.turn(topic, "and now")
        chat.check()
    shelf.close()


def test_a_full_shelf_forgets_the_least_valuable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "IDLE_CELLS", 0)
    shelf = Shelf(tmp_path, 2000)
    chat = Chat(memory=1500, shelf=shelf)
    for topic in "abcdefgh":
        chat.turn(topic, " ".join(f"{topic}-{i}" for i in range(20)))
        while chat.scheduler.rest():
            pass
        chat.check()
    assert 2 <= chat.scheduler.slots.topics < 8
    shelf.close()


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 5),
    st.integers(260, 600),
    st.sampled_from([0, 500, 3000, 100_000]),
    st.sampled_from([None, 700, 5000]),
)
def test_any_course_of_topics_is_answered_from_its_own_text(
    seed: int, sequences: int, cells: int, memory: int, disk: int | None
) -> None:
    """The fake answers by the last user text in its sequence and fails on a gap, so a wrong prefix would show."""
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder), disk) if disk else None
        _any_course(seed, Chat(memory=memory, shelf=shelf, sequences=sequences, cells=cells, context=240, batch=32))
        if shelf:
            shelf.close()


def _any_course(seed: int, chat: Chat) -> None:
    rng = random.Random(seed)
    for turn in range(12):
        topic = rng.choice("abcde")
        if len(chat.conversations.get(topic, [])) > 6:
            del chat.conversations[topic]
        n = rng.randint(1, 4)
        winner = rng.choice([None, *range(1, n + 1)])
        words = " ".join(f"{topic}{turn}-{i}" for i in range(rng.randint(1, 18)))
        chat.turn(topic, words, n, winner, named=rng.random() < 0.7)
        if rng.random() < 0.5:
            chat.scheduler.rest()
        chat.check()


def test_a_restore_that_was_held_up_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was stopped in the middle of one, for an hour: that says nothing of the next."""
    now = 0.0
    chat = Chat()
    chat.scheduler = Scheduler(chat.backend, lambda: now, node="here", memory=1 << 20)
    monkeypatch.setattr(slots, "MEASURED_BYTES", 1)
    monkeypatch.setattr(slots, "IDLE_CELLS", 0)
    for topic in "abcdefgh":
        chat.turn(topic, " ".join(f"{topic}-{i}" for i in range(20)))
        while chat.scheduler.rest():
            pass
    restore, took = chat.backend.restore, [1e-6, 3600.0, 3600.0, *[1e-6] * 4]

    def held_up(sequence: int, state: Any) -> bool:
        nonlocal now
        now += took.pop(0)
        return restore(sequence, state)

    monkeypatch.setattr(chat.backend, "restore", held_up)
    for topic in "abcdefg":
        _, cached = chat.turn(topic, "and so on")
        assert cached > 0, topic
    assert len(took) <= 1  # which one stays in the context is not for this test to say
