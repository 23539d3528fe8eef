"""Sampling: what few candidates are drawn from is what all would have been, and probabilities are the plain model's."""

import ctypes
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import llama_cpp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from node.engine.backend import Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions, native
from node.engine.llamacpp import logits as rows
from node.engine.llamacpp.logits import SMALL_VOCABULARY, Logits
from node.engine.llamacpp.sampling import PENALTY_WINDOW, Candidates, Chain
from node.engine.scheduler import Done, Scheduler, Text, job
from node.errors import BackendError, InvalidRequest
from node.models.resolve import BUNDLED
from node.types import Candidate, FinishReason, Message, SamplingParams

pytestmark = pytest.mark.usefixtures("emptied")

native.set_up()
LARGE = SMALL_VOCABULARY + 5000  # no multiple of a group's size


def values(seed: int, size: int = LARGE, *, spread: float = 3.0, ties: bool = False) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(size).astype(np.float32) * spread
    return np.round(drawn * 2) / 2 if ties else drawn


def logits(of: np.ndarray) -> Logits:
    return Logits(of, np.empty_like(of))


def chain(params: SamplingParams, seed: int = 1, prompt: list[int] | None = None, size: int = LARGE) -> Chain:
    return Chain(None, size, params, seed, prompt or [], ends=[3, 4])


# ---- of all, the best -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(10, LARGE), st.booleans())
def test_the_best_are_among_those_that_are_offered(seed: int, count: int, size: int, ties: bool) -> None:
    of = values(seed, size, ties=ties)
    ids = logits(of).best(count)
    if ids is None:
        return
    least = np.sort(of)[-count]
    assert set(np.flatnonzero(of >= least)) <= set(ids)
    assert (np.diff(ids) > 0).all()
    assert ties or len(ids) < 3 * count + 64


@pytest.mark.parametrize("size", [5, 1000, LARGE, 151_936])
def test_log_probabilities_are_those_of_the_whole_vocabulary(size: int, is_built_in: bool) -> None:
    of = values(1, size, spread=5.0)
    exact = of.astype(np.float64) - math.log(np.exp(of.astype(np.float64) - of.max()).sum()) - of.max()
    made = logits(of)
    assert [made.logprob(t) for t in range(5)] == pytest.approx(exact[:5], abs=1e-5)
    top = made.top(5)
    assert [t for t, _ in top] == list(np.argsort(-exact)[:5])
    assert [p for _, p in top] == pytest.approx(np.sort(exact)[::-1][:5], abs=1e-5)


def test_a_certain_token_has_a_log_probability_of_0_and_no_more() -> None:
    of = np.full(LARGE, -50.0, dtype=np.float32)
    of[7] = 60.0
    assert logits(of).logprob(7) == 0.0


