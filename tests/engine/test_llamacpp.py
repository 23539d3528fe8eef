"""The llama.cpp backend on the bundled model: forks are exact, seeds decide, and bad input is refused in one line."""

import ctypes
import gc
import math
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from node.engine.backend import CacheFull, Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.scheduler import Done, Failed, Scheduler, job
from node.errors import BackendError, InvalidRequest
from node.models.resolve import BUNDLED
from node.types import Message, SamplingParams, Tool, ToolCall

QUESTION = "A box holds 12 pens. Ann buys 7 boxes and gives away 20 pens. How many pens does she have?"


@pytest.fixture(scope="module")
def backend() -> Iterator[LlamaBackend]:
    backend = LlamaBackend(LlamaOptions(BUNDLED, "demo", "fp", sequences=8, context=1024, threads=1))
    yield backend
    backend.close()


@pytest.fixture(autouse=True)
def _empty(backend: LlamaBackend) -> Iterator[None]:
    yield
    for sequence in range(backend.info.sequences):
        backend.drop(sequence)


def test_loading_says_how_far_it_is() -> None:
    told: list[float] = []
    LlamaBackend(LlamaOptions(BUNDLED, "demo", "fp", sequences=1, context=64, threads=1), told.append).close()
    assert told == sorted(told)
    assert told[-1] == 1.0


def prompt(backend: LlamaBackend, text: str = QUESTION) -> list[int]:
    return backend.tokenize(backend.render([Message("user", text)], []))


def run(backend: LlamaBackend, tokens: list[int], ids: list[int], **params: object) -> dict[int, Done]:
    scheduler = Scheduler(backend, lambda: 0.0)
    scheduler.submit(job("j", tokens, ids, SamplingParams(**params), seed=5))  # type: ignore[arg-type]
    done = {}
    while not scheduler.idle:
        done |= {e.candidate.id: e for e in scheduler.step() if isinstance(e, Done)}
    assert scheduler.free_sequences == backend.info.sequences
    for sequence in range(backend.info.sequences):
        backend.drop(sequence)
    return done


def test_greedy_candidates_agree_and_end(backend: LlamaBackend) -> None:
    done = run(backend, prompt(backend), [1, 2, 3, 4], temperature=0.0)
    texts = {d.candidate.text for d in done.values()}
    assert len(texts) == 1
    assert "answer:" in texts.pop()
    assert all(-5 < d.candidate.mean_logprob <= 0 for d in done.values())


def test_a_seed_decides_a_candidate_whatever_its_neighbours(backend: LlamaBackend) -> None:
    """Same seed and batch shape: same tokens; another seed: other tokens, sooner or later."""
    first = run(backend, prompt(backend), [1, 2, 3, 4], temperature=1.5)
    again = run(backend, prompt(backend), [1, 2, 3, 4], temperature=1.5)
    assert {i: d.candidate.text for i, d in first.items()} == {i: d.candidate.text for i, d in again.items()}
    assert len({d.candidate.text for d in first.values()}) > 1


def test_a_fork_decoded_alone_is_bitwise_an_independent_run(backend: LlamaBackend) -> None:
    tokens = prompt(backend)
    rows = [Row(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)]
    backend.decode(rows)
    backend.fork(0, 3, len(tokens))
    backend.decode([Row(tokens[0], len(tokens), 3, True)])
    forked = logits(backend, 0)
    backend.drop(0)
    backend.drop(3)
    backend.decode(rows)
    backend.decode([Row(tokens[0], len(tokens), 0, True)])
    assert np.array_equal(forked, logits(backend, 0))


def logits(backend: LlamaBackend, row: int) -> np.ndarray:
    import llama_cpp

    pointer = llama_cpp.llama_get_logits_ith(backend._ctx, row)
    return np.ctypeslib.as_array(pointer, shape=(backend.info.vocabulary,)).copy()


