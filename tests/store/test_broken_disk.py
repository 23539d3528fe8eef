"""A disk that fails while a node runs: turns go on in memory, what waits is written when the disk is back, nothing that
is on it is begun anew; and what is meant to be on the disk is asked of the drive, not of its cache."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from node import disk as disk_module
from node.core.log import NOTHING, Entry, Taken
from node.errors import NotReady
from node.store import Store, topics
from node.store import files as files_module
from node.types import Message, Version

ROOT = Path(__file__).resolve().parents[2]


def entry(turn: int, *, anew: bool = False) -> Entry:
    parent = Version(0, turn - 1, "n") if turn > 1 and not anew else NOTHING
    return Entry(Version(0, turn, "n"), parent, (Message("user", "hi"), Message("assistant", "yes")), anew=anew)


def only(folder: Path) -> Path:
    """The one file there."""
    [path] = folder.iterdir()
    return path


def loaded(directory: Path) -> Store:
    store = Store(directory)
    store.load()
    return store


class Disk:
    """Files that take nothing while they are broken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.broken = False
        for name in names:
            monkeypatch.setattr(files_module, name, self._unless_broken(getattr(files_module, name)))

    def _unless_broken(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            if self.broken:
                raise OSError(errno.EIO, "Input/output error")
            return real(*args)

        return call


async def test_what_waited_is_written_without_another_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, disk = loaded(tmp_path), Disk(monkeypatch, "_write")
    await store.add("t", entry(1))
    disk.broken = True
    await store.add("t", entry(2))
    await store.add("u", entry(1))
    await store.retry()
    assert store.unwritten == 2
    assert "conversations cannot be written (Input/output error)" in store.problem
    disk.broken = False
    await store.retry()
    assert (store.unwritten, store.problems) == (0, [])
    after = loaded(tmp_path)
    assert [(t.topic, t.version.turn) for t in after.list()] == [("t", 2), ("u", 1)]


async def test_what_waited_is_tried_once_more_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, disk = loaded(tmp_path), Disk(monkeypatch, "_write")
    disk.broken = True
    await store.add("t", entry(1))
    disk.broken = False
    store.close()
    assert loaded(tmp_path).version("t") == Version(0, 1, "n")


async def test_what_is_lost_at_the_end_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, disk = loaded(tmp_path), Disk(monkeypatch, "_write")
    disk.broken = True
    await store.add("t", entry(1))
    await store.add("t", entry(2))
    store.close()
    assert "2 turns were in memory only, and end with this process" in caplog.text


async def test_what_waits_stays_in_memory_as_long_as_anything_else_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "MAX_TOPICS", 2)
    store, disk = loaded(tmp_path), Disk(monkeypatch, "_write")
    await store.add("t", entry(1))
    await store.add("u", entry(1))
    disk.broken = True
    await store.add("t", entry(2))
    store.log("u")  # the one that was used last, and it is on disk
    await store.add("v", entry(1))
    assert [e.version.turn for e in store.log("t").entries] == [1, 2]
    disk.broken = False
    await store.retry()
    after = loaded(tmp_path)
    assert [(name, len(after.log(name))) for name in ("t", "u", "v")] == [("t", 2), ("u", 1), ("v", 1)]


async def test_a_log_that_the_disk_does_not_give_is_not_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "MAX_TOPICS", 1)
    store, disk = loaded(tmp_path), Disk(monkeypatch, "_open")
    for turn in (1, 2, 3):
        await store.add("t", entry(turn))
    await store.add("u", entry(1))  # so that the other is on disk alone
    disk.broken = True
    for offered in (entry(4), entry(4, anew=True)):
        with pytest.raises(NotReady, match=r"'t' cannot be read from disk \(Input/output error\)"):
            await store.add("t", offered)
    disk.broken = False
    assert (await store.add("t", entry(4))).taken is Taken.HEAD
    assert len(loaded(tmp_path).get("t").messages) == 8


