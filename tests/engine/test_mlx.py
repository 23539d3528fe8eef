"""MLX on its CPU wheels: the same tokens as mlx-lm's own loop, forks and restored copies that go on as if nothing had
been, windows that are not rolled back; and the whole engine on it."""

import sys
from pathlib import Path

import numpy as np
import pytest

mlx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install -e '.[mlx]'")

import tinymlx  # noqa: E402
from mlx_lm.generate import generate_step  # noqa: E402
from mlx_lm.utils import load_model  # noqa: E402

from node.engine.backend import Row  # noqa: E402
from node.engine.engine import Engine  # noqa: E402
from node.engine.job import Done, Ended, job  # noqa: E402
from node.engine.mlx import MlxBackend, MlxOptions, fingerprint  # noqa: E402
from node.errors import BackendError, InvalidRequest  # noqa: E402
from node.types import FinishReason, Message, SamplingParams  # noqa: E402

GREEDY = SamplingParams(temperature=0.0)
PROMPT = list(range(40, 70))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymlx.make(tmp_path_factory.mktemp("mlx") / "plain", tinymlx.QWEN)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymlx.make(tmp_path_factory.mktemp("mlx") / "windowed", tinymlx.WINDOWED)


def load(path: Path, **given: int) -> MlxBackend:
    return MlxBackend(MlxOptions(path, "tiny", "f", sequences=given.get("sequences", 8)))


def prefill(backend: MlxBackend, tokens: list[int], sequence: int = 0, start: int = 0) -> int:
    """Compute tokens; the row with the logits after them."""
    end = start + len(tokens)
    backend.decode([Row(t, start + i, sequence, start + i == end - 1) for i, t in enumerate(tokens)])
    return len(tokens) - 1


def greedy(
    backend: MlxBackend, sequences: list[int], rows: dict[int, int], at: int, count: int
) -> dict[int, list[int]]:
    """Let sequences write together; the tokens of each."""
    samplers = {s: backend.sampler(GREEDY, 1, PROMPT) for s in sequences}
    last = {s: backend.sample(samplers[s], rows[s])[0] for s in sequences}
    out = {s: [t] for s, t in last.items()}
    for step in range(count - 1):
        backend.decode([Row(last[s], at + step, s, True) for s in sequences])
        last = {s: backend.sample(samplers[s], i)[0] for i, s in enumerate(sequences)}
        for s, t in last.items():
            out[s].append(t)
    return out


def reference(path: Path, count: int) -> list[int]:
    """mlx-lm's own loop."""
    model, _ = load_model(path)
    steps = generate_step(mlx.array(PROMPT), model, max_tokens=count)
    return [int(token) for token, _ in (next(steps) for _ in range(count))]