def test_a_prompt_in_chunks_is_the_prompt_at_once(backend: LlamaBackend) -> None:
    tokens = prompt(backend) * 3
    backend.decode([Row(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)])
    whole = logits(backend, len(tokens) - 1)
    backend.drop(0)
    for start in range(0, len(tokens), 20):
        part = tokens[start : start + 20]
        backend.decode([Row(t, start + i, 0, start + i == len(tokens) - 1) for i, t in enumerate(part)])
    # Other batch shapes sum in another order: equal to rounding of the f16 cache, not to the bit.
    assert np.abs(whole - logits(backend, len(part) - 1)).max() < 0.5
    assert whole.argmax() == logits(backend, len(part) - 1).argmax()


def test_the_logprob_is_of_the_plain_distribution(backend: LlamaBackend) -> None:
    tokens = prompt(backend)
    backend.decode([Row(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)])
    row = len(tokens) - 1
    sampler = backend.sampler(SamplingParams(temperature=0.3, top_k=1), 1, tokens)
    token, logprob = backend.sample(sampler, row)
    sampler.close()
    values = logits(backend, row).astype(np.float64)
    assert token == int(values.argmax())
    assert logprob == pytest.approx(
        float(values[token]) - math.log(np.exp(values - values.max()).sum()) - values.max(), abs=1e-4
    )


def test_more_candidates_than_sequences(backend: LlamaBackend) -> None:
    done = run(backend, prompt(backend), list(range(1, 21)), temperature=0.7, max_tokens=40)
    assert len(done) == 20
    assert all(d.candidate.tokens for d in done.values())


def test_a_grammar_binds_the_answer(backend: LlamaBackend) -> None:
    done = run(backend, prompt(backend), [1, 2, 3], grammar='root ::= "yes" | "no"', temperature=2.0)
    assert {d.candidate.text for d in done.values()} <= {"yes", "no"}
    schema = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
    [only] = run(backend, prompt(backend), [1], json_schema=schema, max_tokens=60).values()
    assert only.candidate.text.startswith("{")


@pytest.mark.parametrize("params", [{"grammar": "root ::= ("}, {"json_schema": "[]"}, {"json_schema": '{"type": 3}'}])
def test_a_bad_grammar_is_refused(backend: LlamaBackend, params: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"grammar|json_schema"):
        backend.sampler(SamplingParams(**params), 1, [])  # type: ignore[arg-type]


def test_a_full_cache_says_so_and_changes_nothing() -> None:
    small = LlamaBackend(LlamaOptions(BUNDLED, "demo", "fp", sequences=2, context=256, threads=1))
    cells = small.info.cells
    rows = [Row(1, i, 0, False) for i in range(small.info.batch)]
    small.decode(rows[: min(len(rows), cells)])
    for start in range(len(rows), cells, len(rows)):
        small.decode([Row(1, start + i, 0, False) for i in range(min(len(rows), cells - start))])
    with pytest.raises(CacheFull):
        small.decode([Row(1, cells, 0, False)])
    small.drop(0)
    small.decode([Row(1, 0, 1, True)])
    small.close()


def test_an_aborted_decode_fails_its_request_and_the_next_one_is_answered_as_ever(backend: LlamaBackend) -> None:

    import llama_cpp

    tokens = prompt(backend)
    expected = run(backend, tokens, [1, 2], temperature=0.0)
    calls = []

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
    def abort(_: object) -> bool:
        calls.append(1)
        return len(calls) > 200  # in the midst of a graph

    scheduler = Scheduler(backend, lambda: 0.0)
    scheduler.submit(job("j", tokens, [1, 2], SamplingParams(temperature=0.0), seed=5))
    llama_cpp.llama_set_abort_callback(backend._ctx, abort, None)
    try:
        events = [e for _ in range(50) if not scheduler.idle for e in scheduler.step()]
    finally:
        llama_cpp.llama_set_abort_callback(backend._ctx, ctypes.cast(None, type(abort)), None)
    assert isinstance(events[-1], Failed)
    assert "llama_decode failed with 2" in str(events[-1].error)
    assert scheduler.free_sequences == backend.info.sequences
    assert all(llama_cpp.llama_memory_seq_pos_max(backend._memory, s) == -1 for s in range(backend.info.sequences))
    again = run(backend, tokens, [1, 2], temperature=0.0)
    assert {i: d.candidate.text for i, d in again.items()} == {i: d.candidate.text for i, d in expected.items()}


