"""Record the README's session: three terminals, real processes, what they print. Writes session.svg and session.txt.

    python scripts/readme/record.py ["a question"]

Each program runs on a pseudo-terminal, so it prints what a person would see. All nodes stay on loopback, or on the
addresses of CONCLAVE_INTERFACE (with one of a network the banner has the line for another machine).
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
WIDTH = 108
QUESTION = "A machine makes 28 nuts an hour for 7 hours a day, on 3 days. 45 are broken. How many good nuts are there?"


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.output = b""
        self._main, side = pty.openpty()
        columns = {"COLUMNS": str(WIDTH - 4), "LINES": "50", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**env, **columns}, stdin=side, stdout=side, stderr=side, start_new_session=True
        )
        os.close(side)

    def read(self, seconds: float, until: bytes = b"") -> None:
        """Collect output for so long, or until a text appears or the program ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until and until in self.output):
            if select.select([self._main], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self._main, 65536)
                except OSError:  # the program has ended
                    return

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.read(20)
        self.process.wait(20)
        with contextlib.suppress(OSError):
            os.close(self._main)


def shown(raw: bytes) -> Text:
    """What is left on the screen: no live line that was drawn over, and neither the token nor this folder."""
    text = raw.decode(errors="replace").replace("\r\n", "\n")
    text = re.sub(r"clv1-[\w-]+", "clv1-…", text)
    text = text.replace(str(ROOT), "~/conclave")
    text = re.sub(r"\x1b\[\?25[lh]", "", text)
    lines: list[str] = []
    for line in text.split("\n"):
        # "\r\x1b[2K" begins a line anew, "\x1b[1A\x1b[2K" takes the one above away.
        while "\x1b[1A\x1b[2K" in line:
            line = line.replace("\x1b[1A\x1b[2K", "", 1)
            if lines:
                lines.pop()
        lines.append(line.rsplit("\x1b[2K", 1)[-1].rsplit("\r", 1)[-1])
    return Text.from_ansi("\n".join(lines).strip("\n"))


def main() -> None:
    question = sys.argv[1] if len(sys.argv) > 1 else QUESTION
    python = [sys.executable, "-m", "node"]
    with tempfile.TemporaryDirectory() as home:
        where = os.environ.get("CONCLAVE_INTERFACE", "127.0.0.1")
        env = {**os.environ, "CONCLAVE_HOME": home, "CONCLAVE_INTERFACE": where, "PYTHONUNBUFFERED": "1"}
        first = Terminal([sys.executable, "scripts/first_run.py"], env)
        first.read(60, b"On another machine:")
        first.read(2)
        second = Terminal([*python, "--join", "auto"], env)
        second.read(30, b"stops the node")
        first.read(2)
        third = Terminal([*python, "ask", question, "--votes"], env)
        third.read(60)
        for terminal in (third, second, first):
            terminal.stop()
        ran = [
            ("make run", first),
            ("python -m node --join auto", second),
            (f'python -m node ask "{question}" --votes', third),
        ]
        console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
        panels = []
        plain = []
        for number, (command, terminal) in enumerate(ran, 1):
            output = shown(terminal.output)
            panels.append(Panel(Group(Text(f"$ {command}", "bold"), output), title=f"terminal {number}"))
            plain.append(f"# terminal {number}\n$ {command}\n{output.plain}\n")
        console.print(*panels)
        console.save_svg(str(HERE / "session.svg"), title="Conclave")
        (HERE / "session.txt").write_text("\n".join(plain))
        print("\n".join(plain))


if __name__ == "__main__":
    main()
