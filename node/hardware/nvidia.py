"""NVIDIA GPUs, asked of the driver's management library (NVML).

A GPU in MIG mode computes only in its instances, so these stand in its place, each with its own memory. GPUs that share
main memory (Jetson, GB10) answer the question for their memory with "not supported". CUDA_VISIBLE_DEVICES hides GPUs
from CUDA but not from NVML: it is respected here, by index and by (a prefix of) the UUID, as the CUDA Programming Guide
has it: what follows the first unknown entry is not visible.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from node.hardware.gpu import Gpu, Unusable
from node.hardware.host import Host

_NO_PERMISSION, _MISMATCH = 4, 18


def detect(host: Host | None = None) -> tuple[Gpu, ...] | None:
    """The GPUs and MIG instances that CUDA would show; None without a driver or without a GPU. Raises Unusable where
    there is a driver that cannot be asked."""
    host = host or Host()
    try:
        nvml = host.nvml()
        nvml.nvmlInit()
    except Exception as e:  # not installed, a broken installation, no driver: an error class of its own for each reason
        if problem := _problem(host, e):
            raise Unusable(problem) from None
        return None
    try:
        found = [each for i in range(nvml.nvmlDeviceGetCount()) for each in _device(nvml, i, host)]
        return tuple(gpu for _, gpu in _visible(found, host.environ.get("CUDA_VISIBLE_DEVICES"))) or None
    except Exception:
        return None
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


def _problem(host: Host, e: Exception) -> str:
    """Why a driver that is there cannot be asked, and what to do; empty if there is none. The numbers are nvml.h's
    (nvmlReturn_t)."""
    code = getattr(e, "value", 0)
    if code == _MISMATCH:
        return "the driver was updated while its old part runs: restart this machine"
    # /proc and the device are the kernel module's; the library comes with the other half of the driver.
    if host.path("/proc/driver/nvidia/version").exists() or host.path("/dev/nvidiactl").exists():
        if code == _NO_PERMISSION:
            return "this user may not use the driver's devices (/dev/nvidia*): see who owns them"
        return (
            "the driver is there, its management library is not, or does not answer: run `nvidia-smi`; a container "
            "needs --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        )
    return ""


def _device(nvml: Any, index: int, host: Host) -> Iterator[tuple[str, Gpu]]:
    """A GPU with its UUID, or its MIG instances; nothing if it does not answer (lost, or not ours to see)."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        instances = list(_instances(nvml, handle))
    except Exception:
        return
    for each in instances or [handle]:
        with contextlib.suppress(Exception):
            yield _text(nvml.nvmlDeviceGetUUID(each)), _gpu(nvml, index, handle, each, host)


def _instances(nvml: Any, handle: Any) -> Iterator[Any]:
    """Handles of the MIG instances; none where MIG is off or unknown to the GPU."""
    try:
        is_on = nvml.nvmlDeviceGetMigMode(handle)[0] == 1
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if is_on else 0
    except Exception:
        return
    for i in range(most):
        with contextlib.suppress(Exception):  # places that are empty raise NVMLError_NotFound
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i)


def _gpu(nvml: Any, index: int, whole: Any, handle: Any, host: Host) -> Gpu:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free, is_shared = int(memory.total), int(memory.free), False
    except Exception:  # NVMLError_NotSupported: it shares main memory
        main = host.memory()
        total, free, is_shared = main.total_bytes, main.available_bytes, True
    try:
        architecture = "sm_{}{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(whole))
    except Exception:
        architecture = ""
    return Gpu(
        vendor="nvidia",
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=total,
        free_bytes=free,
        build="CUDA",
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        architecture=architecture,
        is_shared=is_shared,
    )


def _visible(found: list[tuple[str, Gpu]], asked: str | None) -> list[tuple[str, Gpu]]:
    if asked is None:
        return found
    shown: list[tuple[str, Gpu]] = []
    for word in (w.strip() for w in asked.split(",")):
        if word.isdigit():
            match = [each for each in found if each[1].index == int(word)][:1]  # CUDA uses one MIG instance of a GPU
        else:
            match = [each for each in found if word and each[0].startswith(word)]
        if len(match) != 1:
            break
        shown += match
    return shown


def _text(value: str | bytes) -> str:  # bytes before nvidia-ml-py 12
    return value.decode(errors="replace") if isinstance(value, bytes) else value
