"""What of this machine's models others may have: by name, from the places of models only, and as described."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from node.core.manifest import PIECE
from node.errors import InvalidRequest, NotFound
from node.models import shared as module
from node.models.resolve import BUNDLED, given
from node.models.shared import Shared

DATA = BUNDLED.read_bytes() + bytes(PIECE)


def made(home: Path) -> Shared:
    return Shared({"HOME": str(home)}, home / "data")


def put(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_models_of_all_places_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "data/models/own.gguf")
    put(tmp_path / ".lmstudio/models/someone/x/studio-Q8_0.gguf")
    put(tmp_path / ".cache/llama.cpp/own.gguf", DATA[:-1])  # the same name again
    put(tmp_path / "data/models/evil;name.gguf")
    put(tmp_path / "data/models/other.gguf.0123456789abcdef.partial")
    put(tmp_path / "elsewhere/secret.gguf")
    put(tmp_path / ".ollama/models/blobs/sha256-1")
    manifest = {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:1"}]}
    put(tmp_path / ".ollama/models/manifests/registry/library/qwen/7b", json.dumps(manifest).encode())
    offers = {o.name: [(f.name, f.size) for f in o.files] for o in made(tmp_path).offers()}
    assert offers == {
        "own": [("own.gguf", len(DATA))],
        "studio-Q8_0": [("studio-Q8_0.gguf", len(DATA))],
        "qwen:7b": [("qwen-7b.gguf", len(DATA))],
    }
    for name in ("secret", "../elsewhere/secret", str(tmp_path / "elsewhere/secret.gguf"), "", "evil;name", "other"):
        with pytest.raises(NotFound):
            made(tmp_path).describe(name)


def test_the_model_that_is_served_wherever_it_stands(tmp_path: Path) -> None:
    """`status` shows its name to all, so all may fetch it by that; nothing beside it."""
    path = put(tmp_path / "elsewhere/served.gguf")
    put(tmp_path / "elsewhere/secret.gguf")
    put(tmp_path / "data/models/served.gguf", DATA[:-1])  # another one of its name
    shared = Shared({"HOME": str(tmp_path)}, tmp_path / "data", path)
    assert [(o.name, o.files[0].size) for o in shared.offers()] == [("served", len(DATA))]
    found = shared.describe("served")
    assert shared.read(found.digest, 0, 0, 100) == DATA[:100]
    with pytest.raises(NotFound):
        shared.describe("secret")
    path.unlink()
    assert [o.files[0].size for o in shared.offers()] == [len(DATA) - 1]


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ("/models/a.gguf", "/models/a.gguf"),
        ("hf:owner/a.gguf", None),
        ("bundled", None),
        ("auto", None),
        ("Qwen3-8B", None),
        ("/models/mlx", None),
        ("~nobody-of-this-name/a.gguf", None),
    ],
)
def test_which_file_is_given_by_its_path(said: str, path: str | None) -> None:
    assert given(said) == (Path(path) if path else None)


def test_a_description_and_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "data/models/own.gguf")
    shared = made(tmp_path)
    found = shared.describe("own")
    assert found.files[0].hashes == b"".join(
        hashlib.sha256(DATA[at : at + PIECE]).digest() for at in range(0, len(DATA), PIECE)
    )
    assert shared.read(found.digest, 1, 0, 1 << 20) == DATA[PIECE : PIECE + (1 << 20)]
    assert shared.read(found.digest, 1, len(DATA) - PIECE - 5, 1 << 20) == DATA[-5:]
    assert shared.read(found.digest, 1, PIECE, 1 << 20) == b""
    with pytest.raises(InvalidRequest):
        shared.read(found.digest, 2, 0, 1)
    with pytest.raises(NotFound):
        shared.read("0" * 64, 0, 0, 1)
    # It is read once, also by the next process; and again when it is another file.
    read: list[Path] = []
    real = module._hash
    monkeypatch.setattr(module, "_hash", lambda path, is_over: read.append(path) or real(path, is_over))
    assert made(tmp_path).describe("own") == found
    assert not read
    put(path, DATA[:-1] + b"x")
    os.utime(path, ns=(1, 1))
    with pytest.raises(NotFound, match="has changed"):
        shared.read(found.digest, 0, 0, 1)
    assert shared.describe("own").digest != found.digest
    assert read == [path]
    (kept,) = (tmp_path / "data/manifests").iterdir()
    kept.write_text("{")
    assert shared.describe("own").digest != found.digest
    assert len(read) == 2
    path.unlink()
    with pytest.raises(NotFound):
        shared.describe("own")


def test_a_node_that_stops_reads_no_further(tmp_path: Path) -> None:
    put(tmp_path / "data/models/own.gguf")
    shared = made(tmp_path)
    shared.close()
    with pytest.raises(NotFound, match="the node stops"):
        shared.describe("own")
    assert not (tmp_path / "data/manifests").exists()


def test_a_file_that_is_no_model_is_not_given_away(tmp_path: Path) -> None:
    put(tmp_path / "data/models/letters.gguf", b"Dear diary" * 1000)
    with pytest.raises(NotFound, match="no sound model"):
        made(tmp_path).describe("letters")
