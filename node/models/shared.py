"""What of this machine's models a peer may have, by name, never a path: those in the places that `models list` shows,
and the one that the node serves, wherever it stands: whoever may ask it may have it.

A model's pieces are hashed when a peer first asks for it, and the hashes are kept in the data directory as long as the
file stays what it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from node import disk
from node.core.manifest import HASH, PIECE, File, Manifest, check_files, safe_name
from node.errors import ConclaveError, NotFound
from node.home import private_dir
from node.models import library, split
from node.models.library import Local

log = logging.getLogger(__name__)

MOST = 1000  # models that are offered
_Stamp = list[list[object]]  # path, bytes and time of each file


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as it is offered: the names and sizes of its files, without hashes."""

    name: str
    files: tuple[File, ...]


class Shared:
    """The models of this machine. Everything here blocks, and may be called from several threads."""

    def __init__(self, environ: Mapping[str, str], data: Path, served: Path | None = None) -> None:
        self._environ = environ
        self._data = data
        self._served = served
        self._hashing = threading.Lock()  # one at a time: it takes the disk and a core
        self._known: dict[str, tuple[Manifest, list[Path], _Stamp]] = {}
        self._closed = False

    def close(self) -> None:
        """The node stops: whoever reads a model for its hashes gives up, and hears NotFound."""
        self._closed = True

    def _here(self) -> list[Local]:
        """What is served comes first: of two models of its name it is the one that `status` shows."""
        served = library.local(self._served) if self._served is not None else None
        return [*([served] if served else []), *library.find(self._environ, self._data)]

    def offers(self) -> list[Offer]:
        """What there is, each name once."""
        found: dict[str, Offer] = {}
        for model in self._here():
            files = _files(model)
            if files and model.name not in found and not check_files(files):
                found[model.name] = Offer(model.name, files)
        return list(found.values())[:MOST]

    def describe(self, name: str) -> Manifest:
        """The hashes of a model, by its name. Raises NotFound, also if it is no sound GGUF file."""
        model = next((m for m in self._here() if m.name == name), None)
        files = _files(model) if model is not None else ()
        if model is None or not files or check_files(files):
            raise NotFound(f"no model {name[:80]!r} is here to be shared")
        try:
            split.read(model.path)  # what is no model is not given away, whatever it is called
        except ConclaveError as e:
            log.info("%s", e)
            raise NotFound(f"{name[:80]} is no sound model here") from None
        paths = split.parts(model.path)
        with self._hashing, _reading(name):
            stamp = _stamp(paths)
            kept = _note(self._data, model.path)
            hashes = _remembered(kept, stamp, files)
            if hashes is None:
                hashes = [_hash(path, lambda: self._closed) for path in paths]
                _remember(kept, stamp, hashes)
            found = Manifest(tuple(File(f.name, f.size, h) for f, h in zip(files, hashes, strict=True)))
            self._known[found.digest] = (found, paths, stamp)
        return found

    def read(self, digest: str, index: int, start: int, size: int) -> bytes:
        """Bytes of a piece of a model that was described, from `start` in it. Raises NotFound, InvalidRequest."""
        known = self._known.get(digest)
        if known is None:
            raise NotFound("no model of this hash was described here since the node started: ask for its description")
        manifest, paths, stamp = known
        piece = manifest.piece(index)
        with _reading("the model"), paths[piece.file].open("rb") as file:
            about = os.fstat(file.fileno())
            if [about.st_size, about.st_mtime_ns] != stamp[piece.file][1:]:
                raise NotFound(f"{manifest.files[piece.file].name} has changed since it was described")
            return os.pread(file.fileno(), max(min(size, piece.size - start), 0), piece.offset + start)


def remember(data: Path, paths: list[Path], manifest: Manifest) -> None:
    """A model that came with its hashes need not be read for them when a peer asks for it here."""
    with contextlib.suppress(OSError):
        _remember(_note(data, paths[0]), _stamp(paths), [file.hashes for file in manifest.files])


def _note(data: Path, model: Path) -> Path:
    """Where the hashes of a model's pieces are kept."""
    return data / "manifests" / f"{hashlib.sha256(str(model).encode()).hexdigest()[:32]}.json"


def _files(model: Local) -> tuple[File, ...]:
    """The names that a model's files have for others, and their sizes; none if they are gone."""
    paths = split.parts(model.path)
    try:
        if len(paths) == 1 and not model.path.name.endswith(".gguf"):  # of Ollama's, which are named by their hash
            return (File(safe_name(model.name), model.size),)
        return tuple(File(path.name, path.stat().st_size) for path in paths)
    except OSError:
        return ()


def _stamp(paths: list[Path]) -> _Stamp:
    return [[str(path), (about := path.stat()).st_size, about.st_mtime_ns] for path in paths]


def _hash(path: Path, is_over: Callable[[], bool]) -> bytes:
    out = bytearray()
    with path.open("rb", buffering=0) as file:
        while block := _piece(file):
            if is_over():
                raise NotFound("the node stops")
            out += hashlib.sha256(block).digest()
    return bytes(out)


def _piece(file: FileIO) -> bytes:
    """The next piece, whole where the file has so much."""
    parts, left = [], PIECE
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _remembered(path: Path, stamp: _Stamp, files: tuple[File, ...]) -> list[bytes] | None:
    try:
        said = json.loads(path.read_bytes())
        hashes = [bytes.fromhex(h) for h in said["hashes"]] if said["stamp"] == stamp else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    sizes = [file.pieces * HASH for file in files]
    return hashes if [len(h) for h in hashes] == sizes else None


def _remember(path: Path, stamp: _Stamp, hashes: list[bytes]) -> None:
    """Where nothing can be written, the model is read again the next time."""
    with contextlib.suppress(OSError, ConclaveError):
        private_dir(path.parent)
        disk.remember(path, {"stamp": stamp, "hashes": [h.hex() for h in hashes]})


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        log.warning("%s cannot be read: %s", what, e)
        raise NotFound(f"{what} cannot be read here any more") from None
