"""From what `--model` says to a file that can be loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from node.core.plan import Room, fit, plan
from node.errors import ConclaveError, InvalidRequest, NotFound
from node.home import home
from node.models import catalogue, gguf, hub, library, split
from node.models.library import Local
from node.models.shape import shape

BUNDLED = Path(__file__).parent / "bundled" / "conclave-demo.gguf"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model to load: its checked file, its name, and whether it is the demonstration model."""

    path: Path
    name: str
    is_demo: bool
    head: gguf.Gguf


def resolve(
    model: str,
    environ: Mapping[str, str] | None = None,
    room: Room | None = None,
    notice: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> ModelFile:
    """The file that `--model` means: `bundled`, `auto`, a path, `hf:REPO`, or the name of a model on this machine.

    `auto` is the biggest model on this machine that fits `room` and chats, else the bundled one. `hf:REPO` is
    downloaded if it is not in the cache, of which `notice` and `progress` hear. Raises InvalidRequest, NotFound, or
    BackendError if the file is broken.
    """
    environ = os.environ if environ is None else environ
    if model in ("bundled", BUNDLED.stem) or (model == "auto" and room is None):
        return _bundled()
    if model == "auto":
        assert room is not None
        most = room.usable
        if room.where == "memory" and (proposed := plan(catalogue.shapes(), catalogue.classes(), room)) is not None:
            most = proposed.fit.need.weights * 3 // 2  # on a processor what fits may be far too slow
        return _best(library.find(environ, home(environ).data), room, most) or _bundled()
    if model.startswith(("http:", "https:")):
        raise InvalidRequest(f"--model {model!r}: give a file, or a repository as hf:OWNER/NAME")
    if model.startswith("hf:"):
        reference = hub.parse(model)
        path = hub.cached(reference) or hub.pull(reference, notice, progress)
        return _file(path, split.stem(path.name))
    if not is_name(model):
        try:
            path = Path(model).expanduser()
        except RuntimeError:
            raise NotFound(f"--model {model!r}: there is no such user's home directory") from None
        return _file(path)
    return _named(model, library.find(environ, home(environ).data))


def is_name(model: str) -> bool:
    """Whether `--model` says a model's name, not a file, a repository or a word of its own."""
    is_path = model.endswith(".gguf") or model.startswith((".", "/", "~")) or ("/" in model and os.path.exists(model))
    return not (is_path or model in ("bundled", "auto") or model.startswith(("hf:", "http:", "https:")))


def _bundled() -> ModelFile:
    return ModelFile(BUNDLED, "conclave-demo", True, gguf.read(BUNDLED))


def _file(path: Path, name: str = "") -> ModelFile:
    """A file, by the name that `models list` has for it: what is typed for it is what it is called everywhere."""
    head = split.read(path)
    stem = split.stem(path.name) if path.suffix == ".gguf" else ""  # Ollama's blobs are named by a hash
    called = "".join(c for c in (name or stem)[:128] if c.isprintable())
    return ModelFile(split.parts(path)[0], called or head.name, False, head)


def _named(model: str, here: list[Local]) -> ModelFile:
    found = library.matching(model, here)
    entry = catalogue.find(model)
    if not found and entry is not None:
        found = library.matching(entry.name, here)
    if found:
        # Of several quantizations the largest: it is the best, and someone fetched it for that.
        best = max(found, key=lambda m: m.size)
        return _file(best.path, best.name)
    if entry is not None:
        raise NotFound(
            f"{entry.name} is not on this machine: `python -m node models pull {entry.name}` fetches it "
            f"({entry.shape('Q4_K_M').weight_bytes / 1e9:.1f} GB)"
        )
    raise InvalidRequest(
        f"--model {model!r}: no model on this machine has this name, nor has one of the catalogue: `python -m node "
        "models list` shows what there is; a GGUF file is given by its path, a repository as hf:OWNER/NAME"
    )


def chats(head: gguf.Gguf) -> bool:
    """Whether a file looks like a model that answers: it has a chat template and no encoder."""
    arch = str(head.metadata.get("general.architecture", ""))
    return "tokenizer.chat_template" in head.metadata and "bert" not in arch and arch not in ("clip", "t5", "t5encoder")


def _best(here: list[Local], room: Room, most: int) -> ModelFile | None:
    """The biggest model, of `most` bytes, that fits; one that cannot be read is passed over."""
    for each in sorted(here, key=lambda m: -m.size):
        if each.size >= most:
            continue
        with contextlib.suppress(ConclaveError, OSError):
            found = _file(each.path, each.name)
            if chats(found.head) and fit(shape(found.head), room.usable, on_gpu=room.where == "gpu") is not None:
                return found
    return None
