"""llama.cpp's own states, taken apart, sent as blocks, and put together again: byte for byte, and as good as new.

On the bundled model and on a tiny one with a sliding window of 64, with both types of KV.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from node.core import blob, block, snapshot
from node.core.block import Codec
from node.core.snapshot import Ours
from node.engine.backend import Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.scheduler import Done, Prefilled, Scheduler, job
from node.engine.slots import Slots
from node.models.resolve import BUNDLED
from node.types import SamplingParams, Version
from scripts.bench.make_model import TINY, Shape, write

TOKENS = [(7 * i * i + 13 * i) % 250 + 1 for i in range(400)]


@pytest.fixture(scope="module", params=["bundled f16", "bundled q8_0", "window f16", "window q8_0"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaBackend]:
    name, kv_type = request.param.split()
    path: Path = BUNDLED
    if name == "window":
        path = tmp_path_factory.mktemp("model") / "window.gguf"
        write(path, Shape(**{**TINY.__dict__, "window": 64}))
    backend = LlamaBackend(LlamaOptions(path, name, "fp", sequences=4, context=640, threads=1, kv_type=kv_type))
    yield backend
    backend.close()


@pytest.fixture(autouse=True)
def _empty(backend: LlamaBackend) -> Iterator[None]:
    yield
    for sequence in range(4):
        backend.drop(sequence)


def fill(backend: LlamaBackend, tokens: list[int], sequence: int = 0, start: int = 0) -> None:
    backend.decode([Row(t, i, sequence, i == len(tokens) - 1) for i, t in enumerate(tokens)][start:])


def logits(backend: LlamaBackend, row: int = 0) -> np.ndarray:
    import llama_cpp

    pointer = llama_cpp.llama_get_logits_ith(backend._ctx, row)
    return np.ctypeslib.as_array(pointer, shape=(backend.info.vocabulary,)).copy()


def ours(backend: LlamaBackend) -> Ours:
    fill(backend, [1], 3)
    layout, _ = blob.read(backend.export(3), backend.info.window)
    backend.drop(3)
    return Ours("fp", layout, backend.info.vocabulary, backend.info.context)


def through_blocks(backend: LlamaBackend, tokens: list[int], codec: Codec = Codec.LZ4) -> blob.Bytes:
    """The state of sequence 0 as a node that got it from a peer puts it together."""
    fits = ours(backend)
    layout, rows = blob.read(backend.export(0), backend.info.window)
    head = snapshot.header("t", Version(0, 1, "n"), tokens, fits)
    head, made = snapshot.encode(head, {}, rows, codec, block.shuffle_width(layout.parts[0]))
    return snapshot.assemble(snapshot.check(head.pack(), fits), fits, made.get)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD])
def test_a_state_comes_out_as_it_went_in(backend: LlamaBackend, length: int, codec: Codec) -> None:
    fill(backend, TOKENS[:length])
    assert np.array_equal(through_blocks(backend, TOKENS[:length], codec), backend.export(0))


def test_a_state_whose_cells_are_out_of_order_is_put_in_order(backend: LlamaBackend) -> None:
    """Cells that another sequence left free lie before those that it had: rows are not in position order then."""
    fill(backend, TOKENS[:40], 1)
    fill(backend, TOKENS[:100])
    backend.drop(1)
    fill(backend, TOKENS[:150], start=100)
    found = backend.export(0)
    table = found[16 : 16 + 150 * 12].view(blob._CELL)
    assert (np.diff(table["position"]) < 0).any()
    state = through_blocks(backend, TOKENS[:150])
    assert backend.restore(2, state)
    backend.decode([Row(9, 150, 2, True)])
    restored = logits(backend)
    backend.decode([Row(9, 150, 0, True)])
    assert np.abs(restored - logits(backend)).max() < 0.05


def test_it_goes_on_as_the_original_does(backend: LlamaBackend) -> None:
    fill(backend, TOKENS[:200])
    state = through_blocks(backend, TOKENS[:200])
    backend.decode([Row(5, 200, 0, True)])
    expected = logits(backend)
    backend.drop(0)
    assert backend.restore(2, state)
    backend.decode([Row(5, 200, 2, True)])
    assert np.array_equal(expected, logits(backend))
    backend.drop(2)
    assert backend.restore(2, state)
    was = backend.reopen(2, 200)
    assert was is not None
    backend.decode([Row(TOKENS[199], 199, 2, False), Row(5, 200, 2, True)])
    assert not backend.refutes(2, TOKENS[:200], was)
    assert np.abs(expected - logits(backend, 1)).max() < 0.05


def test_a_part_holds_what_follows(backend: LlamaBackend) -> None:
    fill(backend, TOKENS[:300])
    _, whole = blob.read(backend.export(0), backend.info.window)
    _, part = blob.read(backend.export(0, 290), backend.info.window)
    for all_rows, some in zip(whole, part, strict=True):
        assert (some.first, some.end) == (290, 300)
        for a, b in zip(all_rows.planes, some.planes, strict=True):
            assert np.array_equal(a[-10:], b)
    backend.decode([Row(5, 300, 0, True)])  # nothing of it is left behind
    assert backend.export(0).nbytes > 0


@pytest.mark.parametrize("wrong", ["other tokens", "moved", "zeros"])
def test_a_state_that_is_well_formed_and_wrong_is_refuted(backend: LlamaBackend, wrong: str) -> None:
    tokens = TOKENS[:200]
    fill(backend, tokens[::-1] if wrong == "other tokens" else tokens)
    layout, rows = blob.read(backend.export(0), backend.info.window)
    if wrong == "moved":
        rows = tuple(blob.Rows(r.first, tuple(np.roll(p, 1, axis=0) for p in r.planes)) for r in rows)
    elif wrong == "zeros":
        rows = tuple(blob.Rows(r.first, tuple(np.concatenate([p[:-4] * 0, p[-4:]]) for p in r.planes)) for r in rows)
    state = blob.write(layout, 200, [(i, r.first, r.cut(r.first, r.end)) for i, r in enumerate(rows)])
    assert backend.restore(2, state)
    was = backend.reopen(2, 200)
    assert was is not None
    backend.decode([Row(tokens[199], 199, 2, False)])
    assert backend.refutes(2, tokens, was)


def test_a_topic_is_adopted_and_begun_from(backend: LlamaBackend) -> None:
    prompt = TOKENS[:300]
    fill(backend, prompt)
    state = through_blocks(backend, prompt)
    backend.drop(0)
    asked = [*prompt, 5, 6, 7]

    def run(scheduler: Scheduler) -> tuple[int, str]:
        scheduler.submit(job("j", asked, [1], SamplingParams(temperature=0, max_tokens=8), 1, topic="t"))
        events = []
        while not scheduler.idle:
            events += scheduler.step()
        scheduler.commit("j", 1)
        [cached] = [e.cached for e in events if isinstance(e, Prefilled)]
        [text] = [e.candidate.text for e in events if isinstance(e, Done)]
        scheduler.slots.forget("t")
        return cached, text

    cold = run(Scheduler(backend, lambda: 0.0, memory=1 << 24))
    scheduler = Scheduler(backend, lambda: 0.0, memory=1 << 24)
    assert scheduler.slots.adopt("t", tuple(prompt), state)
    assert scheduler.slots.tokens("t") == tuple(prompt)
    warm = run(scheduler)
    assert (cold[0], warm[0]) == (0, 300)
    assert warm[1] == cold[1]
    assert scheduler.slots.refuted == 0
    # The same state said to be another conversation's is found out, and the answer is right all the same.
    scheduler = Scheduler(backend, lambda: 0.0, memory=1 << 24)
    asked = [*prompt[::-1], 5, 6, 7]
    assert scheduler.slots.adopt("t", tuple(asked[:300]), state)
    found = run(scheduler)
    assert (found[0], scheduler.slots.refuted) == (0, 1)
    assert found[1] == run(Scheduler(backend, lambda: 0.0))[1]


def test_what_does_not_fit_memory_is_not_adopted(backend: LlamaBackend) -> None:
    fill(backend, TOKENS[:100])
    slots = Slots(backend, Scheduler(backend, lambda: 0.0)._pool, memory=10)
    assert not slots.adopt("t", tuple(TOKENS[:100]), backend.export(0))
    assert slots.topics == 0
