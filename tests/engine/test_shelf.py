"""Copies on disk come back as they were, or not at all."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from node.engine.shelf import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "parked", 1 << 20)
    yield made
    made.close()


def state(size: int = 5000, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


def test_what_is_put_comes_back_before_and_after_it_is_written(shelf: Shelf, tmp_path: Path) -> None:
    copies = [(shelf.put(state(seed=i)), i) for i in range(5)]
    for copy, i in copies:
        np.testing.assert_array_equal(shelf.get(copy), state(seed=i))
    shelf.wait()
    files = list((tmp_path / "parked").iterdir())
    assert len(files) == 5
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in files)
    for copy, i in copies:
        assert copy.state is None
        np.testing.assert_array_equal(shelf.get(copy), state(seed=i))
        shelf.drop(copy)
    shelf.wait()
    assert not list((tmp_path / "parked").iterdir())


@pytest.mark.parametrize("damage", ["flip", "short", "long", "gone", "other"])
def test_a_copy_that_was_tampered_with_is_refused(shelf: Shelf, damage: str) -> None:
    copy, other = shelf.put(state()), shelf.put(state(seed=2))
    shelf.wait()
    data = bytearray(Path(copy.path).read_bytes())
    if damage == "flip":
        data[1234] ^= 1
        Path(copy.path).write_bytes(data)
    elif damage == "short":
        Path(copy.path).write_bytes(data[:-1])
    elif damage == "long":
        Path(copy.path).write_bytes(data + b"x")
    elif damage == "gone":
        Path(copy.path).unlink()
    else:
        os.replace(other.path, copy.path)
    assert shelf.get(copy) is None


def test_a_full_disk_loses_the_copy_and_nothing_else(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        copy = shelf.put(state())
        shelf.wait()
    assert shelf.get(copy) is None
    shelf.drop(copy)
    np.testing.assert_array_equal(shelf.get(shelf.put(state())), state())


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    first = Shelf(tmp_path, 1 << 20)
    first.put(state())
    first.wait()
    assert len(list(tmp_path.iterdir())) == 1
    second = Shelf(tmp_path, 1 << 20)
    assert not list(tmp_path.iterdir())
    second.close()
    first.close()
