"""Which model of others a name means."""

import pytest

from node.core.manifest import File
from node.download import Has, choose
from node.errors import InvalidRequest


def has(name: str, node: str = "a", size: int = 1) -> Has:
    return Has(name, (File(f"{name}.gguf", size),), node)


SEVEN = [
    has("qwen2.5-7b-instruct-q8_0", "a", 8),
    has("qwen2.5-7b-instruct-q4_k_m", "a", 4),
    has("qwen2.5-7b-instruct-q4_k_m", "b", 4),
    has("qwen2.5-7b-instruct-q4_k_m", "c", 5),
    has("llama-3.2-1b-instruct-q4_k_m", "c", 2),
]


@pytest.mark.parametrize(("name", "expected", "nodes"), [
    ("Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct-q4_k_m", ("a", "b")),
    ("qwen2.5-7b", "qwen2.5-7b-instruct-q4_k_m", ("a", "b")),
    ("qwen2.5-7b:Q8_0", "qwen2.5-7b-instruct-q8_0", ("a",)),
    ("qwen2.5-7b-instruct-q8_0", "qwen2.5-7b-instruct-q8_0", ("a",)),
    ("llama-3.2-1b", "llama-3.2-1b-instruct-q4_k_m", ("c",)),
])  # fmt: skip
def test_a_name(name: str, expected: str, nodes: tuple[str, ...]) -> None:
    found = choose(name, SEVEN)
    assert found is not None
    assert (found.name, found.nodes) == (expected, nodes)


@pytest.mark.parametrize("name", ["qwen2.5-7b:Q6_K", "mistral", "", ":", "../x"])
def test_what_nobody_has(name: str) -> None:
    assert choose(name, SEVEN) is None


def test_several_different_ones() -> None:
    with pytest.raises(InvalidRequest, match="means several models of other nodes: ol-a-q8_0, ol-b-q8_0"):
        choose("ol", [has("ol-a-q8_0"), has("ol-b-q8_0")])
    assert choose("qwen2.5:7b", [has("qwen2.5:7b")]) is not None
