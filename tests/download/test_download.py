"""A model comes from peers: from all at once, on after a break, and never from one that lies."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import shutil
import signal
import stat
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sources import CHOICE, FILE, MODEL, NAME, PIECES, TOKEN, Source, source

from node.api import models as api
from node.core.manifest import PIECE
from node.download import Arrived, Choice, download, fetch
from node.errors import BackendError, NotReady, PeerUnavailable
from node.models import shared, split
from node.models.partial import Partial


def choice(*sources: Source) -> Choice:
    return Choice(NAME, CHOICE.files, tuple(s.id for s in sources))


class Told(Arrived):
    """What a person would have seen."""

    def __init__(self, at: Callable[[Arrived], None] = lambda _: None) -> None:
        self.lines: list[str] = []
        super().__init__(say=self.lines.append, tell=at)


async def bring(folder: Path, *sources: Source, told: Told | None = None) -> tuple[Path, Told]:
    told = told or Told()
    return await fetch(choice(*sources), {s.id: s.peer for s in sources}, folder, told), told


def written(folder: Path) -> int:
    """Bytes of what is on its way that are on the disk."""
    return sum(p.stat().st_blocks * 512 for p in folder.glob("*.partial"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRIES_S", (0.05, 0.05))
    monkeypatch.setattr(download, "BUSY_S", 0.05)


async def test_from_several_at_once(tmp_path: Path) -> None:
    async with source(tmp_path, "a") as a, source(tmp_path, "b") as b:
        path, told = await bring(tmp_path / "here", a, b)
    assert path == tmp_path / "here" / FILE
    assert path.read_bytes() == MODEL
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "here") == [FILE]
    assert told.done == told.total == len(MODEL)
    assert set(told.by_source) == {a.id, b.id}
    assert set(a.models.fetched) | set(b.models.fetched) == set(range(PIECES))


LIES = {
    "bytes": "a piece has other bytes than it described",
    "endless": "a piece is longer than it described",
    "nothing": "it sends nothing",
    "short": "a piece is shorter than it described",
    "sizes": "it describes other files than it listed",
    "hashes": "bytes of hashes",
    "names": "is no name of a model's file",
    "another file": "is another file than that of 2 others",
}
ALONE = {"another file": "no model of this hash was described here"}


@pytest.mark.parametrize("lie", LIES)
async def test_who_lies_is_left_out_and_named(tmp_path: Path, lie: str) -> None:
    async with source(tmp_path, "a") as a, source(tmp_path, "b") as b, source(tmp_path, "c") as c:
        b.models.lie = lie
        path, told = await bring(tmp_path / "here", a, b, c)
        assert path.read_bytes() == MODEL
        assert b.id not in told.by_source
        (line,) = told.lines
        assert line.startswith(f"node {b.id} is left out: ")
        assert LIES[lie] in line
        with pytest.raises(PeerUnavailable, match=rf"{b.id}.*{ALONE.get(lie, LIES[lie])}"):
            await bring(tmp_path / "alone", b)
        assert not list((tmp_path / "alone").glob("*.gguf"))
        assert not (tmp_path / "evil.gguf").exists()


async def test_what_is_no_model_is_removed_and_its_giver_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with source(tmp_path, "a", data=b"x" * len(MODEL)) as a:
        with pytest.raises(PeerUnavailable, match=f"{NAME} is no sound model here"):
            await bring(tmp_path / "here", a)
        monkeypatch.setattr(shared, "split", SimpleNamespace(read=lambda _: None, parts=split.parts))
        with pytest.raises(BackendError, match=rf"what {a.id} gave is no model: .* does not begin with GGUF; it was"):
            await bring(tmp_path / "here", a)
    assert os.listdir(tmp_path / "here") == []


async def test_one_that_dies_is_replaced(tmp_path: Path) -> None:
    async with source(tmp_path, "a") as a, source(tmp_path, "b") as b:
        a.models.hold_after = 1
        going = asyncio.create_task(bring(tmp_path / "here", a, b))
        async with asyncio.timeout(60):
            while len(a.models.fetched) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await a.server.stop(None)
        path, told = await going
    assert path.read_bytes() == MODEL
    assert told.by_source[b.id] >= len(MODEL) - 2 * PIECE


async def test_one_that_freezes_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with source(tmp_path, "a") as a, source(tmp_path, "b") as b:
        a.models.hold_after = 0
        async with asyncio.timeout(download.STALL_S / 2):
            path, told = await bring(tmp_path / "here", a, b)
        a.models.go.set()
    assert path.read_bytes() == MODEL
    assert set(told.by_source) == {b.id}


async def test_a_busy_node_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MOST_FETCHES", 1)
    async with source(tmp_path, "a") as a:
        path, told = await bring(tmp_path / "here", a)
    assert path.read_bytes() == MODEL
    assert not told.lines


async def test_it_goes_on_after_a_break(tmp_path: Path) -> None:
    async with source(tmp_path, "a") as a:
        a.models.hold_after = 3
        going = asyncio.create_task(bring(tmp_path / "here", a))
        async with asyncio.timeout(60):
            while written(tmp_path / "here") < 3 * PIECE:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await a.server.stop(None)
        with pytest.raises(PeerUnavailable, match=r"is here to \d\d %, and no node gives the rest .*it resumes"):
            await going
    [part] = (tmp_path / "here").iterdir()
    assert part.name.endswith(".partial")
    # A torn piece, as a crash leaves it, is found by its hash.
    with part.open("r+b") as file:
        file.write(b"torn")
    async with source(tmp_path, "b") as b:
        path, told = await bring(tmp_path / "here", b)
        assert path.read_bytes() == MODEL
        assert told.resumed >= PIECE
        assert 0 in b.models.fetched
        assert len(b.models.fetched) < PIECES


async def test_several_that_fail_together_fail_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to asyncio, which would write a traceback for each."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))

    async def fails(*_: Any) -> None:
        await asyncio.sleep(0)
        raise NotReady("the disk is full")

    monkeypatch.setattr(download._Download, "_bring", fails)
    async with source(tmp_path, "a") as a:
        with pytest.raises(NotReady, match="the disk is full"):
            await bring(tmp_path / "here", a)
    gc.collect()
    assert not complaints


async def test_a_file_that_changes_is_not_mixed(tmp_path: Path) -> None:
    async with source(tmp_path, "a") as a:
        a.models.hold_after = 2
        going = asyncio.create_task(bring(tmp_path / "here", a))
        async with asyncio.timeout(60):
            while len(a.models.fetched) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        a.file.write_bytes(MODEL[::-1])
        a.models.go.set()
        with pytest.raises(PeerUnavailable, match=f"{FILE} has changed since it was described"):
            await going


async def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    async with source(tmp_path, "a") as a:
        with monkeypatch.context() as m:
            m.setattr(shutil, "disk_usage", lambda _: usage(1, 1, len(MODEL)))
            with pytest.raises(NotReady, match=r"needs 0\.02 GB more and the disk of .* has 0\.02 GB free: free some"):
                await bring(tmp_path / "here", a)
        assert not a.models.fetched, "it is seen before anything is sent"

        def full(*_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as m:
            m.setattr(os, "pwritev", full)
            with pytest.raises(NotReady, match=r"No space left on device.*pull again"):
                await bring(tmp_path / "here", a)
        whole = os.pwritev

        def some(fd: int, parts: list[memoryview], at: int) -> int:
            """A system that takes less than it is given, in the middle of a part."""
            return whole(fd, [parts[0][:700_001]], at)

        with monkeypatch.context() as m:
            m.setattr(os, "pwritev", some)
            path, _ = await bring(tmp_path / "here", a)
        assert path.read_bytes() == MODEL


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    async with source(tmp_path, "a") as a:
        manifest = await asyncio.to_thread(a.models._shared.describe, NAME)
        busy = pytest.raises(NotReady, match="is being fetched by another process")
        with Partial(tmp_path / "here", manifest), busy:
            await bring(tmp_path / "here", a)


async def test_the_command_after_kill_9(tmp_path: Path) -> None:
    """`models pull` in a process of its own, which is killed in the middle and goes on."""
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True)
    (home / "config" / "token").write_text(TOKEN)
    async with source(tmp_path, "a") as a, source(tmp_path, "b") as b:
        a.mesh.nodes = [*a.mesh.nodes, *b.mesh.nodes]  # the address of one is enough
        for each in (a, b):
            each.models.hold_after = 2
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CONCLAVE_")}
        environ |= {
            "CONCLAVE_HOME": str(home),
            "CONCLAVE_JOIN": a.address,
            "HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        }

        async def start(*words: str) -> asyncio.subprocess.Process:
            pipe = asyncio.subprocess.PIPE
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "node", "models", *words, env=environ, stdout=pipe, stderr=pipe
            )

        child = await start("pull", "tiny")
        async with asyncio.timeout(60):
            while written(home / "data" / "models") < 2 * PIECE:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        await child.communicate()
        for each in (a, b):
            each.models.go.set()
            each.models.fetched.clear()
            each.models.hold_after = 1 << 30
        child = await start("pull", "tiny")
        out, err = await child.communicate()
        assert child.returncode == 0, err
        path = home / "data" / "models" / FILE
        assert out.decode().strip() == str(path)
        assert path.read_bytes() == MODEL
        assert f"from {a.id}, {b.id}" in err.decode()
        assert "it came from " in err.decode()
        assert len(set(a.models.fetched) | set(b.models.fetched)) < PIECES
        # Who has it is listed, and what only others have.
        b.models.name = "other-Q4_K_M.gguf"
        child = await start("list", "--json")
        out, err = await child.communicate()
        listed = json.loads(out)
        assert {m["name"]: m["nodes"] for m in listed["here"]}[NAME] == [a.id, b.id], "by name and size"
        os.unlink(path)
        child = await start("list")
        out, err = await child.communicate()
        assert "on other nodes (models pull NAME" in out.decode()
        assert f"{a.id}, {b.id}" in out.decode()
        # What the mesh does not have comes from the hub, which is away here.
        child = await start("pull", "Qwen2.5-0.5B-Instruct")
        _, err = await child.communicate()
        assert child.returncode == 1
        assert b"HF_HUB_OFFLINE is set" in err
