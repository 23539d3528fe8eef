"""KV that is begun from, rolled back, parked and restored gives what a cold prefill gives: on the bundled model, and on
a tiny one with a sliding window of 64, where llama.cpp would be silently wrong."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from node.engine import slots
from node.engine.backend import Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.scheduler import Done, Prefilled, Scheduler, job
from node.models.catalogue import BUNDLED
from node.types import Message, SamplingParams
from scripts.bench.make_model import TINY, Shape, write

# Other batch shapes sum in another order: this much difference is rounding. A wrong window differs by 0.5 and more.
ROUNDING = 0.2
TEXT = "The quick brown fox jumps over the lazy dog while five wizards box. "


@pytest.fixture(scope="module", params=["bundled", "window", "window q8_0"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaBackend]:
    path: Path = BUNDLED
    if request.param != "bundled":
        path = tmp_path_factory.mktemp("model") / "window.gguf"
        write(path, Shape(**{**TINY.__dict__, "window": 64}))
    kv_type = "q8_0" if "q8_0" in request.param else "f16"
    backend = LlamaBackend(
        LlamaOptions(path, request.param, "fp", sequences=4, context=640, threads=1, kv_type=kv_type)
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
    import llama_cpp

    rows = [Row(t, i, sequence, i == len(tokens) - 1) for i, t in enumerate(tokens)][start:]
    backend.decode(rows)
    pointer = llama_cpp.llama_get_logits_ith(backend._ctx, len(rows) - 1)
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
    backend.fork(0, 1, length)
    other = first[:length] + tokens_of(backend, 40, "Pack my box with five dozen jugs. ")
    assert np.abs(compute(backend, other, 1, length) - cold(backend, other)).max() < ROUNDING
    # The source is as it was.
    longer = first + tokens_of(backend, 5)
    assert np.abs(compute(backend, longer, 0, 300) - cold(backend, longer)).max() < ROUNDING


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