@pytest.mark.parametrize("kind", ["plain", "windowed"])
def test_the_tokens_of_mlx_lms_own_loop(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    backend = load(path)
    row = prefill(backend, PROMPT)
    assert greedy(backend, [0], {0: row}, len(PROMPT), 24)[0] == reference(path, 24)
    backend.close()


def test_forks_write_what_the_original_writes(plain: Path) -> None:
    backend = load(plain)
    row = prefill(backend, PROMPT)
    for target in (1, 2, 3):
        assert backend.fork(0, target, len(PROMPT))
    together = greedy(backend, [0, 1, 2, 3], dict.fromkeys(range(4), row), len(PROMPT), 20)
    assert together[0] == together[1] == together[2] == together[3] == reference(plain, 20)
    # A fork of a part goes on from that part.
    assert backend.fork(0, 4, 10)
    other = load(plain)
    assert greedy(backend, [4], {4: prefill(backend, PROMPT[10:], 4, 10)}, 30, 8)[4] == together[0][:8]
    other.close()


def test_joining_and_leaving_the_batch_changes_nobody(plain: Path) -> None:
    """Logits of a sequence whose neighbours come, go and are dropped are those that it has alone."""
    backend, alone = load(plain), load(plain)
    tokens = [50, 61, 72, 83, 94, 65, 76, 87]
    prefill(backend, PROMPT)
    prefill(alone, PROMPT)
    prefill(backend, [7, 8, 9], 1)
    prefill(backend, [3] * 50, 2)
    lengths = {0: 30, 1: 3, 2: 50}
    plan: list[list[int]] = [[0], [0, 1], [2, 0, 1], [0, 2], [0, 2], [1, 0], [0, 1], [0]]
    for token, members in zip(tokens, plan, strict=True):
        backend.decode([Row(token, lengths[s], s, True) for s in members])
        alone.decode([Row(token, lengths[0], 0, True)])
        np.testing.assert_allclose(backend._row(members.index(0)), alone._row(0), atol=2e-3)
        for s in members:
            lengths[s] += 1
        if members == [0, 2]:
            backend.decode([Row(5, lengths[1], 1, True)])
            lengths[1] += 1
    backend.decode([Row(5, lengths[0], 0, True), Row(5, lengths[1], 1, True)])
    backend.drop(1)
    prefill(backend, [9] * 5, 1)  # a dropped sequence's place in the batch is not another's
    backend.decode([Row(6, lengths[0] + 1, 0, True), Row(6, 5, 1, True)])
    fresh = load(plain)
    prefill(fresh, [9] * 5)
    fresh.decode([Row(6, 5, 0, True)])
    np.testing.assert_allclose(backend._row(1), fresh._row(0), atol=2e-3)


@pytest.mark.parametrize("kind", ["plain", "windowed"])
def test_a_restored_copy_goes_on_as_the_original(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    backend = load(path)
    row = prefill(backend, PROMPT)
    written = greedy(backend, [0], {0: row}, len(PROMPT), 6)[0]
    state = backend.export(0)
    assert state.dtype == np.uint8
    on = prefill(backend, written[-1:], 0, len(PROMPT) + 5)
    expected = greedy(backend, [0], {0: on}, len(PROMPT) + 6, 8)[0]
    backend.drop(0)
    assert backend.export(0) is None
    other = load(path)  # as another process of the same build
    for each in (backend, other):
        assert each.restore(3, state)
        on = prefill(each, written[-1:], 3, len(PROMPT) + 5)
        assert greedy(each, [3], {3: on}, len(PROMPT) + 6, 8)[3] == expected


def test_states_that_are_none(plain: Path, windowed: Path) -> None:
    backend = load(plain)
    prefill(backend, PROMPT)
    state = backend.export(0)
    for bad in (state[:-50], state[:40], state[:0], np.zeros(100, np.uint8), np.concatenate([state[:9], state])):
        assert not backend.restore(1, bad)
        prefill(backend, [1, 2], 1)  # it is empty then
        backend.drop(1)
    assert not load(windowed).restore(1, state)


def test_rolling_back(plain: Path, windowed: Path) -> None:
    backend = load(plain)
    prefill(backend, PROMPT)
    assert backend.truncate(0, 12)
    row = prefill(backend, PROMPT[12:], 0, 12)
    assert greedy(backend, [0], {0: row}, len(PROMPT), 8)[0] == reference(plain, 8)
    sliding = load(windowed)
    assert (sliding.info.window, sliding.info.rolls_back) == (16, False)
    prefill(sliding, PROMPT)
    assert not sliding.truncate(0, 20)  # the window is full: what it forgot does not come back
    assert not sliding.fork(0, 1, 20)
    assert sliding.fork(0, 1, len(PROMPT))
    sliding.drop(0)
    prefill(sliding, PROMPT[:10])
    assert sliding.truncate(0, 5)


def test_kv_of_other_tokens_is_refuted(plain: Path) -> None:
    backend = load(plain)
    prefill(backend, PROMPT)
    last = len(PROMPT) - 1
    was = backend.reopen(0, len(PROMPT))
    backend.decode([Row(PROMPT[-1], last, 0, False)])
    assert not backend.refutes(0, PROMPT, was)
    was = backend.reopen(0, len(PROMPT))
    backend.decode([Row(99, last, 0, False)])
    assert backend.refutes(0, PROMPT, was)
    assert backend.truncate(0, last)
    backend.decode([Row(PROMPT[-1], last, 0, False)])
    row = prefill(backend, [50], 0, len(PROMPT))  # and the sequence is as it was
    other = load(plain)
    prefill(other, PROMPT)
    other_row = prefill(other, [50], 0, len(PROMPT))
    np.testing.assert_allclose(backend._row(row), other._row(other_row), atol=1e-4)


def test_drafted_rows_have_logits_each(plain: Path) -> None:
    backend, alone = load(plain), load(plain)
    prefill(backend, PROMPT)
    prefill(alone, PROMPT)
    backend.decode([Row(t, 30 + i, 0, True) for i, t in enumerate((50, 51, 52))])
    for i, token in enumerate((50, 51, 52)):
        alone.decode([Row(token, 30 + i, 0, True)])
        np.testing.assert_allclose(backend._row(i), alone._row(0), atol=2e-3)


def test_sampling(plain: Path) -> None:
    backend = load(plain)
    row = prefill(backend, PROMPT)
    top = backend.top(row, 3)
    draw = lambda **given: backend.sample(backend.sampler(SamplingParams(**given), given.pop("seed", 1), []), row)[0]  # noqa: E731
    best = top[0][0]
    assert draw(temperature=0.0) == draw(top_k=1) == draw(top_p=1e-6, top_k=0) == draw(min_p=1.0, top_k=0) == best
    assert draw(temperature=0.0, logit_bias=((best, -100.0),)) == top[1][0]
    many = {backend.sample(backend.sampler(SamplingParams(temperature=5.0), s, []), row)[0] for s in range(30)}
    assert len(many) > 5
    same = [backend.sample(backend.sampler(SamplingParams(temperature=2.0), 7, []), row) for _ in range(3)]
    assert len(set(same)) == 1
    assert sum(np.exp(p) for _, p in backend.top(row, backend.info.vocabulary)) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(InvalidRequest, match="no grammars"):
        backend.sampler(SamplingParams(json_schema="{}"), 1, [])
    with pytest.raises(InvalidRequest, match="logit_bias"):
        backend.sampler(SamplingParams(logit_bias=((10**6, 1.0),)), 1, [])
    with pytest.raises(BackendError, match="no logits"):
        backend.sample(backend.sampler(GREEDY, 1, []), 0)


def test_vocabulary(plain: Path) -> None:
    backend = load(plain)
    text = backend.render([Message("user", "Grüß dich, 世界!")], ())
    tokens = backend.tokenize(text)
    shown = b"".join(backend.piece(t) for t in tokens).decode()
    assert shown == "user\nGrüß dich, 世界!\nassistant\n"
    assert backend.label(tokens[0]) == "<|im_start|>"
    assert backend.is_end(backend.tokenize("<|im_end|>")[0])
    [vector] = backend.embed(["hello"])
    assert np.linalg.norm(vector) == pytest.approx(1.0)


def test_directories_that_are_no_model(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(BackendError, match="could not be loaded"):
        load(tmp_path)
    assert fingerprint(plain) == fingerprint(plain)
    other = tinymlx.make(tmp_path / "other", tinymlx.QWEN, seed=2)
    assert fingerprint(other) != fingerprint(plain)
    (other / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="no chat template"):
        load(other)
    (other / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(BackendError, match="could not be loaded"):
        load(other)


async def test_the_engine_on_it(plain: Path) -> None:
    """Candidates of several requests side by side, a topic that goes on, everything freed at the end."""
    engine = Engine(lambda: load(plain), node="n", memory=1 << 20)
    await engine.start()
    params = SamplingParams(max_tokens=12, temperature=0.0)
    texts: dict[str, list[str]] = {}
    for turn in ("first", "second"):
        prompt = await engine.prompt([Message("user", "Count to three.")], (), is_raw=False)
        events = [e async for e in engine.run(job(turn, prompt, [1, 2, 3, 4], params, 5, topic="t"))]
        assert isinstance(events[-1], Ended)
        done = [e.candidate for e in events if isinstance(e, Done)]
        assert {c.finish_reason for c in done} <= {FinishReason.LENGTH, FinishReason.STOP}
        texts[turn] = [c.text for c in done]
        engine.commit(turn, 1)
    assert len(set(texts["first"])) == 1  # greedy candidates of one batch
    assert len(texts["second"]) == 4
    assert engine.info.backend == "mlx"
    assert engine.decode_tokens_per_s > 0
    assert len((await engine.embed(["a", "b"]))[0]) == 64
    await engine.close()
    assert sys.getrefcount(engine) < 50
