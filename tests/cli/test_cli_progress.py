"""Bars: on a terminal after a moment, elsewhere a line now and then, and nothing for what is soon over."""

from __future__ import annotations

import io
import re

import pytest

from node.cli.progress import PLAIN_EVERY_S, SHOWN_AFTER_S, Progress, bar

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO, *steps: tuple[float, str, float]) -> str:
    clock = Clock()
    progress = Progress(stream, clock)
    for clock.now, what, share in steps:
        progress(what, share)
    progress.end()
    return stream.getvalue()


def test_lines_come_seldom() -> None:
    every = PLAIN_EVERY_S
    steps = [(i * every / 10, "loading m", i / 40) for i in range(41)]
    assert told(io.StringIO(), *steps) == "loading m: 25%\nloading m: 50%\nloading m: 75%\n"


def test_what_is_soon_over_is_not_said() -> None:
    soon = [(0.0, "loading m", 0.0), (SHOWN_AFTER_S / 2, "loading m", 0.5), (SHOWN_AFTER_S * 0.9, "loading m", 1.0)]
    assert told(io.StringIO(), *soon) == told(Terminal(), *soon) == ""


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    steps = [(0.0, "fetching a", 0.0), (1.0, "fetching a", 0.5), (2.0, "fetching a\x1b[2J", 0.75), (9.0, "x", 1.0)]
    seen = told(Terminal(), *steps[:2])
    assert f"fetching a {bar(0.5).plain}  50%" in ESCAPE.sub("", seen)
    assert seen.rstrip().endswith("\x1b[2K"), "the line is cleared"
    assert "\x1b[2J" not in told(Terminal(), *steps, (3.0, "fetching a\x1b[2J", 0.8))


def test_bars() -> None:
    assert [bar(s, 4).plain for s in (-1, 0, 0.5, 1, 2)] == ["░░░░", "░░░░", "██░░", "████", "████"]
