"""From what `--model` says to a file: the bundled demonstration model, or a GGUF of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.errors import InvalidRequest, NotFound
from node.models import gguf

BUNDLED = Path(__file__).parent / "bundled" / "conclave-demo.gguf"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model to load: its checked file, its name, and whether it is the demonstration model."""

    path: Path
    name: str
    is_demo: bool
    head: gguf.Gguf


def resolve(model: str) -> ModelFile:
    """The file that `--model` means. Raises InvalidRequest, NotFound, or BackendError if it is broken."""
    if model in ("auto", "bundled"):
        return ModelFile(BUNDLED, "conclave-demo", True, gguf.read(BUNDLED))
    if model.startswith(("hf:", "http:", "https:")) or not (model.endswith(".gguf") or "/" in model):
        raise InvalidRequest(
            f"--model {model!r}: this version takes `bundled`, `auto` or the path of a GGUF file; download one first"
        )
    try:
        path = Path(model).expanduser()
    except RuntimeError:
        raise NotFound(f"--model {model!r}: there is no such user's home directory") from None
    head = gguf.read(path)
    return ModelFile(path, head.name, False, head)
