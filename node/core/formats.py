"""In what format a model writes what it thinks and which calls it asks for, by its chat template.

Everything else knows one: `<think>…</think>` first (`node.core.thoughts`), and `<tool_call>…</tool_call>`
(`node.core.tools`), as Qwen3 and many others write it. What is written in another format is told in this one by the
node whose model writes it, so that nothing else has to travel with a text.

Which template is of which format is as llama.cpp finds out (common/chat.cpp, common_chat_try_specialized_template).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from node.core import harmony, mistral, thoughts


class Format(StrEnum):
    """How a model writes."""

    PLAIN = "plain"  # in the one that everything else knows, or in none
    HARMONY = "harmony"  # gpt-oss
    MISTRAL = "mistral"  # also Magistral, Ministral and Devstral


class Reader(Protocol):
    """Tells a text in the format that everything knows while it is written."""

    def feed(self, text: str) -> str:
        """What has become certain."""

    def finish(self) -> str:
        """What was held back, when no more text comes."""


# Some files call the marks of a format control tokens, which are no text: these are.
_TAGS = {
    Format.PLAIN: (thoughts.OPENS, thoughts.CLOSES),
    Format.HARMONY: harmony.MARKS,
    Format.MISTRAL: (thoughts.OPENS, thoughts.CLOSES, *mistral.MARKS),
}


def of(template: str) -> Format:
    """The format of the models that have a chat template."""
    if harmony.CHANNEL in template:
        return Format.HARMONY
    if mistral.CALLS in template or mistral.OPENS in template:
        return Format.MISTRAL
    return Format.PLAIN


def thinks(template: str) -> bool:
    """Whether the models that have a chat template may think before they answer."""
    return any(mark in template for mark in (thoughts.OPENS, thoughts.CLOSES, mistral.OPENS, harmony.CHANNEL))


def tags(format: Format) -> frozenset[bytes]:
    """The control tokens of a format that belong to what a model says."""
    return frozenset(tag.encode() for tag in _TAGS[format])


def opened(format: Format, tail: str) -> str:
    """The end of a prompt that belongs to what the model writes after it, in its format: from the tag on that opens a
    thought, or a message's header."""
    if format is Format.HARMONY:
        return harmony.opened(tail)
    return (mistral.opened(tail) if format is Format.MISTRAL else "") or thoughts.opened(tail)


def reader(format: Format) -> Reader | None:
    """A reader of one text; None where there is nothing to be told otherwise."""
    if format is Format.HARMONY:
        return harmony.Reader()
    return mistral.Reader() if format is Format.MISTRAL else None


def whole(format: Format, text: str) -> str:
    """A text that is complete, in the format that everything knows."""
    found = reader(format)
    return text if found is None else found.feed(text) + found.finish()
