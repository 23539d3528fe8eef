"""How to load a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.engine.llamacpp import devices


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """0 means: decide. `fingerprint` is of the file, see `node.models.gguf`."""

    path: Path
    name: str
    fingerprint: str
    sequences: int = 16
    context: int = 0
    cells: int = 0  # of the KV cache; 0: what `cells_for` allows
    row: int = 0  # bytes of K and V a token over all layers; 0: what plain attention has
    kv_type: str = "f16"
    swa: str = "full"  # or "small"; of models with a sliding window
    threads: int = 0
    gpu_layers: int = -1
    is_demo: bool = False
    mmap: bool = True  # False: read the file, so that no copy of repacked weights stays mapped
    spread: devices.Spread | None = None  # over other machines, too
