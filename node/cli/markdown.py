"""An answer on a terminal while it is written: Markdown, each block set as soon as it is complete.

What is complete scrolls away and is never touched again; the block that is being written is drawn anew with each piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments


class Paper:
    """Where an answer is written. `write` is given all of it each time; `finish` ends it, or begins it anew."""

    def __init__(self, to: Console) -> None:
        self._to = to
        self._text = ""
        self._set = 0  # characters of blocks that are complete and printed
        self._live: Live | None = None

    @property
    def is_blank(self) -> bool:
        """Whether nothing was written."""
        return not self._text

    def write(self, text: str) -> None:
        """Show the answer as far as it is written."""
        if not text.startswith(self._text):
            self.stop()
        self._text = text
        if (end := complete(text, self._set)) > self._set:
            self._print(text[self._set : end])
            self._set = end
        if rest := text[self._set :].strip():
            if self._live is None:
                self._live = Live(console=self._to, transient=True, auto_refresh=False, vertical_overflow="ellipsis")
                self._live.start()
            self._live.update(_set(rest), refresh=True)

    def finish(self, text: str) -> None:
        """Print what is missing of the answer."""
        if not text.startswith(self._text):  # rare: what was streamed is not how the answer begins
            self.stop()
        self._print(text[self._set :])
        self._text, self._set = "", 0

    def stop(self) -> None:
        """Leave what is there, and begin on a new line."""
        self._print(self._text[self._set :])
        self._text, self._set = "", 0

    def _print(self, block: str) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if block.strip():
            if self._set:
                self._to.print()
            for line in self._to.render_lines(_set(block), pad=False):
                self._to.print(Segments([*_stripped(line), Segment.line()]), end="")


def complete(text: str, start: int) -> int:
    """Where the last complete block ends, from `start` on: at an empty line that is not inside of fenced code."""
    at = end = start
    fence = ""
    for line in text[start:].splitlines(keepends=True):
        at += len(line)
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~"):
            fence = "" if fence == mark else fence or mark
        elif not line.strip() and line.endswith("\n") and not fence:
            end = at
    return end


def _set(block: str) -> Markdown:
    """A block as Markdown in which a line break is one: models do not write for a paragraph to be filled."""
    fence = False
    lines = []
    for line in block.strip("\n").split("\n"):
        if line.lstrip().startswith(("```", "~~~")):
            fence = not fence
        lines.append(line if fence or not line.strip() else f"{_literal(line)}  ")
    return Markdown("\n".join(lines), code_theme="ansi_dark")


def _literal(line: str) -> str:
    """A line whose stars between letters or digits stay stars: in `28*7=196 and 196*3=588` nothing is stressed."""
    parts = re.split(r"(`[^`]*`)", line)  # code in between is as it is
    return "".join(p if i % 2 else re.sub(r"(?<=\w)\*(?=\w)", r"\\*", p) for i, p in enumerate(parts))


def _stripped(line: Iterable[Segment]) -> list[Segment]:
    """A line without the spaces that fill it up, so that a copy of it is what was said."""
    kept = list(line)
    while kept and not kept[-1].text.strip() and (kept[-1].style is None or kept[-1].style.bgcolor is None):
        kept.pop()
    if kept and (kept[-1].style is None or kept[-1].style.bgcolor is None):
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    return kept
