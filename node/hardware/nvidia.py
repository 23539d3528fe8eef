"""NVIDIA GPUs, asked of the driver's management library."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; memory in bytes."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    driver: str
    compute_capability: tuple[int, int]


def detect() -> tuple[Gpu, ...] | None:
    """The GPUs that the driver shows; None without a driver or without a GPU."""
    try:
        import pynvml
    except Exception:  # not installed, or a broken installation
        return None
    try:
        pynvml.nvmlInit()
    except Exception:  # no driver: the library has an error class of its own for each reason
        return None
    try:
        found = tuple(g for i in range(pynvml.nvmlDeviceGetCount()) if (g := _gpu(pynvml, i)) is not None)
        return found or None
    except Exception:
        return None
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu | None:
    """One GPU; None if it does not answer (lost, or not ours to see)."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return Gpu(
            index=index,
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(memory.total),
            free_bytes=int(memory.free),
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            compute_capability=(int(major), int(minor)),
        )
    except Exception:
        return None


def _text(value: str | bytes) -> str:  # bytes before nvidia-ml-py 12
    return value.decode(errors="replace") if isinstance(value, bytes) else value
