"""Models with recurrent layers: what is forked, goes on, is parked and restored gives what a cold prefill gives, and
what cannot be right is said to be so. Tiny ones of each kind of layer, with random weights."""

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import recurrentmodels

from node.engine import slots
from node.engine.backend import Row, StateLost
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.scheduler import Done, Failed, Prefilled, Scheduler, job
from node.engine.shelf import Shelf
from node.errors import InvalidRequest
from node.types import Candidate, Message, SamplingParams
from tests.engine.drive import drain

pytestmark = pytest.mark.usefixtures("emptied")

SEQUENCES, COLD = 6, 5
# Other batch shapes may sum in another order: this much difference is rounding. A wrong state differs by far more.
ROUNDING = 0.02


# One with each kind of layer, and one without attention; the others are made of the same.
QUICK = ("mamba2", "granitehybrid", "lfm2", "qwen35")
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in recurrentmodels.KINDS if kind not in QUICK]


@pytest.fixture(scope="module", params=[*QUICK, *SLOW])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaBackend]:
    path = tmp_path_factory.mktemp("model") / "recurrent.gguf"
    recurrentmodels.write(path, request.param)
    backend = LlamaBackend(LlamaOptions(path, request.param, "fp", sequences=SEQUENCES, context=512, threads=1))
    yield backend
    backend.close()


def some(n: int, seed: int = 1) -> list[int]:
    return [random.Random(f"{seed} {i}").randrange(257) for i in range(n)]


def logits(backend: LlamaBackend, row: int) -> np.ndarray:
    import llama_cpp

    pointer = llama_cpp.llama_get_logits_ith(backend._ctx, row)
    return np.ctypeslib.as_array(pointer, shape=(backend.info.vocabulary,)).copy()


def compute(backend: LlamaBackend, tokens: list[int], sequence: int, start: int = 0) -> np.ndarray:
    """The logits after `tokens`, of which the first `start` are in the sequence already."""
    rows = [Row(t, i, sequence, i == len(tokens) - 1) for i, t in enumerate(tokens)][start:]
    backend.decode(rows)
    return logits(backend, len(rows) - 1)


def assert_cold(backend: LlamaBackend, tokens: list[int], got: np.ndarray) -> None:
    """`got` is what a prefill of `tokens` on an empty sequence gives."""
    backend.drop(COLD)
    expected = compute(backend, tokens, COLD)
    backend.drop(COLD)
    assert np.abs(got - expected).max() < ROUNDING


def test_what_is_said_of_it(backend: LlamaBackend) -> None:
    assert (backend.info.is_recurrent, backend.info.rolls_back) == (True, False)


def test_it_depends_on_what_came_before(backend: LlamaBackend) -> None:
    """Else these tests could not fail."""
    first, other = some(40), [*some(38, 9), *some(40)[38:]]
    assert np.abs(compute(backend, first, 0) - compute(backend, other, 1)).max() > 50 * ROUNDING


def test_a_fork(backend: LlamaBackend) -> None:
    first = some(60)
    compute(backend, first, 0)
    assert all(backend.fork(0, target, 60) for target in (1, 2))
    for sequence in (1, 0, 2):  # the source goes on between its forks
        tokens = first + some(9, sequence)
        assert_cold(backend, tokens, compute(backend, tokens, sequence, 60))


def test_a_fork_goes_on_token_by_token(backend: LlamaBackend) -> None:
    first = some(30)
    compute(backend, first, 0)
    held = {0: first, 1: first, 2: first}
    assert all(backend.fork(0, target, 30) for target in (1, 2))
    for step in range(6):
        held = {sequence: [*tokens, *some(1, 10 * step + sequence)] for sequence, tokens in held.items()}
        backend.decode([Row(tokens[-1], len(tokens) - 1, sequence, True) for sequence, tokens in held.items()])
        got = [logits(backend, i) for i in range(3)]
    for tokens, found in zip(held.values(), got, strict=True):
        assert_cold(backend, tokens, found)


@pytest.mark.parametrize("length", [1, 30, 59])
def test_there_is_no_way_back(backend: LlamaBackend, length: int) -> None:
    first = some(60)
    compute(backend, first, 0)
    assert not backend.fork(0, 1, length)
    assert not backend.truncate(0, length)
    assert backend.reopen(0, 60) is None
    # Nothing was changed, and the target is empty.
    assert backend.truncate(0, 60)
    assert_cold(backend, first + some(5, 2), compute(backend, first + some(5, 2), 0, 60))
    assert_cold(backend, some(20, 3), compute(backend, some(20, 3), 1))


