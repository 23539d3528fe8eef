"""The child process in which llama.cpp's RPC server runs, for one borrower."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
from pathlib import Path

from node.errors import BackendError

START_S = 30.0  # Python and llama.cpp are loaded in a second; more where the disk is slow
STOP_S = 5.0
CHUNK = 512 << 10  # what is read at once: larger ones were no faster
_PATH = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
_MOST_SAID = 4096
_LAST_WORDS = re.compile(r"GGML_ASSERT\(.*|GGML_ABORT.*|.*(?:[Ff]ailed|[Ee]rror|out of bounds).*")


class Server:
    """A running server: what is written to `writer` is llama.cpp's RPC protocol; its answers come from `reader`."""

    def __init__(
        self, child: asyncio.subprocess.Process, control: socket.socket, said: bytearray, talk: asyncio.Task[None]
    ) -> None:
        self._child = child
        self._control = control
        self._said = said
        self._talk = talk
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    @classmethod
    async def start(cls, lent: int, threads: int) -> Server:
        """A server that may allocate `lent` bytes. Raises BackendError."""
        ours, theirs = socket.socketpair()
        with theirs:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the user's working directory is no place to import from
                "-m",
                "node.engine.llamacpp.lend",
                *(str(n) for n in (theirs.fileno(), lent, threads)),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_PATH), "GGML_NO_BACKTRACE": "1"},
            )
        said = bytearray()
        assert child.stderr is not None
        server = cls(child, ours, said, asyncio.create_task(_listen(child.stderr, said)))
        try:
            await server._connect()
        except BaseException:
            await server.stop()
            raise
        return server

    async def _connect(self) -> None:
        self._control.settimeout(START_S)
        files: list[int] = []
        with contextlib.suppress(OSError):
            _, files, _, _ = await asyncio.to_thread(socket.recv_fds, self._control, 1, 1)
        if not files:
            await asyncio.wait([self._talk], timeout=STOP_S)  # what it said may still be on its way
            raise BackendError(f"llama.cpp's RPC server did not start{self.last_words}")
        self.reader, self.writer = await asyncio.open_connection(sock=socket.socket(fileno=files[0]), limit=CHUNK)

    @property
    def last_words(self) -> str:
        """What it said when it gave up, as `: …`; empty if it said nothing."""
        words = _LAST_WORDS.findall(self._said.decode(errors="replace"))
        return f": {' '.join(words[-1].split())[:160]}" if words else ""

    async def stop(self) -> None:
        """End the process; its memory is free then."""
        if hasattr(self, "writer"):
            self.writer.close()
        self._control.close()
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._child.wait(), STOP_S)
        self._talk.cancel()


async def _listen(stderr: asyncio.StreamReader, said: bytearray) -> None:
    """Keep the end of what it says."""
    while data := await stderr.read(_MOST_SAID):
        said += data
        del said[:-_MOST_SAID]