@pytest.mark.parametrize("token", [-1, 1 << 20, 1 << 40])
def test_a_token_that_there_is_not_does_not_end_the_process(backend: LlamaBackend, token: int) -> None:
    with pytest.raises(IndexError):
        backend.piece(token)


def test_tools_and_unicode_go_through_the_template_and_the_tokenizer(backend: LlamaBackend) -> None:
    call = ToolCall("weather", '{"city": "Köln"}')
    text = backend.render(
        [
            Message("system", "Be short."),
            Message("user", "Wie ist das Wetter? ☔️"),
            Message("assistant", "", (call,)),
            Message("tool", "rain"),
        ],
        [Tool("weather", "tells the weather", '{"type": "object"}')],
    )
    assert "Köln" in text
    assert text.index("weather") < text.index("Wetter")
    pieces = b"".join(backend.piece(t) for t in backend.tokenize("Wetter ☔️ 日本 👩‍🚀\r\n"))
    assert pieces.decode() == "Wetter ☔️ 日本 👩‍🚀\r\n"


def pooled(backend: LlamaBackend, tokens: list[int]) -> np.ndarray:
    """The mean of the last hidden states by llama.cpp's own pooling, all in one batch."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
    params.embeddings, params.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_MEAN
    context = llama_cpp.llama_init_from_model(backend._model, params)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    batch.n_tokens = len(tokens)
    assert llama_cpp.llama_decode(context, batch) == 0
    pointer = llama_cpp.llama_get_embeddings_seq(context, 0)
    vector = np.array(pointer[: llama_cpp.llama_model_n_embd(backend._model)])
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("words", [1, 9, 60, 200])
def test_a_text_is_embedded_in_pieces_as_it_is_at_once(backend: LlamaBackend, words: int) -> None:
    text = " ".join(QUESTION.split()[i % 19] for i in range(words))
    [found] = backend.embed([text])
    expected = pooled(backend, backend.tokenize(text))
    assert float(expected @ np.array(found)) > 0.9999


def test_calls_leave_no_work_for_the_garbage_collector(backend: LlamaBackend) -> None:
    """ctypes' casts make cycles: one for each token that is drawn would be megabytes between two collections."""

    def use() -> None:
        tokens = prompt(backend)
        backend.decode([Row(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)])
        sampler = backend.sampler(SamplingParams(), 1, tokens)
        backend.sample(sampler, len(tokens) - 1)
        sampler.close()
        state = backend.export(0)
        assert backend.restore(1, state)
        backend.embed(["one"])
        backend.drop(0)
        backend.drop(1)

    def is_pointer(each: object) -> bool:
        return type(each).__name__.startswith(("LP_", "c_void_p"))

    use()  # what is made once
    gc.collect()
    gc.disable()
    try:
        before = {id(each) for each in gc.get_objects()}
        for _ in range(3):
            use()
        left = [type(each).__name__ for each in gc.get_objects() if id(each) not in before and is_pointer(each)]
        assert left == []
    finally:
        gc.enable()


def test_equal_texts_have_equal_embeddings(backend: LlamaBackend) -> None:
    a, b, c = backend.embed(["How many pens?", "How many pens?", ""])
    assert a == b
    assert len(a) == len(c)
    assert sum(x * x for x in a) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"context": 1 << 20}, InvalidRequest, "--ctx 1048576"),
        ({"path": Path("/nowhere.gguf")}, BackendError, "/nowhere.gguf could not be loaded"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(options: dict[str, object], error: type[Exception], says: str) -> None:
    base: dict[str, object] = {"path": BUNDLED, "name": "demo", "fingerprint": "fp"}
    with pytest.raises(error, match=says) as caught:
        LlamaBackend(LlamaOptions(**(base | options)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