def test_a_parked_and_restored_sequence(backend: LlamaBackend) -> None:
    first = some(60)
    compute(backend, first, 0)
    state = backend.export(0)
    backend.drop(0)
    compute(backend, some(50, 2), 2)  # where it was there is something else now
    compute(backend, some(40, 3), 0)
    assert backend.restore(1, state)
    assert not backend.truncate(1, 59)
    assert backend.truncate(1, 60)
    assert backend.fork(1, 3, 60)
    for sequence in (3, 1):
        tokens = first + some(7, sequence)
        assert_cold(backend, tokens, compute(backend, tokens, sequence, 60))
    assert_cold(backend, some(55, 2), compute(backend, some(55, 2), 2, 50))


def test_a_copy_of_a_fork_is_the_forks(backend: LlamaBackend) -> None:
    """Its state is shared with others when it is copied."""
    first = some(40)
    compute(backend, first, 0)
    assert backend.fork(0, 1, 40)
    compute(backend, first + some(3, 8), 0, 40)
    state = backend.export(1)
    backend.drop(1)
    assert backend.restore(2, state)
    tokens = first + some(4, 9)
    assert_cold(backend, tokens, compute(backend, tokens, 2, 40))


def test_a_copy_that_is_cut_short_leaves_nothing(backend: LlamaBackend) -> None:
    first = some(40)
    compute(backend, first, 0)
    state = backend.export(0)
    assert not backend.restore(1, state[: state.nbytes * 2 // 3].copy())
    assert not backend.truncate(1, 40)
    assert_cold(backend, some(20, 3), compute(backend, some(20, 3), 1))
    assert_cold(backend, first + some(2, 4), compute(backend, first + some(2, 4), 0, 40))


def test_any_course(backend: LlamaBackend) -> None:
    """Sequences that begin, fork, go on in batches of all lengths, are parked, restored and dropped, in any order."""
    rng = random.Random(backend.info.name)
    held: dict[int, list[int]] = {}
    parked: list[tuple[list[int], object]] = []
    for step in range(60):
        free = [s for s in range(COLD) if s not in held]
        what = rng.choice(["decode", "decode", "decode", "fork", "park", "restore", "drop"])
        if what == "fork" and free and held:
            source = rng.choice(list(held))
            assert backend.fork(source, free[0], len(held[source]))
            held[free[0]] = held[source]
        elif what == "park" and held:
            sequence = rng.choice(list(held))
            parked.append((held.pop(sequence), backend.export(sequence)))
            backend.drop(sequence)
        elif what == "restore" and free and parked:
            held[free[0]], state = parked.pop(rng.randrange(len(parked)))
            assert backend.restore(free[0], state)
        elif what == "drop" and held:
            sequence = rng.choice(list(held))
            backend.drop(sequence)
            del held[sequence]
        else:
            rows: list[Row] = []
            new = {s: some(rng.choice([1, 1, 1, 2, 7, 30]), 1000 * step + s) for s in range(COLD) if rng.random() < 0.6}
            for sequence, tokens in new.items():
                before = held.get(sequence, [])
                held[sequence] = before + tokens
                rows += [Row(t, len(before) + i, sequence, i == len(tokens) - 1) for i, t in enumerate(tokens)]
            if rows:
                backend.decode(rows)
                checked = rng.choice(list(new))
                at = next(i for i, row in enumerate(rows) if row.sequence == checked and row.wants_logits)
                assert_cold(backend, held[checked], logits(backend, at))
        assert all(backend.truncate(sequence, len(tokens)) for sequence, tokens in held.items())


def test_a_batch_that_fails_leaves_nothing(backend: LlamaBackend) -> None:
    """Where llama.cpp stops in the middle, states of sequences that were not in the batch may be lost with it."""
    import llama_cpp

    first = some(60)
    compute(backend, first, 0)
    compute(backend, some(30, 2), 1)
    calls = 0

    @llama_cpp.ggml_abort_callback
    def abort(_: object) -> bool:
        nonlocal calls
        calls += 1
        return calls > 5

    llama_cpp.llama_set_abort_callback(backend._ctx, abort, ctypes.c_void_p())
    try:
        with pytest.raises(StateLost):
            compute(backend, first + some(20, 3), 0, 60)
    finally:
        llama_cpp.llama_set_abort_callback(
            backend._ctx, ctypes.cast(None, llama_cpp.ggml_abort_callback), ctypes.c_void_p()
        )
    assert not backend.truncate(1, 30)
    assert not backend.fork(1, 2, 30)
    assert_cold(backend, some(30, 2), compute(backend, some(30, 2), 1))


def test_embeddings(backend: LlamaBackend) -> None:
    one, other, again = backend.embed(["one", "another thing", "one"])
    assert one == pytest.approx(again, abs=1e-4)
    assert one != pytest.approx(other, abs=1e-2)


def test_kinds_that_nobody_has_tried_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    recurrentmodels.write(path, "lfm2", **{"attention.sliding_window": 64})
    with pytest.raises(InvalidRequest, match=r"has recurrent layers of a kind \(lfm2\) that cannot be forked"):
        LlamaBackend(LlamaOptions(path, "m", "fp", sequences=2, context=128, threads=1))


# ---- through the scheduler -------------------------------------------------------------------------------------------

SYSTEM = Message("system", "You are brief, and you say what you know about pens, cups, nails and dogs. " * 2)
HEADER = 1 + len("assistant\n")  # tokens of "<|im_start|>assistant\n", which a stem ends before
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=True, top_logprobs=2)


def conversation(backend: LlamaBackend, *said: str, system: Message = SYSTEM) -> list[int]:
    """The tokens of a prompt: turns of a user and a model."""
    roles = ("user", "assistant")
    return backend.tokenize(backend.render([system, *(Message(roles[i % 2], s) for i, s in enumerate(said))], []))


def next_turn(backend: LlamaBackend, said: str) -> list[int]:
    """What comes after an answer."""
    return backend.tokenize(f"<|im_end|>\n<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n")


def scheduler_of(backend: LlamaBackend, memory: int = 1 << 24, shelf: Shelf | None = None) -> Scheduler:
    return Scheduler(backend, lambda: 0.0, memory=memory, shelf=shelf, drafts=4)


class Turn:
    """One request, computed to its end. `winner` is kept (0: another node's was)."""

    def __init__(
        self,
        scheduler: Scheduler,
        id: str,
        prompt: list[int],
        n: int = 1,
        topic: str = "",
        wave: int = 0,
        winner: int = 1,
    ) -> None:
        made = job(id, prompt, range(1, n + 1), GREEDY, 1, topic=topic, wave=wave)
        scheduler.submit(made)
        self.events = drain(scheduler)
        assert not [e for e in self.events if isinstance(e, Failed)]
        scheduler.commit(id, winner)
        [self.cached] = [e.cached for e in self.events if isinstance(e, Prefilled)]
        self.candidates = [e.candidate for e in self.events if isinstance(e, Done)]
        self.prompt, [self.tokens, *_] = prompt, [[t.id for t in c.logprobs] for c in self.candidates]


def cold_answer(backend: LlamaBackend, prompt: list[int]) -> Candidate:
    """What is written after a prompt that nothing was there for."""
    for sequence in range(SEQUENCES):
        backend.drop(sequence)
    return Turn(scheduler_of(backend), "cold", prompt).candidates[0]


def assert_same(found: Candidate, cold: Candidate) -> None:
    """The same tokens with the same probabilities, as far as rounding does not decide which token is the best."""
    assert len(found.logprobs) == len(cold.logprobs) == GREEDY.max_tokens
    for ours, theirs in zip(found.logprobs, cold.logprobs, strict=True):
        if theirs.top[0].logprob - theirs.top[1].logprob < 2 * ROUNDING:
            return
        assert ours.id == theirs.id
        assert ours.logprob == pytest.approx(theirs.logprob, abs=ROUNDING)


@pytest.mark.parametrize(("candidates", "wave"), [(4, 0), (8, 0), (9, 2)])
def test_candidates_write_what_one_alone_writes(backend: LlamaBackend, candidates: int, wave: int) -> None:
    """More than there are sequences too: those that begin later go on from the prompt's stem."""
    scheduler = scheduler_of(backend)
    prompt = conversation(backend, "What is a cup?")
    turn = Turn(scheduler, "a", prompt, candidates, wave=wave)
    assert len(turn.candidates) == candidates
    cold = cold_answer(backend, prompt)
    for candidate in turn.candidates:
        assert_same(candidate, cold)


@pytest.mark.parametrize("place", ["context", "memory", "disk"])
def test_a_second_turn_goes_on(backend: LlamaBackend, place: str, tmp_path: Path) -> None:
    """From the end of the answer, or where that does not come back as it was, from the prompt's stem."""
    shelf = Shelf(tmp_path, 1 << 30) if place == "disk" else None
    scheduler = scheduler_of(backend, memory=1 if shelf else 1 << 24, shelf=shelf)

    def rest() -> None:
        if place != "context":
            scheduler.slots.make_room(SEQUENCES, 0)
            assert (scheduler.slots.resident, scheduler.slots.parked > 0) == (0, True)

    first = Turn(scheduler, "a", conversation(backend, "What is a cup?"), 3, topic="t")
    assert first.cached == 0
    rest()
    asked = [*first.prompt, *first.tokens, *next_turn(backend, "And?")]
    second = Turn(scheduler, "b", asked, 3, topic="t")
    assert second.cached == len(first.prompt) + len(first.tokens) - 1
    rest()
    asked = [*second.prompt, *backend.tokenize("It has no thought."), *next_turn(backend, "Is it?")]
    third = Turn(scheduler, "c", asked, 2, topic="t")
    assert third.cached == len(second.prompt) - HEADER
    rest()
    fourth = Turn(scheduler, "d", conversation(backend, "What is a cup?"), topic="u")
    if shelf is not None:
        shelf.close()
    for turn in (second, third, fourth):
        cold = cold_answer(backend, turn.prompt)
        for candidate in turn.candidates:
            assert_same(candidate, cold)


def test_another_nodes_answer_is_gone_on_from(backend: LlamaBackend) -> None:
    """Nothing that was written here is kept then but the stem."""
    scheduler = scheduler_of(backend)
    first = Turn(scheduler, "a", conversation(backend, "What is a cup?"), 2, topic="t", winner=0)
    prompt = conversation(backend, "What is a cup?", "It holds tea.", "Whose?")
    second = Turn(scheduler, "b", prompt, topic="t")
    assert second.cached == len(first.prompt) - HEADER
    assert_same(second.candidates[0], cold_answer(backend, prompt))


def test_a_system_prompt_is_computed_twice_and_then_shared(backend: LlamaBackend) -> None:
    """The second conversation shows where the two part, and the third begins there."""
    scheduler = scheduler_of(backend)
    prompts = [conversation(backend, said) for said in ("What is a cup?", "Are dogs lazy?", "Nails, how many?")]
    turns = [Turn(scheduler, f"j{i}", prompt, topic=f"t{i}") for i, prompt in enumerate(prompts)]
    assert [t.cached for t in turns[:2]] == [0, 0]
    assert turns[2].cached == slots.slots.common_prefix(prompts[0], prompts[1])
    for turn in turns:
        assert_same(turn.candidates[0], cold_answer(backend, turn.prompt))


def test_requests_beside_each_other_and_cancelled(backend: LlamaBackend) -> None:
    """Whoever comes, goes and is cancelled in between, answers are those of a request alone."""
    rng = random.Random(backend.info.name)
    scheduler = scheduler_of(backend)
    prompts = {f"j{i}": conversation(backend, "What is it? " * rng.randint(1, 2), f"{i % 4}", "So?") for i in range(9)}
    events = []
    for id, prompt in prompts.items():
        scheduler.submit(job(id, prompt, [1, 2], GREEDY, 1, topic=rng.choice(["", "a", "b"])))
        for _ in range(rng.randint(0, 9)):
            events += scheduler.step()
            scheduler.rest()
        if rng.random() < 0.3:
            events += scheduler.cancel(f"j{rng.randrange(9)}", rng.choice([None, [1]]))
    events += drain(scheduler)
    assert not [e for e in events if isinstance(e, Failed)]
    whole = [e for e in events if isinstance(e, Done) and e.candidate.tokens == GREEDY.max_tokens]
    assert len(whole) >= 6
    colds = {prompt: cold_answer(backend, list(prompt)) for prompt in {tuple(prompts[e.job]) for e in whole}}
    for each in whole:
        assert_same(each.candidate, colds[tuple(prompts[each.job])])


def test_a_batch_that_fails_costs_what_was_running_only(backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = scheduler_of(backend)
    Turn(scheduler, "a", conversation(backend, "What is a cup?"), 2, topic="t")

    def lost(rows: object) -> None:
        for sequence in range(SEQUENCES):
            backend.drop(sequence)
        raise StateLost("llama_decode failed with 2: aborted")

    again = conversation(backend, "What is a cup?", "It.", "Whose?")
    with monkeypatch.context() as patch:
        patch.setattr(backend, "decode", lost)
        scheduler.submit(job("b", again, [1], GREEDY, 1))
        assert [type(e) for e in drain(scheduler)] == [Failed]
    turn = Turn(scheduler, "c", again, 2, topic="t")
    assert turn.cached == 0
    assert_same(turn.candidates[0], cold_answer(backend, again))