async def test_files_that_cannot_be_written_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a start with a disk that became read-only; a torn tail stays until it can be cut off."""
    store = loaded(tmp_path)
    await store.add("t", entry(1))
    await store.add("t", entry(2))
    path = only(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    real = os.open

    def read_only(name: object, flags: int, *more: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(name, flags, *more)  # type: ignore[arg-type]

    with monkeypatch.context() as broken:
        broken.setattr(os, "open", read_only)
        store = loaded(tmp_path)
        assert store.version("t") == Version(0, 1, "n")
        assert not (await store.add("t", entry(2))).on_disk
    await store.retry()
    assert [e.version.turn for e in loaded(tmp_path).log("t").entries] == [1, 2]


_MOUNTED = """
import asyncio, subprocess, sys
from pathlib import Path
from tests.store.test_broken_disk import entry, loaded

async def main(folder):
    def mount(*options):
        subprocess.run(["mount", *options, folder], check=True)

    mount("-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs")
    store = loaded(Path(folder))
    await store.add("t", entry(1))
    (Path(folder) / "old.new").touch()  # a rewrite that was not finished
    mount("-o", "remount,ro")
    kept = await store.add("t", entry(2))
    assert not kept.on_disk and "Read-only file system" in store.problem, store.problem
    assert len(loaded(Path(folder)).log("t")) == 1, "a start on a disk that is read-only reads it"
    mount("-o", "remount,rw")
    await store.retry()
    assert not store.problem and store.unwritten == 0
    filler = Path(folder) / "filler"
    try:
        filler.write_bytes(bytes(2 << 20))
    except OSError:
        pass
    assert not (await store.add("u", entry(1))).on_disk and "No space left" in store.problem, store.problem
    filler.unlink()
    await store.retry()
    assert [(t.topic, t.version.turn) for t in loaded(Path(folder)).list()] == [("t", 2), ("u", 1)]
    print("as it should be")

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts")
def test_a_real_disk_that_becomes_read_only_and_full(tmp_path: Path) -> None:
    """A small tmpfs in a mount namespace of its own."""
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _MOUNTED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "as it should be", done.stderr


async def test_what_waits_is_no_more_than_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends its whole conversation each turn, for as long as the disk fails."""
    monkeypatch.setattr(topics, "COMPACT_BYTES", 100)
    store, disk = loaded(tmp_path), Disk(monkeypatch, "_write")
    disk.broken = True
    for turn in range(1, 200):
        await store.add("t", replace(entry(turn), anew=True))
    held = store.log("t").entries
    assert len(held) < 50
    assert store.unwritten <= len(held)
    disk.broken = False
    await store.retry()
    assert store.unwritten == 0
    assert loaded(tmp_path).log("t").entries == held


async def test_of_topics_that_wait_the_longest_unused_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(topics, "MAX_TOPICS", 3)
    store, disk = loaded(tmp_path), Disk(monkeypatch, "_write")
    disk.broken = True
    for name in "abcde":
        await store.add(name, entry(1))
    assert store.unwritten == 3
    assert caplog.text.count("turns are lost here") == 2
    disk.broken = False
    await store.retry()
    assert sorted(topic.topic for topic in loaded(tmp_path).list()) == ["c", "d", "e"]


async def test_on_a_mac_the_drive_is_asked_for_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync gives a Mac's drive the bytes and lets it keep them in its own memory; F_FULLFSYNC does not."""
    full, plain = [], []
    monkeypatch.setattr(disk_module, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(
        disk_module,
        "fcntl",
        SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda fd, command: full.append((os.fstat(fd).st_ino, command))),
    )
    monkeypatch.setattr(os, "fsync", lambda fd: plain.append(os.fstat(fd).st_ino))
    store = loaded(tmp_path)
    await store.add("t", entry(1))
    inode = os.stat(only(tmp_path)).st_ino
    made = [(inode, 51), (os.stat(tmp_path).st_ino, 51)]
    assert full == made, "the file, and the folder in which it was given its name"
    await store.add("t", entry(2))
    assert full == [*made, (inode, 51)]
    assert plain == []

    def unknown(fd: int, command: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(disk_module, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=unknown))
    await store.add("t", entry(3))
    assert plain == [inode], "a network file system that does not know it gets the other"
