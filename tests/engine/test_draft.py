"""Guesses from what was there before; and that they change how fast answers come, never what they say."""

from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.slots import Speeds
from node.engine.draft import SIZE, Draft, index
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.scheduler import Done, Event, Scheduler, job
from node.types import Message, SamplingParams
from tests.engine.drive import Clock, assert_nothing_leaked, drain
from tests.engine.test_scheduler import texts

tokens = st.lists(st.integers(0, 3), max_size=60)


@given(tokens, tokens, st.integers(0, 9))
def test_a_guess_is_what_followed_the_same_tokens_last(prompt: list[int], written: list[int], most: int) -> None:
    draft = Draft(prompt, index(prompt))
    for token in written:
        draft.add(token)
    text = [*prompt, *written]
    run = text[-SIZE:]
    before = [i for i in range(SIZE, len(text)) if text[i - SIZE : i] == run]
    assert draft.guess(most) == (text[max(before) :][:most] if before else [])


def test_how_often_guesses_are_right_is_followed() -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7, 8] * 4
    good, bad = Draft(prompt, index(prompt)), Draft(prompt, index(prompt))
    for i in range(16):
        good.add(prompt[i])
        bad.add(prompt[i] if i % 4 else 9)
    assert good.chance > 0.9
    assert bad.chance < good.chance


def run(answers: tuple[str, ...], drafts: int, max_tokens: int = 200, candidates: int = 3) -> tuple[list[Event], int]:
    backend = FakeBackend(FakeSpec(answers=answers), sequences=4)
    cheap = Speeds(prefill_s=1e-6)  # a machine on which rows are cheap
    scheduler = Scheduler(backend, Clock(), drafts=drafts, node="here", speeds=cheap)
    prompt = backend.tokenize(backend.render([Message("user", "a b c d e f")], []))
    params = SamplingParams(max_tokens=max_tokens)
    scheduler.submit(job("j", prompt, range(1, candidates + 1), params, seed=7))
    steps = 0
    events: list[Event] = []
    while not scheduler.idle:
        events += scheduler.step()
        steps += 1
    assert_nothing_leaked(backend, scheduler)
    return events, steps


def said(events: list[Event]) -> list[tuple[int, str, int, str]]:
    return sorted(
        (e.candidate.id, e.candidate.text, e.candidate.tokens, e.candidate.finish_reason)
        for e in events
        if isinstance(e, Done)
    )


def test_repeated_text_takes_a_fraction_of_the_steps() -> None:
    answer = " ".join(["a b c d e f g h"] * 12)
    plain, many = run((answer,), 0)
    guessed, few = run((answer,), 7)
    assert said(guessed) == said(plain)
    assert texts(guessed) == texts(plain)
    assert few < many / 3


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=40).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=1, max_size=3), st.integers(1, 12), st.integers(1, 30), st.integers(1, 6))
def test_answers_are_the_same_with_guesses(answers: list[str], drafts: int, max_tokens: int, candidates: int) -> None:
    """The fake fails on a gap, on a token that was guessed wrong and left, and on logits of another place."""
    plain, _ = run(tuple(answers), 0, max_tokens, candidates)
    guessed, _ = run(tuple(answers), drafts, max_tokens, candidates)
    assert said(guessed) == said(plain)


def test_a_stop_string_among_guesses_ends_there() -> None:
    backend = FakeBackend(FakeSpec(answers=(" ".join(["a b c d e f g h"] * 12),)))
    scheduler = Scheduler(backend, Clock(), drafts=7)
    prompt = backend.tokenize("<user>\nx\n</user>\n<assistant>\n")
    scheduler.submit(job("j", prompt, [1], SamplingParams(stop=("h a b c d e f g h a",)), seed=1))
    [done] = [e.candidate for e in drain(scheduler) if isinstance(e, Done)]
    assert done.text == "a b c d e f g "
    scheduler.commit("j", 1)
    held = scheduler.slots._slots["~j"].held
    assert len(held.tokens) == len(backend._sequences[scheduler.slots._slots["~j"].sequence])
