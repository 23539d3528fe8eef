"""A GPU that is there, and for which llama.cpp was not built."""

from __future__ import annotations

from dataclasses import dataclass

from node.hardware.machine import Machine

# What the build wants to be installed (llama.cpp, docs/build.md).
_TOOLKITS = {
    "CUDA": "the CUDA toolkit",
    "HIP": "ROCm",
    "VULKAN": "the Vulkan SDK",
    "SYCL": "oneAPI",
    "OPENCL": "OpenCL's headers",
    "METAL": "Xcode's command line tools",
}


@dataclass(frozen=True, slots=True)
class Idle:
    """What stays idle and why, and the command that mends it; a line each."""

    found: str
    advice: str


def idle(machine: Machine, has_gpu: bool) -> Idle | None:
    """The first GPU that llama.cpp could use if it were built for it; None if it `has_gpu` already.

    Graphics of a processor other than Apple's are not worth the advice: they are no faster than its cores.
    """
    if has_gpu:
        return None
    for gpu in machine.gpus:
        if not gpu.problem and (not gpu.is_shared or gpu.vendor in ("apple", "nvidia")):
            return Idle(
                f"llama.cpp was built without {gpu.build}, so the {gpu.name} stays idle",
                f"CMAKE_ARGS=-DGGML_{gpu.build}=on make run   (builds it again; wants {_TOOLKITS[gpu.build]})",
            )
    return None
