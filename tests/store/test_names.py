"""Names of files that come and go stay in no table of Python's: pathlib interns them, and Python 3.12 keeps those."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from node.core.log import Entry
from node.core.snapshot import Block, Header
from node.engine.shelf import Shelf
from node.store import Blocks
from node.store.files import LogFiles
from node.types import Version


def park(folder: Path) -> None:
    shelf = Shelf(folder, 1 << 20)
    for _ in range(3):
        copy = shelf.put(np.zeros(100, dtype=np.uint8))
        shelf.wait()
        assert shelf.get(copy) is not None
        shelf.drop(copy)
    shelf.close()
    assert not list(folder.iterdir())


def snapshots(folder: Path) -> None:
    held = Blocks(folder, 1 << 20)
    for n in range(1, 4):
        key = bytes([n]) * 16
        held.put(key, bytes(64))
        block = Block(key, 0, 0, 64, 64, bytes(16))
        held.save(Header("t", Version(0, n, "n"), "fp", bytes(16), tuple(range(64)), (64,), (block,)))
        assert held.header("t")
        assert held.get(key)
        held.forget("t")
    assert not held.bytes


def logs(folder: Path) -> None:
    files = LogFiles(folder)
    for topic in "abc":
        one, two = Entry(Version(0, 1, "n")), Entry(Version(0, 2, "n"), Version(0, 1, "n"))
        files.append(topic, [one], [one])
        files.append(topic, [two], [one, two])
        assert len(files.read(topic)) == 2
        assert files.written(topic)
        files.remove(topic)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("use", [park, snapshots, logs])
def test_no_name_of_a_file_is_interned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], None]
) -> None:
    use(tmp_path / "before")  # what is imported as it is first used is not meant, nor are folders
    interned: list[str] = []
    intern = sys.intern

    def note(text: str) -> str:
        interned.append(text)
        return intern(text)

    (tmp_path / "now").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "intern", note)
        assert Path("this/is-noted").name == "is-noted"
        use(tmp_path / "now")
    assert "is-noted" in interned, "pathlib interns in another way: find out which"
    assert not [name for name in interned if name.endswith((".kv", ".head", ".jsonl", ".new")) and "*" not in name]
