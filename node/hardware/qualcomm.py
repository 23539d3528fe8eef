"""Qualcomm's Adreno: on Android (Termux) through the kgsl driver, on Linux laptops through DRM's msm driver.

An Adreno has no memory of its own. llama.cpp computes on it with its OpenCL backend, which knows the 6xx of late and
the 7xx and 8xx (docs/backend/OPENCL.md of llama.cpp).
"""

from __future__ import annotations

import re

from node.hardware.gpu import Gpu
from node.hardware.host import Host

_KGSL = "/sys/class/kgsl/kgsl-3d0"


def detect(host: Host | None = None) -> tuple[Gpu, ...] | None:
    """The Adreno of this machine; None without one."""
    host = host or Host()
    if host.system not in ("linux", "android"):
        return None
    name = _kgsl(host) or _msm(host)
    if not name:
        return None
    main = host.memory()
    soc = _soc(host)
    return (
        Gpu(
            vendor="qualcomm",
            index=0,
            name=f"{name} ({soc})" if soc else name,
            memory_bytes=main.total_bytes,
            free_bytes=main.available_bytes,
            build="OPENCL",
            driver="kgsl" if host.path(_KGSL).exists() else "msm",
            is_shared=True,
        ),
    )


def _kgsl(host: Host) -> str:
    """Its name by the kgsl driver, `Adreno740v2` say; Android may hide the file but not the folder."""
    model = host.read(f"{_KGSL}/gpu_model")
    if match := re.match(r"Adreno\s*\(?(?:TM\)?\s*)?(\d+)", model):
        return f"Adreno {match[1]}"
    return model or ("Adreno" if host.path(_KGSL).exists() else "")


def _msm(host: Host) -> str:
    """Its name by the device tree, where the msm driver runs it: `qcom,adreno-43050a01` or `qcom,adreno-730.1`."""
    for node in host.names("/sys/class/drm"):
        if node.startswith("renderD"):
            compatible = host.read(f"/sys/class/drm/{node}/device/of_node/compatible")
            if "qcom,adreno" in compatible:
                match = re.search(r"qcom,adreno-(\d{3})\.", compatible)
                return f"Adreno {match[1]}" if match else "Adreno"
    return ""


def _soc(host: Host) -> str:
    """The chip, by Android's properties or the device tree; empty if neither says."""
    if "ANDROID_ROOT" in host.environ or host.system == "android":
        for key in ("ro.soc.model", "ro.board.platform"):
            if found := host.command(("getprop", key)).strip():
                return found
    return host.read("/sys/devices/soc0/machine")
