"""The GGUF files that are on this machine already, read where they stand: those of Hugging Face's cache, of LM Studio,
Ollama and llama.cpp, and Conclave's own. Nothing is copied, and nothing of other programs is ever changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from node.models import split
from node.models.catalogue import plain

_MOST = 2000  # files that are looked at in one place
_DEEP = 6  # folders under each other
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_MOST_MANIFEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Local:
    """A model on this machine. `path` is its first file, `size` the bytes of all; `place` is whose it is."""

    name: str
    path: Path
    size: int
    place: str

    @property
    def is_ours(self) -> bool:
        """Whether `models rm` may remove it."""
        return self.place in ("conclave", "hugging face")


class _HasName(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=_HasName)


def own_folder(data: Path) -> Path:
    """Where Conclave keeps the models that it got from peers; `data` is `node.home.Home.data`."""
    return data / "models"


def find(environ: Mapping[str, str], data: Path) -> list[Local]:
    """Every model on this machine, each file once, in the order of the places."""
    user = Path(environ.get("HOME") or Path.home())
    cache = Path(environ.get("XDG_CACHE_HOME") or user / ".cache")
    hub = Path(environ.get("HF_HUB_CACHE") or Path(environ.get("HF_HOME") or cache / "huggingface") / "hub")
    llama = Path(environ.get("LLAMA_CACHE") or cache / "llama.cpp")
    ollama = Path(environ.get("OLLAMA_MODELS") or user / ".ollama" / "models")
    found: list[Local] = []
    seen: set[Path] = set()
    for each in (
        *_files(own_folder(data), "conclave"),
        *_files(hub, "hugging face", inside="snapshots"),
        *_files(user / ".lmstudio" / "models", "lm studio"),
        *_files(cache / "lm-studio" / "models", "lm studio"),
        *_files(llama, "llama.cpp"),
        *_ollama(ollama),
        *_ollama(Path("/usr/share/ollama/.ollama/models") if not environ.get("OLLAMA_MODELS") else ollama),
    ):
        real = each.path.resolve()
        if real not in seen:
            seen.add(real)
            found.append(each)
    return found


def local(path: Path) -> Local | None:
    """The model whose file is given by its path; None if it is not there as a whole, or is no GGUF file by its name."""
    files = split.parts(path)
    try:
        size = sum(each.stat().st_size for each in files)
    except OSError:
        return None
    return Local(split.stem(files[0].name), files[0], size, "file") if path.suffix == ".gguf" else None


def matching(name: str, models: Sequence[Named]) -> list[Named]:
    """The models that a name means: the same name, else those whose name begins with it."""
    wanted = plain(name)
    same = [m for m in models if plain(m.name) == wanted or m.name == name]
    return same or [m for m in models if wanted and plain(m.name).startswith(wanted)]


def _files(folder: Path, place: str, inside: str = "") -> Iterator[Local]:
    """The GGUF files under a folder, the parts of a split one together."""
    seen = 0
    for directory, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        if len(Path(directory).relative_to(folder).parts) >= _DEEP:
            folders.clear()
        if inside and inside not in Path(directory).parts:
            continue
        for name in sorted(names):
            seen += 1
            if seen > _MOST:
                return
            path = Path(directory, name)
            files = split.parts(path)
            # Of a split model only the first part is named; a vision model's projector is no model of its own.
            if not name.endswith(".gguf") or files[0] != path or "mmproj" in name.lower():
                continue
            try:
                size = sum(each.stat().st_size for each in files)
            except OSError:  # a part is missing, or a link of the cache leads nowhere
                continue
            yield Local(split.stem(name), path, size, place)


def _ollama(folder: Path) -> Iterator[Local]:
    """Ollama's models: a manifest for each name, which says which blob is the GGUF file."""
    manifests = folder / "manifests"
    for count, path in enumerate(sorted(manifests.glob("*/*/*/*"))):
        if count > _MOST:
            return
        try:
            with path.open("rb") as file:
                layers = json.loads(file.read(_MOST_MANIFEST))["layers"]
            [digest] = [layer["digest"] for layer in layers if layer["mediaType"] == _OLLAMA_MODEL]
            blob = folder / "blobs" / str(digest).replace(":", "-")
            size = blob.stat().st_size
            if blob.parent != folder / "blobs":
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        owner, model, tag = path.parts[-3:]
        yield Local(f"{model}:{tag}" if owner == "library" else f"{owner}/{model}:{tag}", blob, size, "ollama")
