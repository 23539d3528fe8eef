"""What people type for a model, and what they may have meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.models.catalogue import entries, find, find_with_quantization, meant, near


@pytest.mark.parametrize(("typed", "name"), [
    ("qwen2.5:7b", "Qwen2.5-7B-Instruct"), ("llama3.2:3b", "Llama-3.2-3B-Instruct"), ("gemma3:4b", "gemma-3-4b-it"),
    ("qwen3:8b", "Qwen3-8B"), ("qwen3:4b", "Qwen3-4B-Instruct-2507"), ("phi4", "phi-4"),
    ("phi4-mini", "Phi-4-mini-instruct"),
])  # fmt: skip
def test_ollama_s_names(typed: str, name: str) -> None:
    entry = find(typed)
    assert entry is not None
    assert entry.name == name
    assert find_with_quantization(typed) == (entry, "")
    assert find_with_quantization(f"{typed}:Q8_0") == (entry, "Q8_0")


@pytest.mark.parametrize(("typed", "names"), [
    ("llama3", {"Llama-3.2-3B-Instruct", "Llama-3.1-8B-Instruct"}), ("llama3:8b", {"Llama-3.1-8B-Instruct"}),
    ("qwen", {"Qwen2.5-0.5B-Instruct"}), ("mistral", {"Mistral-Small-3.2-24B-Instruct-2506"}),
    ("Qwen2.5-7B-Instrukt", {"Qwen2.5-7B-Instruct"}), ("gemma3:latest", {"gemma-3-4b-it"}), ("smollm3", {"SmolLM3-3B"}),
])  # fmt: skip
def test_what_was_meant(typed: str, names: set[str]) -> None:
    assert find(typed) is None
    found = near(typed)
    assert names <= set(found)
    assert len(found) <= 4
    assert found[0] in meant(typed)


def test_what_is_here_is_meant_first() -> None:
    assert near("llama3", ["llama3.2:1b-own"])[0] == "llama3.2:1b-own"
    assert meant("my-modle", ["my-model"]) == ": did you mean my-model?"
    assert meant("zzzzzz") == meant("") == meant("q") == ""


@given(st.text(max_size=300))
def test_anything_may_be_typed(text: str) -> None:
    assert set(near(text)) <= {e.name for e in entries()}
    find_with_quantization(text)
