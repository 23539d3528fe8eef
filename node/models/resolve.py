"""From what `--model` says to a file that can be loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from node.core import recurrent
from node.core.plan import Room, pick, plan, tokens_per_s
from node.core.quantization import QUANTIZATIONS
from node.core.shape import Shape
from node.errors import ConclaveError, InvalidRequest, NotFound
from node.home import home
from node.models import catalogue, gguf, hub, library, split
from node.models.library import Local
from node.models.shape import shape

_NO_CHATS = {"clip", "t5", "t5encoder"} | recurrent.REFUSED  # architectures

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
    bytes_per_s: float = 0.0,
) -> ModelFile:
    """The file that `--model` means: `bundled`, `auto`, a path, `hf:REPO`, or the name of a model on this machine.

    `auto` is the biggest model on this machine that fits `room`, chats and, where it is known how fast weights are read
    (`bytes_per_s`), writes as fast as people read; else the bundled one. `hf:REPO` is downloaded if it is not in the
    cache. `notice` and `progress` hear of that, and `notice` of models that are too slow. Raises InvalidRequest,
    NotFound, or BackendError if the file is broken.
    """
    environ = os.environ if environ is None else environ
    if model in ("bundled", BUNDLED.stem) or (model == "auto" and room is None):
        return _bundled()
    if model == "auto":
        assert room is not None
        most = room.usable
        # What fits may be far too slow for a processor. Where its speed is not known, its memory has to say that.
        is_unknown = room.where == "memory" and not bytes_per_s
        if is_unknown and (proposed := plan(catalogue.shapes(), catalogue.classes(), room)) is not None:
            most = proposed.fit.need.weights * 3 // 2
        here = library.find(environ, home(environ).data)
        return _best(here, room, most, bytes_per_s, notice) or _bundled()
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


def given(model: str) -> Path | None:
    """The file that `--model` says by its path, whether it is there or not; None if it says something else."""
    with contextlib.suppress(RuntimeError, ValueError):  # no such user; no path at all
        path = Path(model).expanduser().absolute()
        if not is_name(model) and path.suffix == ".gguf" and not model.startswith("hf:"):
            return path
    return None


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
    hint = catalogue.meant(model, (each.name for each in here))
    raise InvalidRequest(
        f"--model {model!r}: no model on this machine has this name, nor has one of the catalogue{hint or ':'} `python "
        "-m node models list` shows what there is; a GGUF file is given by its path, a repository as hf:OWNER/NAME"
    )


def here(environ: Mapping[str, str] | None = None) -> frozenset[tuple[str, str]]:
    """Which models of the catalogue are on this machine, by name and quantization, as files are named by them."""
    environ = os.environ if environ is None else environ
    files = library.find(environ, home(environ).data)
    return frozenset(
        (entry.name, quantization)
        for entry in catalogue.entries()
        for each in library.matching(entry.name, files)
        for quantization in QUANTIZATIONS
        if catalogue.plain(quantization) in catalogue.plain(each.name)
    )


def chats(head: gguf.Gguf) -> bool:
    """Whether a file looks like a model that answers: it has a chat template, no encoder, and no layers that the engine
    refuses."""
    arch = str(head.metadata.get("general.architecture", ""))
    return "tokenizer.chat_template" in head.metadata and "bert" not in arch and arch not in _NO_CHATS


def _best(
    here: list[Local], room: Room, most: int, bytes_per_s: float, notice: Callable[[str], None]
) -> ModelFile | None:
    """The biggest model, of `most` bytes, that fits and is not slow; one that cannot be read is passed over."""
    files: list[ModelFile] = []

    def shapes() -> Iterator[Shape]:
        for each in sorted(here, key=lambda m: -m.size):
            if each.size >= most:
                continue
            with contextlib.suppress(ConclaveError, OSError):
                found = _file(each.path, each.name)
                if chats(found.head):
                    made = shape(found.head)
                    files.append(found)
                    yield made

    picked = pick(shapes(), room, bytes_per_s)
    for at in picked.slow:
        about, _ = tokens_per_s(shape(files[at].head), bytes_per_s)
        why = f"{files[at].name} fits, but would write about {about:.1f} tokens/s here"
        if at == picked.at:
            notice(f"{why}, and no other model of this machine is quicker")
        else:
            notice(f"{why}, so it is passed over: --model {files[at].name} takes it all the same")
    return files[picked.at] if picked.at is not None else None