@pytest.fixture(params=[True, False], ids=["built in", "NumPy"])
def is_built_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the functions that are built in beside our kernels, and without."""
    if request.param and rows._SCAN is None:
        pytest.skip("this wheel has none")
    if not request.param:
        monkeypatch.setattr(rows, "_SCAN", None)
        monkeypatch.setattr(rows, "_AT_LEAST", None)
    return bool(request.param)


@pytest.mark.skipif(rows._SCAN is None, reason="this wheel has no functions of ours")
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [SMALL_VOCABULARY + 1, LARGE, 128 * 40, 151_936])
def test_what_is_built_in_finds_what_numpy_finds(size: int, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        of = values(seed, size, spread=6.0, ties=ties)
        if seed == 4:
            of[-1] = of.max() + 1  # behind all whole groups
        made = logits(of)
        found = [made.best(n) for n in (1, 40, 200)] + [made.at_least(made.greatest - 5), made.at_least(-math.inf)]
        monkeypatch.setattr(rows, "_SCAN", None)
        monkeypatch.setattr(rows, "_AT_LEAST", None)
        plain = logits(of)
        assert (made.first, made.greatest) == (plain.first, plain.greatest)
        assert made.log_total == pytest.approx(plain.log_total, abs=2e-6)
        same = [plain.best(n) for n in (1, 40, 200)] + [plain.at_least(plain.greatest - 5), plain.at_least(-math.inf)]
        for a, b in zip(found, same, strict=True):
            np.testing.assert_array_equal(a, b)
        monkeypatch.undo()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 100, LARGE - 1])
@pytest.mark.parametrize("size", [200, LARGE])
def test_what_is_no_number_is_an_error(bad: float, at: int, size: int, is_built_in: bool) -> None:
    of = values(1, size)
    of[min(at, size - 1)] = bad
    with pytest.raises(BackendError, match="no numbers"):
        logits(of)
    with pytest.raises(BackendError, match="no numbers"):
        logits(np.full(size, -math.inf, dtype=np.float32))


# ---- against llama.cpp on the whole vocabulary ----------------------------------------------------------------------


class Whole:
    """The same samplers in one chain of llama.cpp's, over all tokens."""

    def __init__(self, params: SamplingParams, seed: int, prompt: list[int], size: int) -> None:
        ll = llama_cpp
        self.chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        bias = (ll.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
        penalties = ll.llama_sampler_init_penalties(
            size, PENALTY_WINDOW, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
        )
        for token in prompt[-PENALTY_WINDOW:]:
            ll.llama_sampler_accept(penalties, token)
        greedy = params.temperature == 0
        for sampler in (
            ll.llama_sampler_init_logit_bias(size, len(bias), bias),
            penalties,
            *([ll.llama_sampler_init_greedy()] if greedy else []),
            *([] if greedy else [ll.llama_sampler_init_top_k(params.top_k)]),
            *([] if greedy else [ll.llama_sampler_init_top_p(params.top_p, 1)]),
            *([] if greedy else [ll.llama_sampler_init_min_p(params.min_p, 1)]),
            *([] if greedy else [ll.llama_sampler_init_temp(params.temperature)]),
            *([] if greedy else [ll.llama_sampler_init_dist(seed)]),
        ):
            ll.llama_sampler_chain_add(self.chain, sampler)

    def draw(self, of: np.ndarray) -> int:
        data = (llama_cpp.llama_token_data * len(of))()
        for i, value in enumerate(of):
            data[i].id, data[i].logit = i, value
        array = llama_cpp.llama_token_data_array(data, len(of), -1, False)
        llama_cpp.llama_sampler_apply(self.chain, ctypes.byref(array))
        token = int(data[array.selected].id)
        llama_cpp.llama_sampler_accept(self.chain, token)
        return token


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 0.8, 2.0]),
        top_k=st.sampled_from([0, 1, 5, 40, 200, 100_000]),
        top_p=st.sampled_from([1.0, 0.95, 0.3]),
        min_p=st.sampled_from([0.0, 0.05, 0.5]),
        repeat_penalty=st.sampled_from([1.0, 1.3, 0.7]),
        presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
        frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
        logit_bias=st.dictionaries(st.integers(0, LARGE - 1), st.floats(-100, 100, width=32), max_size=20).map(
            lambda d: tuple(d.items())
        ),
    ),
)
def test_the_same_seed_draws_the_same_tokens_from_few_as_from_all(seed: int, params: SamplingParams) -> None:
    of = values(seed)
    assume(params.temperature == 0 or params.top_k or params.top_p < 1 or params.min_p)  # else it takes two draws
    favourites = np.argsort(-of)
    prompt = [int(t) for t in favourites[[0, 1, 1, 5, 100, 2000]]]
    ours, whole = chain(params, seed, prompt), Whole(params, seed, prompt, LARGE)
    candidates = Candidates(LARGE)
    for _ in range(8):
        assert ours.draw(logits(of), candidates) == whole.draw(of)
    ours.close()
    llama_cpp.llama_sampler_free(whole.chain)


# ---- against an implementation of our own ---------------------------------------------------------------------------


