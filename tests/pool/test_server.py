"""The process that serves llama.cpp's RPC: no port, a limit, and no life of its own."""

import asyncio
import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from node.engine import llamacpp
from node.errors import BackendError
from node.pool import server as serving
from node.pool.server import Server

needs_rpc = pytest.mark.skipif(not llamacpp.has_rpc(), reason="llama.cpp without RPC here: `make test-rpc` runs this")
MIB = 1 << 20
# ggml-rpc.cpp: rpc_cmd.
ALLOC, SET, GRAPH, HELLO, MEMORY = 0, 6, 10, 14, 11


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    made = await Server.start(64 * MIB, 1)
    yield made
    await made.stop()


async def call(server: Server, command: int, data: bytes) -> bytes:
    """A command of the protocol and its answer."""
    server.writer.write(struct.pack("<BQ", command, len(data)) + data)
    [size] = struct.unpack("<Q", await asyncio.wait_for(server.reader.readexactly(8), 60))
    return await server.reader.readexactly(size)


async def hello(server: Server) -> None:
    assert (await call(server, HELLO, bytes(24)))[:1] == b"\x07"


def listeners(pid: int) -> list[str]:
    """Inodes of listening TCP sockets that a process holds."""
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(fields[9])
    held = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(fd) if fd.exists() else ""
        if target.startswith("socket:[") and target[8:-1] in listening:
            held.append(target[8:-1])
    return held


@needs_rpc
async def test_it_answers_and_does_not_listen(server: Server) -> None:
    await hello(server)
    assert listeners(server._child.pid) == []
    assert len(await call(server, MEMORY, bytes(4))) == 16


@needs_rpc
async def test_more_than_was_lent_is_not_allocated(server: Server) -> None:
    await hello(server)
    small = await call(server, ALLOC, struct.pack("<IQ", 0, 32 * MIB))
    large = await call(server, ALLOC, struct.pack("<IQ", 0, 1024 * MIB))
    assert struct.unpack("<QQ", small)[0] != 0
    assert struct.unpack("<QQ", large) == (0, 0)
    assert len(await call(server, MEMORY, bytes(4))) == 16  # and it lives


@needs_rpc
@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 4,
        struct.pack("<BQ", HELLO, 24) + bytes(24) + struct.pack("<BQ", SET, 1 << 60),
        struct.pack("<BQ", HELLO, 24) + bytes(24) + struct.pack("<BQ", GRAPH, 12) + b"\0\0\0\0\xff\xff\xff\xff\0\0\0\0",
        struct.pack("<BQ", HELLO, 24) + bytes(24) + struct.pack("<BQ", 99, 0),
    ],
)
async def test_garbage_ends_it_and_nothing_else(server: Server, garbage: bytes) -> None:
    server.writer.write(garbage)
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(server.reader.read(), 60)
    assert await asyncio.wait_for(server._child.wait(), 60) is not None


@needs_rpc
async def test_it_ends_with_its_connection(server: Server) -> None:
    await hello(server)
    server.writer.close()
    assert await asyncio.wait_for(server._child.wait(), 60) == 0


def is_over(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody waits for."""
    try:
        return "Z (" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@needs_rpc
def test_it_ends_with_its_node_however_that_ends() -> None:
    code = (
        "import asyncio\nfrom node.pool.server import Server\n"
        "async def main():\n s = await Server.start(1 << 26, 1)\n print(s._child.pid, flush=True)\n"
        " await asyncio.sleep(60)\nasyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while not is_over(child):
        assert time.monotonic() < until, "the server outlives its node"
        time.sleep(0.02)


async def test_a_server_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "node"
    (broken / "engine" / "llamacpp").mkdir(parents=True)
    for package in (broken, broken / "engine", broken / "engine" / "llamacpp"):
        (package / "__init__.py").touch()
    (broken / "engine" / "llamacpp" / "lend.py").write_text("raise SystemExit('an Error: no such device')")
    monkeypatch.setattr(serving, "_PATH", [str(tmp_path)])
    with pytest.raises(BackendError, match="did not start: an Error: no such device"):
        await Server.start(MIB, 1)
