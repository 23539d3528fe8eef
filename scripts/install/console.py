"""What set-up shows, and the programs it runs."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from .paths import held

NINJA_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")


class SetupError(Exception):
    """Set-up cannot go on; the text is one line: what, why, what to do."""


class Stopped(BaseException):
    """A signal asked set-up to end. Not an Exception, so that only the clean-up code sees it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: object) -> None:
    # One signal is enough: a second one must not interrupt the clean-up.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def watch_signals() -> None:
    """Turn ^C, kill and a closed terminal into `Stopped`."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop)


class Progress:
    """One line that is rewritten on a terminal; a plain line each 10 % when the output goes elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.tty = sys.stdout.isatty()
        self.detail = ""
        self.fraction: float | None = None
        self.told = -1
        if not self.tty:
            print(f"{title} ...", flush=True)

    def tick(self) -> None:
        """Redraw, so that the clock moves while nothing else does."""
        if not self.tty:
            return
        seconds = int(time.monotonic() - self.started)
        bar = ""
        if self.fraction is not None:
            full = int(self.fraction * 24)
            bar = f" [{'#' * full}{'.' * (24 - full)}] {self.fraction:4.0%}"
        room = os.get_terminal_size(sys.stdout.fileno()).columns or 80
        line = f"{self.title}{bar} {seconds // 60}:{seconds % 60:02d} {self.detail}"
        print(f"\r\x1b[K{line[: room - 1]}", end="", flush=True)

    def step(self, done: int, total: int) -> None:
        """So many steps of so many are done."""
        self.fraction = done / total
        tenth = done * 10 // total
        if not self.tty and tenth > self.told:
            self.told = tenth
            print(f"{self.title}: {done}/{total} ({self.fraction:.0%}, {self.seconds():.0f} s)", flush=True)
        self.tick()

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def clear(self) -> None:
        """Take the line away: something else is to be printed."""
        if self.tty:
            print("\r\x1b[K", end="", flush=True)

    def done(self, text: str) -> None:
        """Replace the line by its result."""
        self.clear()
        print(f"{text} ({self.seconds():.0f} s)", flush=True)


@contextlib.contextmanager
def _child(argv: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process in its own group; whatever ends the block also ends the whole group (a compiler must not go on)."""
    child = subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=tuple(held),
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def run(
    argv: list[str], env: dict[str, str], log: Path, progress: Progress, on_line: Callable[[str], None] | None = None
) -> int:
    """Run a program with its output in a log file, keeping the progress line alive; return its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: queue.Queue[str | None] = queue.Queue()

    def read(output: IO[str]) -> None:
        with output:
            for line in output:
                lines.put(line)
        lines.put(None)

    reader: threading.Thread | None = None
    try:
        with log.open("w") as out, _child(argv, env) as child:
            assert child.stdout is not None
            reader = threading.Thread(target=read, args=(child.stdout,), daemon=True)
            reader.start()
            out.write(f"$ {' '.join(argv)}\n")
            while True:
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    progress.tick()
                    continue
                if line is None:
                    return child.wait()
                out.write(line)
                out.flush()
                if on_line:
                    on_line(line)
    finally:
        if reader:
            reader.join(timeout=5)  # the whole group has ended, so its output has too


_CAUSES = (
    ("No space left on device", "the disk is full: free some space, then run it again"),
    (
        r"NewConnectionError|Temporary failure in name resolution|Network is unreachable|Failed to establish"
        r"|ConnectTimeout|ProxyError|nodename nor servname|Connection refused",
        "the Python package index cannot be reached: check the network or the proxy settings, then run it again",
    ),
    (
        r"Killed signal terminated program|fatal error: Killed",
        "the compiler ran out of memory: run it again with CMAKE_BUILD_PARALLEL_LEVEL=1",
    ),
    (r"No CMAKE_CX*_COMPILER|CMAKE_C(XX)?_COMPILER not set", "no C++ compiler works here"),
)


def explain(what: str, log: Path) -> SetupError:
    """The error for a failed program: its cause if we know it, else its own last words, and where the log is."""
    text = log.read_text(errors="replace")
    for pattern, cause in _CAUSES:
        if re.search(pattern, text):
            return SetupError(f"{what}: {cause} (log: {log})")
    said = [line.strip() for line in text.splitlines() if re.match(r"\s*(ERROR|error)\b|.*\b(error|Error):", line)]
    last = said[-1] if said else (text.strip().splitlines() or ["no output"])[-1]
    return SetupError(f"{what}: {last[:200]} (log: {log})")
