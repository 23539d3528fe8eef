"""A model from peers by its name: compared with the hub where that knows it, and who gave it is said."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sources import FILE, MODEL, NAME, TOKEN, Source, source

from node.cli.elsewhere import Elsewhere, sorted_out
from node.core.manifest import File
from node.download import Arrived, NotTheHubs, pull
from node.download.search import Has
from node.mesh.identity import Identity
from node.models import checksum
from node.models.library import Local
from node.models.shared import Shared

module = sys.modules["node.download.pull"]  # the package has a function of the same name
RIGHT = hashlib.sha256(MODEL).hexdigest()


async def bring(home: Path, a: Source, lines: list[str]) -> Path | None:
    a.mesh.nodes[0].name = "kitchen"
    identity = Identity(TOKEN, "z" * 10)
    return await pull(NAME, identity, home / "data", Arrived(say=lines.append), runtime=None, join=a.address)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, str]]:
    """What the hub says of the files of the repository that the catalogue names."""
    said: dict[str, tuple[int, str]] = {}
    monkeypatch.setattr(module, "entry_of", lambda name: SimpleNamespace(repo="someone/tiny") if name == NAME else None)
    monkeypatch.setattr(module.hub, "sums", lambda repo: dict(said) if repo == "someone/tiny" else {})
    return said


async def test_the_same_as_the_hubs(tmp_path: Path, known: dict[str, tuple[int, str]]) -> None:
    known[FILE] = (len(MODEL), RIGHT)
    lines: list[str] = []
    async with source(tmp_path, "a") as a:
        path = await bring(tmp_path, a, lines)
    assert path is not None
    assert lines[-2:] == ["it came from kitchen", "its SHA-256 is the hub's"]
    assert "from kitchen" in lines[0]
    assert checksum.beside(path).read_text() == f"{RIGHT}  {FILE}\n"


async def test_not_the_hubs(tmp_path: Path, known: dict[str, tuple[int, str]]) -> None:
    """It is removed, so that nobody loads it, nor passes it on."""
    known[FILE] = (len(MODEL), "0" * 64)
    async with source(tmp_path, "a") as a:
        with pytest.raises(NotTheHubs, match=f"{FILE}, as the mesh has it, is not the hub's"):
            await bring(tmp_path, a, [])
    assert list((tmp_path / "data" / "models").iterdir()) == []


@pytest.mark.parametrize("said", [{}, {FILE: (len(MODEL) + 1, RIGHT)}, {"other.gguf": (len(MODEL), RIGHT)}])
async def test_what_the_hub_does_not_know(
    tmp_path: Path, known: dict[str, tuple[int, str]], said: dict[str, tuple[int, str]]
) -> None:
    known.update(said)
    lines: list[str] = []
    async with source(tmp_path, "a") as a:
        assert await bring(tmp_path, a, lines) is not None
    assert "not compared" in lines[-1]


async def test_what_came_with_hashes_is_not_read_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has just pulled a model gives it on at once."""
    async with source(tmp_path, "a") as a:
        await bring(tmp_path, a, [])
        given = await asyncio.to_thread(a.models._shared.describe, NAME)

    def hash(*_: object) -> bytes:
        raise AssertionError("it was hashed again")

    monkeypatch.setattr("node.models.shared._hash", hash)
    assert Shared({"HOME": str(tmp_path)}, tmp_path / "data").describe(NAME).digest == given.digest


def test_a_checksum_is_computed_once(tmp_path: Path) -> None:
    """And again when the file has changed, or what was kept is not its."""
    path = tmp_path / "x.gguf"
    path.write_bytes(b"one")
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two"))
    assert checksum.kept(path) == ""
    assert checksum.of(path) == one
    note = checksum.beside(path)
    note.write_text(f"{two}  x.gguf\n")
    assert checksum.of(path) == two, "what was kept is believed"
    for damaged in ("", "zz", f"{two}  y.gguf\n", f"{two[:-1]}  x.gguf\n", "\0" * 4000):
        note.write_text(damaged)
        assert checksum.kept(path) == ""
    assert checksum.of(path) == one
    path.write_bytes(b"two")
    after = note.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(after, after))
    assert checksum.of(path) == two


def test_who_has_what() -> None:
    def has(node: str, name: str, size: int) -> Has:
        return Has(name, (File(f"{name}.gguf", size),), node)

    here = [Local("Own-Q4_K_M", Path("/own"), 5, "conclave"), Local("Alone", Path("/alone"), 5, "conclave")]
    found = [
        has("a", "own-q4_k_m", 5), has("b", "Own-Q4_K_M", 5), has("b", "Own-Q4_K_M", 6), has("c", "Zoo", 7),
        has("a", "Bird", 7), has("b", "bird", 7),
    ]  # fmt: skip
    others, only = sorted_out(here, found, {"a": "kitchen", "b": "attic"})
    assert others == [("kitchen", "attic"), ()]
    assert only == [
        Elsewhere("Bird", 7, ("kitchen", "attic")),
        Elsewhere("Own-Q4_K_M", 6, ("attic",)),
        Elsewhere("Zoo", 7, ("c",)),
    ]
