"""KV that is begun from, rolled back, parked and restored gives what a cold prefill gives: on the bundled model, and on
a tiny one with a sliding window of 64, where llama.cpp would be silently wrong, and on a tiny mixture of experts."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from node.engine import slots
from node.engine.backend import Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.scheduler import Done, Prefilled, Scheduler, job
from node.models.resolve import BUNDLED
from node.types import Message, SamplingParams
from scripts.bench.make_model import TINY, TINY_EXPERTS, Shape, write

# Other batch shapes sum in another order: this much difference is rounding. A wrong window differs by 0.5 and more.
ROUNDING = 0.2
TEXT = "The quick brown fox jumps over the lazy dog while five wizards box. "


@pytest.fixture(scope="module", params=["bundled", "window", "window q8_0", "small", "small q8_0", "experts"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaBackend]:
    path: Path = BUNDLED
    if request.param == "experts":
        path = tmp_path_factory.mktemp("model") / "experts.gguf"
        write(path, TINY_EXPERTS, q8_0=True)
    elif request.param != "bundled":
        path = tmp_path_factory.mktemp("model") / "window.gguf"
        write(path, Shape(**{**TINY.__dict__, "window": 64}))
    kv_type = "q8_0" if "q8_0" in request.param else "f16"
    swa = "small" if "small" in request.param else "full"
    backend = LlamaBackend(
        LlamaOptions(path, request.param, "fp", sequences=4, context=640, threads=1, kv_type=kv_type, swa=swa)
    )
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def bundled() -> Iterator[LlamaBackend]:
    backend = LlamaBackend(LlamaOptions(BUNDLED, "bundled", "fp", sequences=4, context=640, threads=1))
    yield backend
    backend.close()


@pytest.fixture(autouse=True)
def _empty(backend: LlamaBackend) -> Iterator[None]:
    yield
    for sequence in range(4):
        backend.drop(sequence)


def compute(backend: LlamaBackend, tokens: list[int], sequence: int, start: int = 0) -> np.ndarray:
    """The logits after `tokens`, of which the first `start` are in the sequence already."""
    rows = [Row(t, i, sequence, i == len(tokens) - 1) for i, t in enumerate(tokens)][start:]
    backend.decode(rows)
    return logits_of(backend, len(rows) - 1)


def logits_of(backend: LlamaBackend, row: int) -> np.ndarray:
    import llama_cpp

    pointer = llama_cpp.llama_get_logits_ith(backend._ctx, row)
    return np.ctypeslib.as_array(pointer, shape=(backend.info.vocabulary,)).copy()


def cold(backend: LlamaBackend, tokens: list[int]) -> np.ndarray:
    backend.drop(3)
    logits = compute(backend, tokens, 3)
    backend.drop(3)
    return logits


def tokens_of(backend: LlamaBackend, n: int, text: str = TEXT) -> list[int]:
    return backend.tokenize(text * 60)[:n]


def begin(backend: LlamaBackend, sequence: int, tokens: list[int], length: int) -> np.ndarray:
    """What `Slots` does: cut to the common prefix where that is right, else begin anew."""
    if not backend.truncate(sequence, length):
        backend.drop(sequence)
        length = 0
    return compute(backend, tokens, sequence, length)


def fork(backend: LlamaBackend, source: int, target: int, length: int) -> int:
    """Tokens that the target holds afterwards: all that were asked for, or none."""
    return length if backend.fork(source, target, length) else 0


@pytest.mark.parametrize("length", [10, 100, 180, 299])
def test_a_rolled_back_sequence(backend: LlamaBackend, length: int) -> None:
    first = tokens_of(backend, 300)
    compute(backend, first, 0)
    other = first[:length] + tokens_of(backend, 40, "Pack my box with five dozen jugs. ")
    assert np.abs(begin(backend, 0, other, length) - cold(backend, other)).max() < ROUNDING


@pytest.mark.parametrize("length", [300, 299, 250, 100])
def test_a_parked_and_restored_sequence(backend: LlamaBackend, length: int) -> None:
    first = tokens_of(backend, 300)
    compute(backend, first, 0)
    state = backend.export(0)
    backend.drop(0)
    compute(backend, tokens_of(backend, 200, "Something else lies in the cells now. "), 2)
    assert backend.restore(1, state)
    other = first[:length] + tokens_of(backend, 40, "Pack my box with five dozen jugs. ")
    assert np.abs(begin(backend, 1, other, length) - cold(backend, other)).max() < ROUNDING


@pytest.mark.parametrize("length", [300, 120])
def test_a_fork(backend: LlamaBackend, length: int) -> None:
    first = tokens_of(backend, 300)
    compute(backend, first, 0)
    assert fork(backend, 0, 1, length) in ((length,) if length == 300 else (length, 0))
    other = first[:length] + tokens_of(backend, 40, "Pack my box with five dozen jugs. ")
    assert np.abs(begin(backend, 1, other, length) - cold(backend, other)).max() < ROUNDING
    # The source is as it was.
    longer = first + tokens_of(backend, 5)
    assert np.abs(compute(backend, longer, 0, 300) - cold(backend, longer)).max() < ROUNDING


@pytest.mark.parametrize("length", [300, 299, 100])
def test_a_fork_of_a_restored_sequence(backend: LlamaBackend, length: int) -> None:
    """Its window is all that was restored, with the large window cache too: a fork further back would be wrong."""
    first = tokens_of(backend, 300)
    compute(backend, first, 0)
    state = backend.export(0)
    backend.drop(0)
    assert backend.restore(0, state)
    held = fork(backend, 0, 1, length)
    other = first[:length] + tokens_of(backend, 40, "Pack my box with five dozen jugs. ")
    assert np.abs(compute(backend, other, 1, held) - cold(backend, other)).max() < ROUNDING
    longer = first + tokens_of(backend, 5)
    assert np.abs(compute(backend, longer, 0, 300) - cold(backend, longer)).max() < ROUNDING


def test_forks_of_several_prompts_find_cells(backend: LlamaBackend) -> None:
    """Cells of the small window cache that two sequences share are never overwritten: two such prompts fill it."""
    held = {}
    for source, target in ((0, 1), (2, 3)):
        held[source] = tokens_of(backend, 400, f"Prompt {source}. ")
        compute(backend, held[source], source)
        assert backend.fork(source, target, 400)
        held[target] = list(held[source])
    for step in range(70):
        backend.decode([Row(65 + s + step % 7, len(held[s]), s, True) for s in held])
        for s in held:
            held[s].append(65 + s + step % 7)
    last = {s: logits_of(backend, row) for row, s in enumerate(held)}
    backend.drop(3)
    for s in (0, 1, 2):
        assert np.abs(cold(backend, held[s]) - last[s]).max() < ROUNDING


@pytest.mark.parametrize("seed", range(8))
def test_whatever_was_done_to_a_sequence_it_goes_on_as_if_computed_afresh(backend: LlamaBackend, seed: int) -> None:
    """Growing in mixed batches, forks, rollbacks, parking: what the backend says is held, is right."""
    rng = random.Random(seed)
    held: dict[int, list[int]] = {0: [], 1: [], 2: []}
    parked: list[tuple[object, list[int]]] = []
    for _ in range(80):
        sequence = rng.randrange(3)
        tokens = held[sequence]
        match rng.choice(["grow", "grow", "fork", "back", "park", "restore"]):
            case "grow":
                grown = [s for s in held if s == sequence or (held[s] and rng.random() < 0.5)]
                new = {s: [rng.randrange(256) for _ in range(rng.choice([1, 2, 30, 90]))] for s in grown}
                if max(len(held[s]) + len(new[s]) for s in grown) > 400:
                    continue
                rows = [
                    Row(token, len(held[s]) + i, s, i == len(new[s]) - 1)
                    for s in grown
                    for i, token in enumerate(new[s])
                ]
                backend.decode(rows)
                wants = [i for i, row in enumerate(rows) if row.wants_logits]
                found = [logits_of(backend, i) for i in wants]
                for s, logits in zip(grown, found, strict=True):
                    held[s] += new[s]
                    assert np.abs(cold(backend, held[s]) - logits).max() < ROUNDING
            case "fork" if len(tokens) > 1:
                target = rng.choice([s for s in held if s != sequence])
                backend.drop(target)
                length = fork(backend, sequence, target, rng.choice([len(tokens), rng.randint(1, len(tokens))]))
                held[target] = tokens[:length]
            case "back" if tokens:
                length = rng.choice([len(tokens) - 1, rng.randrange(len(tokens))])
                if not backend.truncate(sequence, length):
                    backend.drop(sequence)
                    length = 0
                held[sequence] = tokens[:length]
            case "park" if tokens:
                parked.append((backend.export(sequence), tokens))
                backend.drop(sequence)
                held[sequence] = []
            case "restore" if parked:
                state, was = rng.choice(parked)
                backend.drop(sequence)
                assert backend.restore(sequence, state)
                held[sequence] = list(was)


def test_a_restored_sequence_goes_on_as_the_first(backend: LlamaBackend) -> None:
    first = tokens_of(backend, 200)
    compute(backend, first, 0)
    state = backend.export(0)
    here = compute(backend, [*first, first[0]], 0, 200)
    assert backend.restore(1, state)
    backend.drop(0)
    # It lies in other cells, which are summed in another order: not the same bits.
    assert np.abs(compute(backend, [*first, first[0]], 1, 200) - here).max() < ROUNDING / 10


def answer(backend: LlamaBackend, scheduler: Scheduler, topic: str, prompt: list[int]) -> tuple[int, str]:
    """One greedy turn: (cached tokens, text)."""
    params = SamplingParams(max_tokens=8, temperature=0.0)
    scheduler.submit(job(f"{topic}{len(prompt)}", prompt, [1, 2], params, 1, topic=topic))
    events = []
    while not scheduler.idle:
        events += scheduler.step()
    scheduler.commit(f"{topic}{len(prompt)}", 1)
    while scheduler.rest():
        pass
    [cached] = [e.cached for e in events if isinstance(e, Prefilled)]
    return cached, next(e.candidate.text for e in events if isinstance(e, Done) and e.candidate.id == 1)


def test_candidates_that_begin_late_are_written_too(backend: LlamaBackend) -> None:
    """Nine on four sequences, in waves: with the small window cache the prompt is computed again for the late ones."""
    scheduler = Scheduler(backend, lambda: 0.0)
    prompt = tokens_of(backend, 200)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    scheduler.submit(job("j", prompt, range(1, 10), params, 1, wave=4))
    events = []
    for _ in range(2000):
        if scheduler.idle:
            break
        events += scheduler.step()
    assert sorted(e.candidate.id for e in events if isinstance(e, Done)) == list(range(1, 10))
    assert all(e.candidate.tokens == 20 for e in events if isinstance(e, Done))
    scheduler.commit("j")
    scheduler.slots.forget("~j")
    assert scheduler.free_sequences == 4


@pytest.mark.parametrize("idle_cells", [0, 10_000])
def test_topics_in_turn_answer_as_if_each_were_alone(
    bundled: LlamaBackend, idle_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three topics round robin, parked or resident, each against its own answer computed afresh."""
    monkeypatch.setattr(slots, "IDLE_CELLS", idle_cells)
    scheduler = Scheduler(bundled, lambda: 0.0, memory=1 << 26)
    conversations = {t: [Message("user", f"My name is {t}. What is 3 + 4?")] for t in ("Ann", "Bob", "Cy")}
    asked: list[tuple[list[int], str]] = []
    for turn in range(3):
        for topic, conversation in conversations.items():
            prompt = bundled.tokenize(bundled.render(conversation, []))
            cached, text = answer(bundled, scheduler, topic, prompt)
            assert (cached > 0) == (turn > 0)
            asked.append((prompt, text))
            conversation += [Message("assistant", text), Message("user", f"And what is {turn} + 5?")]
    assert (scheduler.slots.parked > 0) == (idle_cells == 0)
    for topic in conversations:
        scheduler.slots.forget(topic)
    assert scheduler.free_sequences == 4
    for prompt, text in asked:
        assert answer(bundled, scheduler, "afresh", prompt)[1] == text
        scheduler.slots.forget("afresh")
