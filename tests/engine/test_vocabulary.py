"""Tokenizers of model directories: a conversation is tokenized in pieces, and comes out as from the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine import segments
from node.engine.vocabulary import Vocabulary

tokenizers = pytest.importorskip("tokenizers")

PIECES = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<tool>", "<|im_", "|>", " ", "  ", "\n", "the", "ß", "🙂", "漢"]
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=40).map("".join)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<tool>"


def byte_level() -> Any:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(letters)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


def sentence_piece(scheme: str) -> Any:
    """As Llama 2's and Mistral's: a ▁ at the beginning of the text, or of each stretch of it."""
    letters = ["<unk>", *"▁abcdehtuserx\n|<>_im", "the", "▁t"]
    vocabulary = {c: i for i, c in enumerate(dict.fromkeys(letters))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("▁", "t")], unk_token="<unk>", fuse_unk=True))
    if scheme == "normalizer":
        parts = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        made.normalizer = tokenizers.normalizers.Sequence(parts)
    else:
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return made


KINDS: dict[str, Callable[[], Any]] = {
    "byte level": byte_level,
    "first": lambda: sentence_piece("first"),
    "always": lambda: sentence_piece("always"),
    "normalizer": lambda: sentence_piece("normalizer"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("vocabulary")
    made = KINDS[request.param]()
    special = tokenizers.AddedToken
    made.add_special_tokens(["<|im_start|>", special("<|im_end|>", rstrip=True), "<s>", special("</s>", lstrip=True)])
    made.add_tokens([special("<tool>", normalized=True)])
    made.enable_truncation(5)
    made.save(str(where / "tokenizer.json"))
    says = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (where / "tokenizer_config.json").write_text(json.dumps(says))
    return where


@given(text=texts)
@settings(max_examples=100, deadline=None)
def test_the_tokens_of_the_pieces_are_those_of_the_whole(path: Path, text: str) -> None:
    found = Vocabulary(path)
    assert found._segments._cut is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "WORTH", 0)
        for asked in (text, text + "<|im_start|>" + text, text):  # the second time from what is remembered
            assert found.encode(asked) == found._encode(asked)


def test_a_turn_tokenizes_what_is_new_and_all_of_it(path: Path) -> None:
    found = Vocabulary(path)
    whole, seen = found._encode, list[int]()
    found._segments._tokenize = lambda text: (seen.append(len(text)), whole(text))[1]
    said = ""
    for turn in range(100):
        said += f"<|im_start|>user\nthe {turn} the<|im_end|>\n<|im_start|>the {turn * 7}<|im_end|>\n"
        seen.clear()
        assert found.encode(said) == whole(said)
        assert len(found.encode(said)) > len(said) / 20, "not cut off"
        if turn > 60:
            assert sum(seen) < 200


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("<|start|>assistant<|channel|>", "<|channel|>the<|end|>"),
        ("[THINK]{{ messages }}", "the[THINK]"),
        ("{{ messages }}", "the"),
    ],
)
def test_marks_of_the_models_format_are_text_and_other_control_tokens_are_not(
    tmp_path: Path, template: str, says: str
) -> None:
    made = byte_level()
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|channel|>", "<|end|>", "[THINK]", "<s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    found = Vocabulary(tmp_path)
    tokens = found.encode("<s><|channel|>the<|end|>[THINK]")
    assert b"".join(map(found.piece, tokens)).decode().replace(" ", "") == says