def distribution(of: np.ndarray, params: SamplingParams, prompt: list[int]) -> dict[int, float]:
    """Probabilities by the definitions: biases, penalties, top-k, top-p, min-p, temperature."""
    x = of.astype(np.float64)
    for token, bias in params.logit_bias:
        x[token] += bias
    for token, count in Counter(prompt[-PENALTY_WINDOW:]).items():
        x[token] = x[token] / params.repeat_penalty if x[token] > 0 else x[token] * params.repeat_penalty
        x[token] -= params.presence_penalty + count * params.frequency_penalty
    order = list(np.argsort(-x))[: params.top_k or None]
    p = np.exp(x[order] - x[order[0]])
    p /= p.sum()
    kept = int(np.searchsorted(np.cumsum(p), params.top_p)) + 1 if params.top_p < 1 else len(order)
    order = [t for t, q in zip(order[:kept], p, strict=False) if q >= params.min_p * p[0]]
    q = np.exp((x[order] - x[order[0]]) / params.temperature)
    return {int(t): float(v) for t, v in zip(order, q / q.sum(), strict=True)}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0, top_k=8, top_p=1.0, min_p=0.0),
        SamplingParams(temperature=1.5, top_k=0, top_p=0.6, min_p=0.0),
        SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.02),
        SamplingParams(temperature=0.5, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(temperature=0.4, top_k=0, top_p=1.0, min_p=0.0, logit_bias=((17, 15.0), (LARGE - 2, 14.5))),
        SamplingParams(temperature=0.5, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=2.0, presence_penalty=1.5),
        SamplingParams(temperature=1.0, top_k=20, presence_penalty=1.0, frequency_penalty=0.5),
        SamplingParams(temperature=1.0, top_k=20, repeat_penalty=1.5, logit_bias=((17, 12.0), (18, -100.0))),
    ],
)
def test_draws_follow_the_distribution_that_the_parameters_define(params: SamplingParams) -> None:
    of = values(11, spread=2.0)
    prompt = [int(t) for t in np.argsort(-of)[[0, 0, 1, 3]]]
    expected = distribution(of, params, prompt)
    candidates, row, draws = Candidates(LARGE), logits(of), 3000
    found: Counter[int] = Counter()
    sampler = chain(params, 5, prompt)
    for _ in range(draws):
        # Penalties must not see what is drawn here: the window is put back.
        found[sampler._pick(row, candidates)] += 1
    assert set(found) <= set(expected)
    # Chi-square over tokens that are expected often enough; its mean is `degrees`, its deviation sqrt(2 degrees).
    often = {t: p * draws for t, p in expected.items() if p * draws >= 5}
    chi = sum((found[t] - e) ** 2 / e for t, e in often.items())
    degrees = max(len(often) - 1, 1)
    assert chi < degrees + 5 * math.sqrt(2 * degrees)
    sampler.close()


def test_penalties_look_back_on_64_tokens_the_prompt_s_included() -> None:
    of = np.zeros(LARGE, dtype=np.float32)
    of[5], of[6] = 2.0, 1.5
    params = SamplingParams(temperature=0.0, presence_penalty=1.0)
    candidates = Candidates(LARGE)
    assert chain(params).draw(logits(of), candidates) == 5
    assert chain(params, prompt=[5]).draw(logits(of), candidates) == 6
    assert chain(params, prompt=[5, *range(100, 100 + PENALTY_WINDOW)]).draw(logits(of), candidates) == 5
    plain = replace(params, temperature=0.01, top_k=0, top_p=1.0, min_p=0.0)
    assert chain(plain).draw(logits(of), candidates) == 5
    assert chain(plain, prompt=[5]).draw(logits(of), candidates) == 6
    both = chain(params, prompt=[5])
    assert [both.draw(logits(of), candidates) for _ in range(3)] == [6, 5, 5]


def test_ends_are_never_drawn_under_ignore_eos() -> None:
    of = values(1)
    of[3], of[4] = 90.0, 80.0
    for params in (
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
    ):
        assert chain(params).draw(logits(of), Candidates(LARGE)) == 3
        assert chain(replace(params, ignore_eos=True)).draw(logits(of), Candidates(LARGE)) not in (3, 4)


def test_a_bias_for_a_token_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"token {LARGE}: the model has {LARGE}"):
        chain(SamplingParams(logit_bias=((LARGE, 1.0),)))


# ---- with the bundled model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend() -> Iterator[LlamaBackend]:
    backend = LlamaBackend(LlamaOptions(BUNDLED, "demo", "fp", sequences=4, context=512, threads=1))
    yield backend
    backend.close()


HARD = "A machine makes 28 nuts an hour for 7 hours a day, on 3 days. 45 are broken. How many good nuts are there?"


def run(
    backend: LlamaBackend, candidates: int = 2, text: str = "What is 12 + 30?", **params: object
) -> tuple[dict[int, Candidate], list[Text]]:
    prompt = backend.tokenize(backend.render([Message("user", text)], []))
    scheduler = Scheduler(backend, lambda: 0.0)
    scheduler.submit(job("j", prompt, range(1, candidates + 1), SamplingParams(**params), seed=5))  # type: ignore[arg-type]
    events = []
    while not scheduler.idle:
        events += scheduler.step()
    scheduler.commit("j")
    scheduler.slots.forget("~j")
    return (
        {e.candidate.id: e.candidate for e in events if isinstance(e, Done)},
        [e for e in events if isinstance(e, Text)],
    )


def test_without_an_end_an_answer_is_as_long_as_it_may(backend: LlamaBackend) -> None:
    done, _ = run(backend, ignore_eos=True, max_tokens=50)
    assert all(c.tokens == 50 and c.finish_reason is FinishReason.LENGTH for c in done.values())


