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
    """A text in lines of at most `width` columns, all but the first behind `indent` spaces. A piece that is longer than
    a line stays where it is, and the terminal breaks it."""
    if indent + LEAST > width:
        indent = min(2, indent)
    out = ""
    for number, part in enumerate(text.split("\n")):
        out += "\n" if number else ""
        column, is_first = 0, True
        for gap, piece in _PIECE.findall(part):
            size = cell_len(piece)
            if not is_first and size + indent <= width < column + cell_len(gap) + size:
                out, column, gap = out + "\n" + " " * indent, indent, ""
            out += gap + piece
            column += cell_len(gap) + size
            if column > width:  # the terminal broke it
                column = column % width or width
            is_first = False
    return out


def fitted(text: str, stream: TextIO, indent: int = 0) -> str:
    """The same, for a terminal; as it is for anything else."""
    if not stream.isatty():
        return text
    try:
        return wrapped(text, os.get_terminal_size(stream.fileno()).columns or 80, indent)
    except (OSError, ValueError):
        return text
