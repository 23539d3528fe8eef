"""Lines for a person that end between words where a terminal is narrow. What a program reads is never broken."""

from __future__ import annotations

import os
import re
from typing import TextIO

from rich.cells import cell_len

LEAST = 24  # columns that a text has at least: beside a wide indent it would be a column of single words
# A word, or what stands in backquotes with what it leans on: a command is copied whole.
_PIECE = re.compile(r"([^\S\n]*)((?:[^\s`]|`[^`\n]*`|`)+)")


def wrapped(text: str, width: int, indent: int = 0) -> str:
    """A text in lines of at most `width` columns, all but the first behind `indent` spaces. A piece that is longer has
    lines of its own, and the terminal breaks it."""
    if indent + LEAST > width:
        indent = min(2, indent)
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        for gap, piece in _PIECE.findall(part):
            if line.strip() and cell_len(line + gap + piece) > width:
                lines.append(line)
                line, gap = " " * indent, ""
            line += gap + piece
        lines.append(line)
    return "\n".join(lines)


def fitted(text: str, stream: TextIO, indent: int = 0) -> str:
    """The same, for a terminal; as it is for anything else."""
    if not stream.isatty():
        return text
    try:
        return wrapped(text, os.get_terminal_size(stream.fileno()).columns or 80, indent)
    except (OSError, ValueError):
        return text
