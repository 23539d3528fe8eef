"""The tokenizer of a model directory (tokenizer.json, tokenizer_config.json), by Hugging Face's tokenizers library.

A streamed answer needs the bytes of single tokens, which the library does not give: they follow from its decoder,
either byte-level BPE (GPT-2's printable stand-ins for bytes) or SentencePiece's (▁ for a space, <0xNN> for a byte).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from node.core import formats
from node.engine.segments import Segments, Special
from node.errors import BackendError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level() -> dict[str, int]:
    """Character -> byte: openai/gpt-2's encoder.py, `bytes_to_unicode`."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


class Vocabulary:
    """Tokens of a model directory. Raises BackendError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            self._config: dict[str, Any] = json.loads(_text(path / "tokenizer_config.json") or "{}")
            model = json.loads(_text(path / "generation_config.json") or "{}")
            model = {**json.loads(_text(path / "config.json") or "{}"), **model}
        except Exception as e:  # the library has no errors of its own
            raise BackendError(f"{path} has no tokenizer that can be read: {' '.join(str(e).split())[:200]}") from None
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.size = max(self.size, int(model.get("text_config", model).get("vocab_size") or 0))
        self.template = _text(path / "chat_template.jinja") or _template(self._config.get("chat_template"))
        self.format, self.thinks = formats.of(self.template), formats.thinks(self.template)
        self._tags = formats.tags(self.format)
        self.bos, self.eos = self._token("bos_token"), self._token("eos_token")
        self._specials = {i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        ends = model.get("eos_token_id")
        self.ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends]) | {
            i for t in (self.eos,) if t and (i := self._tokenizer.token_to_id(t)) is not None
        }
        decoder = json.dumps(json.loads(self._tokenizer.to_str()).get("decoder") or {})
        self._bytes = _byte_level() if "ByteLevel" in decoder else None
        self._pieces: dict[int, bytes] = {}
        # What a file may say of that is for training.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        written = "".join((self.template, self.bos, self.eos))
        self._segments = Segments(_specials(self._tokenizer), written, self._encode)

    def encode(self, text: str) -> list[int]:
        """Token ids; control tokens in the text are recognised, and none are added: the template writes them."""
        return self._segments.tokens(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for ids that it does not use and for control tokens but its format's."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._piece(token)
        return found

    def label(self, token: int) -> str:
        """The token as a person reads it: control tokens have a name."""
        if token in self._specials:
            return self._tokenizer.id_to_token(token) or ""
        return self.piece(token).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        text: str = self._tokenizer.id_to_token(token) or ""
        if token in self._specials:
            return text.encode() if text.encode() in self._tags else b""
        if self._bytes is not None:
            if all(c in self._bytes for c in text):
                return bytes(self._bytes[c] for c in text)
            return text.encode()  # an added token, which stands for itself
        if match := _BYTE.fullmatch(text):
            return bytes([int(match[1], 16)])
        return text.replace("▁", " ").encode()

    def _token(self, key: str) -> str:
        said = self._config.get(key)
        return str(said.get("content", "")) if isinstance(said, dict) else str(said or "")


def _specials(tokenizer: Any) -> list[Special]:
    """The tokens that are looked for in a text before anything else is done to it."""
    return [
        Special(t.content.encode(), t.lstrip, is_control=t.special and not (t.normalized or t.single_word))
        for t in tokenizer.get_added_tokens_decoder().values()
    ]


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _template(said: Any) -> str:
    """A configuration may hold one template or several by name."""
    if isinstance(said, list):
        by_name = {t.get("name"): t.get("template", "") for t in said if isinstance(t, dict)}
        return str(by_name.get("default") or "")
    return said if isinstance(said, str) else ""
