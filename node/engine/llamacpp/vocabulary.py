"""The tokenizer and the chat template of a GGUF model. They are only read: any thread may ask."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp as ll

from node.core import formats
from node.engine.segments import Segments, Special
from node.engine.template import ChatTemplate
from node.errors import BackendError, InvalidRequest
from node.types import Message, Tool


def specials(vocab: Any) -> list[Special]:
    """The special tokens of a vocabulary of llama.cpp's."""
    found = []
    for token in range(ll.llama_vocab_n_tokens(vocab)):
        kind = ll.llama_vocab_get_attr(vocab, token)
        if kind & (ll.LLAMA_TOKEN_ATTR_CONTROL | ll.LLAMA_TOKEN_ATTR_USER_DEFINED | ll.LLAMA_TOKEN_ATTR_UNKNOWN):
            text = ll.llama_vocab_get_text(vocab, token) or b""
            strips_left, is_control = kind & ll.LLAMA_TOKEN_ATTR_LSTRIP, kind & ll.LLAMA_TOKEN_ATTR_CONTROL
            found.append(Special(text, bool(strips_left), bool(is_control)))
    return found


class Vocabulary:
    """Of a loaded model, which must outlive it. Raises InvalidRequest if the file has no tokenizer or template."""

    def __init__(self, model: Any, path: Path) -> None:
        self.pointer: Any = ll.llama_model_get_vocab(model)
        self.size: int = ll.llama_vocab_n_tokens(self.pointer)
        self._pieces: dict[int, bytes] = {}
        if self.size <= 0 or ll.llama_vocab_type(self.pointer) == ll.LLAMA_VOCAB_TYPE_NONE:
            raise InvalidRequest(f"{path} has no tokenizer: it cannot read a prompt")
        source = ll.llama_model_chat_template(model, None)
        if not source:
            raise InvalidRequest(f"{path} has no chat template: use an instruction-tuned model")
        try:
            template = source.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{path} is damaged: its chat template is not UTF-8") from None
        bos, eos = ll.llama_vocab_bos(self.pointer), ll.llama_vocab_eos(self.pointer)
        self._bos = self._text(bos) if ll.llama_vocab_get_add_bos(self.pointer) else ""
        ends = self._text(bos), self._text(eos)
        self.format, self.thinks = formats.of(template), formats.thinks(template)
        self._tags = formats.tags(self.format)
        self._template = ChatTemplate(template, bos=ends[0], eos=ends[1])
        self._segments = Segments(specials(self.pointer), "".join((template, *ends)), self._tokenize)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None = None) -> str:
        """The prompt, by the model's own chat template."""
        return self._template.render(messages, tools, think)

    def tokenize(self, text: str, *, is_part: bool = False) -> list[int]:
        """Token ids; control tokens that the template wrote are recognised."""
        if self._bos and not is_part and not text.startswith(self._bos):
            text = self._bos + text
        return self._segments.tokens(text)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens but those of its format. Raises IndexError for no token."""
        data = self._pieces.get(token)
        if data is None:
            if not 0 <= token < self.size:  # llama.cpp would end the process
                raise IndexError(token)
            named = self._piece(token, special=True)
            data = named if named in self._tags else self._piece(token, special=False)
            self._pieces[token] = data
        return data

    def label(self, token: int) -> str:
        """A token as a person reads it, control tokens too."""
        return self._piece(token, special=True).decode(errors="replace")

    def is_end(self, token: int) -> bool:
        """Whether the token is one of the model's end-of-generation tokens."""
        return bool(ll.llama_vocab_is_eog(self.pointer, token))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end an answer: a look at each of the vocabulary."""
        return tuple(token for token in range(self.size) if self.is_end(token))

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        size = len(data) + 8
        tokens = (ll.llama_token * size)()
        n = ll.llama_tokenize(self.pointer, data, len(data), tokens, size, False, True)
        if n < 0:
            raise BackendError(f"the tokenizer failed on {len(data)} bytes")
        return tokens[:n]

    def _piece(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        n = ll.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = ll.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def _text(self, token: int) -> str:
        return self._piece(token, special=True).decode(errors="replace") if token >= 0 else ""
