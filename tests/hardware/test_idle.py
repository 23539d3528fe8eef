"""A GPU that llama.cpp was not built for is named where people look, with the command that builds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from node import backends
from node.config import Config
from node.hardware.gpu import Gpu
from node.hardware.idle import idle
from node.hardware.machine import Machine

GIB = 1 << 30
CARD = Gpu("nvidia", 0, "RTX 4090", 24 * GIB, 20 * GIB, "CUDA")
GRAPHICS = Gpu("intel", 0, "Iris", 8 * GIB, 8 * GIB, "SYCL", is_shared=True)


def test_what_is_advised() -> None:
    found = idle(Machine(None, (GRAPHICS, CARD)), has_gpu=False)
    assert found is not None
    assert found.found == "llama.cpp was built without CUDA, so the RTX 4090 stays idle"
    assert found.advice.startswith("CMAKE_ARGS=-DGGML_CUDA=on make run ")
    assert idle(Machine(None, (CARD,)), has_gpu=True) is None
    assert idle(Machine(None, (GRAPHICS,)), has_gpu=False) is None, "it is no faster than the processor"
    assert idle(Machine(None, ()), has_gpu=False) is None


@pytest.mark.parametrize("vendor", ["CUDA", "HIP", "VULKAN", "SYCL", "OPENCL", "METAL"])
def test_every_backend_has_its_toolkit(vendor: str) -> None:
    found = idle(Machine(None, (Gpu("apple", 0, "it", GIB, GIB, vendor),)), has_gpu=False)
    assert found is not None
    assert vendor in found.advice


async def test_a_node_says_so_when_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "detect", lambda: Machine(None, (CARD,)))
    monkeypatch.setattr("node.engine.llamacpp.has_gpu", lambda: False)
    said: list[str] = []
    await backends.make(Config(model="bundled"), tmp_path, said.append, lambda what, share: None)
    assert any("RTX 4090 stays idle: CMAKE_ARGS=" in line for line in said)
