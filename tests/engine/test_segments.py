"""A conversation in pieces has the tokens that it has at once, and a turn tokenizes only what is new of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import llama_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine import segments
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.llamacpp.vocabulary import specials
from node.engine.segments import Segments, Special
from node.models.resolve import BUNDLED
from node.types import Message
from scripts.bench.make_model import TEMPLATE, TINY, write

CONTROL, USER = 3, 4
CHAT = ["<|im_start|>", "<|im_end|>"]
# Special tokens of all kinds that make a cut wrong: longer, shorter, overlapping, taking spaces.
ODD = {"im_start|>x": USER, "\n\n": USER, "  ": USER, "<s>": CONTROL, "</s>": CONTROL, "[INST]": CONTROL}


def sentencepiece(path: Path) -> None:
    """A vocabulary like Llama 2's, without weights."""
    out = gguf.GGUFWriter(path, "llama")
    words = ["▁", "▁a", "▁th", "a", "b", "th", "e", "▁the", "<", ">", "|", "s", "/", "[", "]", "\n", "I", "N", "S", "T"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words, "[INST]", "[/INST]", *CHAT]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(words), *[3] * 4]
    out.add_context_length(512)
    out.add_embedding_length(64)
    out.add_block_count(1)
    out.add_head_count(1)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_scores([float(-i) for i in range(len(tokens))])
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_space_prefix(True)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()


class Vocabulary:
    """llama.cpp's tokenizer of a file, without its weights."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(bytes(path), params)
        assert self._model
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        tokens = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), False, True)
        assert n >= 0
        return tokens[:n]

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)


@pytest.fixture(scope="module", params=["bundled", "tiny", "sentencepiece"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    path = tmp_path_factory.mktemp("vocabulary") / "model.gguf"
    if request.param == "bundled":
        path = BUNDLED
    elif request.param == "tiny":
        write(path, TINY)
    else:
        sentencepiece(path)
    found = Vocabulary(path)
    yield found
    found.close()


PIECES = [
    *CHAT, *ODD, "<|endoftext|>", "<|im_", "start|>", "|>", "<|", "<", " ", "  ", "\n", "\n\n\n", "the", "a", "user\n",
    "[/INST]", "ß", "🙂", "漢", "1234", "'ll", "\t",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=40).map("".join)


def of(found: Vocabulary, tokenize: Callable[[str], list[int]] | None = None) -> Segments:
    return Segments(specials(found.vocab), TEMPLATE + "[INST] </s>", tokenize or found.tokenize)


@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_the_tokens_of_the_pieces_are_those_of_the_whole(vocabulary: Vocabulary, text: str) -> None:
    cut = of(vocabulary)
    assert cut._cut is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "WORTH", 0)
        for asked in (text, text + "<|im_start|>" + text, text):  # the second time from what is remembered
            assert cut.tokens(asked) == vocabulary.tokenize(asked)


def test_a_turn_tokenizes_what_is_new(vocabulary: Vocabulary) -> None:
    seen: list[str] = []

    def tokenize(text: str) -> list[int]:
        seen.append(text)
        return vocabulary.tokenize(text)

    cut = of(vocabulary, tokenize)
    said = "<|im_start|>system\nthe a the<|im_end|>\n"
    for turn in range(160):
        said += f"<|im_start|>user\nthe a {turn} the a<|im_end|>\n<|im_start|>assistant\n"
        seen.clear()
        assert cut.tokens(said) == vocabulary.tokenize(said)
        if len(said) > 2 * segments.WORTH:
            assert sum(map(len, seen)) < 150
        said += f"a the {turn}<|im_end|>\n"


def test_what_is_remembered_has_a_limit(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_BYTES", 100_000)
    monkeypatch.setattr(segments, "WORTH", 100)
    cut = of(vocabulary)
    for i in range(300):
        text = "".join(f"<|im_start|>the {i} a {j}<|im_end|>" for j in range(20))
        assert cut.tokens(text) == vocabulary.tokenize(text)
    assert 50_000 < cut._bytes <= 100_000
    assert cut._bytes == sum(segments._size(text, tokens) for text, tokens in cut._held.items())
    assert sum(len(tokens) for tokens in cut._held.values()) < 100_000 / 36


def test_short_texts_are_not_remembered(vocabulary: Vocabulary) -> None:
    cut = of(vocabulary)
    for i in range(50):
        cut.tokens(f"<|im_start|>the {i}<|im_end|>")
    assert not cut._held


@pytest.mark.parametrize(
    ("other", "is_cut"),
    [
        (Special(b"<|im_end|>"), True),
        (Special(b"im_start|>x"), False),  # takes part of it
        (Special(b"x<|im_start|>"), False),
        (Special(b">>"), False),  # begins in it
        (Special(b"a<"), False),  # ends in it
        (Special(b"im_"), False),  # is in it
        (Special(b"\n\n"), True),
    ],
)
def test_a_token_that_another_may_overlap_is_not_cut_before(other: Special, is_cut: bool) -> None:
    made: list[str] = []

    def tokenize(text: str) -> list[int]:
        made.append(text)
        return []

    cut = Segments([Special(b"<|im_start|>"), other], "<|im_start|>", tokenize)
    cut.tokens("<|im_start|>" + "a" * 2000 + "<|im_start|>" + "b" * 2000)
    assert (len(made) > 1) == is_cut


@pytest.mark.parametrize("special", [Special(b"<|a|>", strips_left=True), Special(b"<|a|>", is_control=False)])
def test_a_token_that_takes_spaces_or_is_only_a_word_is_not_cut_before(special: Special) -> None:
    made: list[str] = []
    cut = Segments([special], "<|a|>", lambda text: made.append(text) or [])  # type: ignore[func-returns-value]
    cut.tokens("<|a|>" + "a" * 2000 + " <|a|>" + "b" * 2000)
    assert len(made) == 1


def test_a_backend_tokenizes_a_conversation_as_llama_cpp_does() -> None:
    backend = LlamaBackend(LlamaOptions(BUNDLED, "demo", "fp", sequences=1, context=64, threads=1))
    plain = Vocabulary(BUNDLED)
    messages: list[Message] = []
    for turn in range(60):
        messages += [Message("user", f"What is {turn} + {turn}?" * 3), Message("assistant", f"{2 * turn}.")]
        text = backend.render(messages[:-1], ())
        assert backend.tokenize(text) == plain.tokenize(text)
    assert backend._vocabulary._segments._held
    plain.close()
    backend.close()
