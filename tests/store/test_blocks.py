"""Snapshots on disk: equal blocks once, within the budget, and whatever happens to a file costs that snapshot alone."""

import stat
from pathlib import Path

import pytest

from node.core.snapshot import Block, Header
from node.errors import CorruptSnapshot
from node.store import Blocks
from node.store import blocks as blocks_module
from node.types import Version

KB = 1000


def key(n: int) -> bytes:
    return bytes([n]) * 16


def header(topic: str, keys: list[int], turn: int = 1) -> Header:
    made = tuple(Block(key(k), 0, 64 * i, 64, KB, bytes(16)) for i, k in enumerate(keys))
    return Header(topic, Version(0, turn, "n"), "fp", bytes(16), tuple(range(64 * len(keys))), (64,) * len(keys), made)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


def blocks(path: Path, limit: int = 1 << 20) -> Blocks:
    return Blocks(path, limit, Clock())


def save(held: Blocks, topic: str, keys: list[int], turn: int = 1) -> None:
    for k in keys:
        if not held.has(key(k)):
            held.put(key(k), bytes([k]) * KB)
    held.save(header(topic, keys, turn))


def files(path: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in path.rglob("*") if p.is_file()}


def test_what_was_saved_is_there_again_after_a_restart(tmp_path: Path) -> None:
    held = blocks(tmp_path)
    save(held, "a", [1, 2])
    save(held, "b", [1, 3])
    assert len(files(tmp_path)) == 3 + 2, "an equal block is one file"
    again = blocks(tmp_path)
    assert again.topics() == ["a", "b"]
    assert again.header("a") == header("a", [1, 2]).pack()
    assert again.get(key(3)) == bytes([3]) * KB
    assert again.bytes == held.bytes == sum(files(tmp_path).values())
    assert again.version("a") == Version(0, 1, "n")
    for p in tmp_path.rglob("*"):
        assert stat.S_IMODE(p.stat().st_mode) == (0o600 if p.is_file() else 0o700)


def test_a_block_goes_when_nobody_has_it_any_more(tmp_path: Path) -> None:
    held = blocks(tmp_path)
    save(held, "a", [1, 2])
    save(held, "b", [1, 3])
    save(held, "a", [1, 4], turn=2)
    assert not held.has(key(2))
    assert held.has(key(1))
    held.forget("a")
    assert [held.has(key(k)) for k in (1, 3, 4)] == [True, True, False]
    held.forget("b")
    held.forget("b")
    assert (held.bytes, files(tmp_path)) == (0, {})


def test_the_budget_is_kept_and_the_longest_unused_goes(tmp_path: Path) -> None:
    held = blocks(tmp_path, limit=9 * KB)
    for n, topic in enumerate("abc"):
        save(held, topic, [10 * n + 1, 10 * n + 2])
    held.header("a")  # a use
    save(held, "d", [41, 42])
    assert held.topics() == ["a", "c", "d"]
    assert held.bytes == sum(files(tmp_path).values()) <= 9 * KB
    with pytest.raises(CorruptSnapshot):
        save(held, "e", list(range(50, 60)))
    assert "e" not in held.topics(), "what alone is over the budget does not stay"
    assert held.bytes <= 9 * KB
    assert blocks(tmp_path, limit=KB).bytes == 0


def test_blocks_of_a_push_that_broke_off_wait_for_the_next_but_not_for_ever(tmp_path: Path) -> None:
    held = blocks(tmp_path)
    held.put(key(1), b"x" * KB)
    with pytest.raises(CorruptSnapshot):
        held.save(header("a", [1, 2]))
    assert held.has(key(1)), "the next push goes on from here"
    assert not blocks(tmp_path).has(key(1)), "a restart lets go of it"


@pytest.mark.parametrize("what", ["deleted", "a directory", "a link", "huge"])
def test_a_block_that_changed_under_us_is_not_there(tmp_path: Path, what: str) -> None:
    held = blocks(tmp_path)
    save(held, "a", [1])
    path = Path(held._path(key(1)))
    path.unlink()
    if what == "a directory":
        path.mkdir()
    elif what == "a link":
        path.symlink_to("/dev/zero")
    elif what == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    assert held.get(key(1)) is None
    assert not held.has(key(1))


def test_headers_that_cannot_be_used_are_let_go(tmp_path: Path) -> None:
    held = blocks(tmp_path)
    for n, topic in enumerate("abc"):
        save(held, topic, [n + 1])
    Path(held._header_path("a")).write_bytes(b"nonsense")
    Path(held._path(key(2))).unlink()
    assert blocks(tmp_path).topics() == ["c"]
    assert sorted(files(tmp_path).values()) == sorted([KB, len(header("c", [3]).pack())])


def test_what_is_forgotten_while_it_is_read_stays_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = blocks(tmp_path)
    save(held, "a", [1])
    real = blocks_module._read

    def read(path: Path) -> bytes | None:
        data = real(path)
        held.forget("a")  # on another thread
        return data

    with monkeypatch.context() as during:
        during.setattr(blocks_module, "_read", read)
        held.header("a")
    assert (held.topics(), held.bytes) == ([], 0)
    assert files(tmp_path) == {}
    save(held, "a", [1])
    assert held.bytes == sum(files(tmp_path).values())


def test_without_a_budget_nothing_is_touched(tmp_path: Path) -> None:
    held = Blocks(tmp_path / "none", 0)
    assert not held.is_on
    assert held.header("a") is None
    assert not (tmp_path / "none").exists()