def test_the_same_seed_and_batch_shape_give_the_same_tokens(backend: LlamaBackend) -> None:
    """And with another backend on the same file: nothing is left over from what was decoded before."""
    params: dict[str, object] = {
        "text": HARD,
        "temperature": 2.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "logprobs": True,
    }
    first, _ = run(backend, 4, **params)  # type: ignore[arg-type]
    run(backend, 3, temperature=1.0)
    again, _ = run(backend, 4, **params)  # type: ignore[arg-type]
    other = LlamaBackend(LlamaOptions(BUNDLED, "demo", "fp", sequences=4, context=512, threads=1))
    anew, _ = run(other, 4, **params)  # type: ignore[arg-type]
    other.close()
    tokens = [{i: [t.id for t in c.logprobs] for i, c in done.items()} for done in (first, again, anew)]
    assert tokens[0] == tokens[1] == tokens[2]
    assert len({tuple(t) for t in tokens[0].values()}) > 1


def test_log_probabilities_come_with_the_text_and_add_up(backend: LlamaBackend) -> None:
    done, texts = run(backend, 3, temperature=1.0, logprobs=True, top_logprobs=5)
    for id, candidate in done.items():
        assert b"".join(t.bytes for t in candidate.logprobs).decode() == candidate.text
        assert candidate.finish_reason is FinishReason.STOP
        assert len(candidate.logprobs) == candidate.tokens - 1  # the end is no part of the text
        assert sum(t.logprob for t in candidate.logprobs) >= candidate.mean_logprob * candidate.tokens
        streamed = [t for e in texts for i, new in e.logprobs if i == id for t in new]
        assert tuple(streamed) == candidate.logprobs
        for token in candidate.logprobs:
            assert len(token.top) == 5
            assert all(-9999.0 <= t.logprob <= 0.0 and t.top == () for t in token.top)
            assert [t.logprob for t in token.top] == sorted((t.logprob for t in token.top), reverse=True)
            assert token.logprob <= token.top[0].logprob
            assert all(t.logprob == token.logprob for t in token.top if t.id == token.id)
    greedy, _ = run(backend, 1, temperature=0.0, logprobs=True, top_logprobs=1)
    assert all(t.id == t.top[0].id for t in greedy[1].logprobs)
    none, _ = run(backend, 1)
    assert none[1].logprobs == ()


def test_tokens_of_a_stop_string_have_no_entry(backend: LlamaBackend) -> None:
    whole, _ = run(backend, 1, temperature=0.0, logprobs=True)
    assert "answer: 42" in whole[1].text
    done, texts = run(backend, 1, temperature=0.0, logprobs=True, stop=("answer: 4",))
    assert "answer" not in done[1].text
    assert b"".join(t.bytes for t in done[1].logprobs).decode() == done[1].text
    assert tuple(t for e in texts for _, new in e.logprobs for t in new) == done[1].logprobs


def test_a_control_token_among_the_alternatives_has_a_name_and_no_bytes(backend: LlamaBackend) -> None:
    done, _ = run(backend, 1, temperature=0.0, logprobs=True, top_logprobs=20, ignore_eos=True, max_tokens=30)
    ends = [t for token in done[1].logprobs for t in token.top if backend.is_end(t.id)]
    assert ends
    assert all(t.bytes == b"" and t.token for t in ends)


def test_a_grammar_that_comes_to_a_dead_end_is_an_error_and_not_the_end_of_the_process(backend: LlamaBackend) -> None:
    """After "a" the grammar wants the answer to end, which it must not."""
    sampler = backend.sampler(SamplingParams(grammar='root ::= "7"', ignore_eos=True), 1, [])
    prompt = backend.tokenize("What")
    backend.decode([Row(t, i, 0, i == len(prompt) - 1) for i, t in enumerate(prompt)])
    token, _ = backend.sample(sampler, len(prompt) - 1)
    assert backend.piece(token).strip() == b"7"
    with pytest.raises(InvalidRequest, match="the grammar allows nothing there"):
        backend.sample(sampler, len(prompt) - 1)
    sampler.close()


def test_a_drawn_token_that_the_grammar_refuses_is_drawn_again_from_what_it_allows(backend: LlamaBackend) -> None:
    prompt = backend.tokenize("What is")
    backend.decode([Row(t, i, 0, i == len(prompt) - 1) for i, t in enumerate(prompt)])
    row = len(prompt) - 1
    likely = backend.piece(backend.top(row, 1)[0][0]).decode()
    found = Counter()
    for seed in range(40):
        sampler = backend.sampler(SamplingParams(temperature=1.0, grammar=r"root ::= [0-9A-Z] .*"), seed, prompt)
        found[backend.piece(backend.sample(sampler, row)[0]).decode()[0]] += 1
        sampler.close()
    assert likely[0] not in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert set(found) <= set("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert len(found) > 1
