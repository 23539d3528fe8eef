"""How far something long is: a bar on a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TextIO

from rich.live import Live
from rich.text import Text

from node.cli import render

BAR_WIDTH = 24
# What is over before that needs no bar: it would only flicker.
SHOWN_AFTER_S = 0.5
# Lines that stay, as in the log of a service, come seldom.
PLAIN_EVERY_S = 5.0


class Progress:
    """Told of one thing after the other, how much of it is done (0..1). May be called from any thread."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._what = ""
        self._began = self._said = 0.0

    def __call__(self, what: str, share: float) -> None:
        """So much of it is done."""
        with self._lock:
            now = self._clock()
            if what != self._what:
                self._end()
                self._what, self._began, self._said = what, now, now
            if share >= 1:
                self._end()
            elif self._stream.isatty():
                if now - self._began >= SHOWN_AFTER_S:
                    self._draw(share)
            elif now - self._said >= PLAIN_EVERY_S:
                self._said = now
                print(f"{render.one_line(what, 100)}: {share:.0%}", file=self._stream, flush=True)

    def end(self) -> None:
        """Nothing more comes; the bar goes away."""
        with self._lock:
            self._end()
            self._what = ""

    def _draw(self, share: float) -> None:
        if self._live is None:
            to = render.console(self._stream)
            self._live = Live(console=to, transient=True, auto_refresh=False, redirect_stdout=False)
            self._live.start()
        text = Text.assemble(f"{render.one_line(self._what, 60)} ", bar(share), f" {share:4.0%}")
        text.no_wrap, text.overflow = True, "ellipsis"
        self._live.update(text, refresh=True)

    def _end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def bar(share: float, width: int = BAR_WIDTH) -> Text:
    """A bar, so much of it full."""
    full = round(max(0.0, min(share, 1.0)) * width)
    return Text.assemble(("█" * full, "green"), ("░" * (width - full), "dim"))
