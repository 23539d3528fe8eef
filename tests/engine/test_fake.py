"""The fake backend: its spec is checked, and it is loud where llama.cpp would be silent."""

import pytest

from node.engine.backend import Row
from node.engine.fake import FakeBackend, FakeSpec
from node.errors import BackendError, InvalidRequest
from node.types import SamplingParams


def test_a_spec() -> None:
    spec = FakeSpec.parse("fake:answers=1, 2|3,tokens_per_s=50,prefill_per_s=1e3,logprob=-2,fail_after=7,name=x")
    assert spec == FakeSpec(("1, 2", "3"), 50, 1000, -2, 7, "x")
    for nothing in ("fake", "fake:", "auto", "bundled", ""):
        assert FakeSpec.parse(nothing) == FakeSpec()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("fake:speed=1", "no option 'speed'"),
        ("model.gguf", "no option 'model.gguf'"),
        ("fake:tokens_per_s=fast", "tokens_per_s is not a number"),
        ("fake:tokens_per_s=nan", "tokens_per_s is not a number"),
        ("fake:prefill_per_s=-1", "prefill_per_s is not a number, or below 0"),
        ("fake:logprob=-inf", "logprob is not a number"),
        ("fake:fail_after=1.5", "fail_after is not a number"),
    ],
)
def test_a_bad_spec(text: str, line: str) -> None:
    with pytest.raises(InvalidRequest, match=line):
        FakeSpec.parse(text)


def test_what_llama_would_pass_over_in_silence() -> None:
    backend = FakeBackend(FakeSpec(), sequences=2, context=4, batch=8)
    a, b = backend.tokenize("a b")
    backend.decode([Row(a, 0, 0, False), Row(b, 1, 0, True)])
    sampler = backend.sampler(SamplingParams(), 1, [a, b])
    for wrong, line in (
        (lambda: backend.decode([Row(a, 3, 0, False)]), "position 3 after 2"),
        (lambda: backend.decode([]), "0 rows"),
        (lambda: backend.decode([Row(a, i, 1, False) for i in range(9)]), "9 rows"),
        (lambda: backend.decode([Row(a, i, 1, False) for i in range(5)]), "past the context"),
        (lambda: backend.sample(sampler, 0), "no logits"),
        (lambda: backend.fork(1, 0, 1), "not empty"),
    ):
        with pytest.raises(AssertionError, match=line):
            wrong()
        if line == "past the context":
            backend.drop(1)
            backend.decode([Row(a, 0, 1, False), Row(b, 1, 1, True)])
    with pytest.raises(BackendError, match="fails after 0"):
        FakeBackend(FakeSpec(fail_after=0)).decode([Row(a, 0, 0, True)])
