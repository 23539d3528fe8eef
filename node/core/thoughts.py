"""What a model thinks before it answers: `<think>…</think>` at the beginning of its text.

DeepSeek-R1, Qwen3 and many others were trained so; what others write is told so (`node.core.formats`). A text says by
itself whether it has a thought: where a model's template opens one in the prompt, the node that writes the text puts
the opening tag before it (`opened`). So nothing else has to travel with a candidate, and nodes that know nothing of
thoughts send and keep them as text.
"""

from __future__ import annotations

OPENS, CLOSES = "<think>", "</think>"


def split(text: str) -> tuple[str, str]:
    """The thought and the answer. A thought that does not end has no answer after it; one that was opened in a prompt
    by a node or a server that did not say so ends with its closing tag."""
    body = text.lstrip()
    if body.startswith(OPENS):
        thought, _, answer = body.removeprefix(OPENS).partition(CLOSES)
    else:
        thought, closed, answer = text.rpartition(CLOSES)
        if not closed:
            return "", text
    return thought.strip(), answer.lstrip()


def answer(text: str) -> str:
    """What a text says after its thought: what candidates agree or disagree on."""
    return split(text)[1]


def joined(thought: str, said: str) -> str:
    """A text of which `split` makes these again."""
    return f"{OPENS}\n{thought}\n{CLOSES}\n\n{said}" if thought else said


def opened(tail: str) -> str:
    """The end of a prompt from the tag on with which it opens a thought; empty if it opens none."""
    _, tag, rest = tail.rpartition(OPENS)
    return f"{tag}{rest}" if tag and not rest.strip() else ""


class Splitter:
    """Splits a text while it is written, as `split` does at its end, but for a thought whose beginning is nowhere."""

    def __init__(self) -> None:
        self._held = ""
        self._is_begun = self._is_thinking = False
        self._skips = False  # white space, until something else comes

    def feed(self, text: str) -> tuple[str, str]:
        """What has become certain: more of the thought, and more of the answer."""
        if self._is_begun and not self._is_thinking and not self._skips:
            return "", text
        self._held += text
        if not self._is_begun:
            body = self._held.lstrip()
            if len(body) < len(OPENS) and OPENS.startswith(body):
                return "", ""
            self._is_begun = True
            self._is_thinking = self._skips = body.startswith(OPENS)
            if self._is_thinking:
                self._held = body.removeprefix(OPENS)
        if not self._is_thinking:
            return "", self._taken(len(self._held))
        thought, closed, rest = self._held.partition(CLOSES)
        if not closed:
            return self._taken(len(thought[: len(thought) - overlap(thought, CLOSES)].rstrip())), ""
        said = self._taken(len(thought.rstrip()))
        self._held, self._is_thinking, self._skips = rest, False, True
        return said, self._taken(len(rest))

    def finish(self) -> tuple[str, str]:
        """What was held back, when no more text comes."""
        held = self._taken(len(self._held))
        return (held.rstrip(), "") if self._is_thinking else ("", held)

    def _taken(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        if self._skips:
            taken = taken.lstrip()
            self._skips = not taken
        return taken


def overlap(text: str, mark: str) -> int:
    """Length of the longest ending that may be the beginning of a mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
