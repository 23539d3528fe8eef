"""AMD GPUs, read from sysfs: KFD's topology says which of them can compute, DRM says how much memory is in use.

Formats: Documentation/gpu/amdgpu/driver-misc.rst of Linux (mem_info_*), drivers/gpu/drm/amd/amdkfd/kfd_topology.c (the
`properties` of a node; `gfx_target_version` is major x 10000 + minor x 100 + stepping). Where the DRM files are not to
be seen, as in some containers, rocm-smi is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from node.hardware.gpu import Gpu
from node.hardware.host import Host

_NODES = "/sys/class/kfd/kfd/topology/nodes"
_AMD = 0x1002
# Processors with graphics. Their "VRAM" is a part of main memory that the firmware set aside and the system does not
# count; what the GTT maps is main memory. The driver computes in one of the two: since Linux 6.10 in the GTT where that
# is larger (`apu_prefer_gtt` in drivers/gpu/drm/amd/amdgpu/amdgpu_ttm.c). Both happen: 512 MiB are set aside as a rule,
# and 96 of 128 GB by owners who want models there (as in llama.cpp's issue 18159). The list is
# llvm/docs/AMDGPUUsage.rst's, those of type "APU".
_APUS = frozenset(
    "gfx801 gfx902 gfx909 gfx90c gfx1013 gfx1033 gfx1035 gfx1036 gfx1103 gfx1150 gfx1151 gfx1152 gfx1153".split()
)


def detect(host: Host | None = None) -> tuple[Gpu, ...] | None:
    """The GPUs that the amdgpu driver shows; None without one."""
    host = host or Host()
    if host.system != "linux":
        return None
    computing = dict(_computing(host))
    found: list[Gpu] = []
    for node in host.names("/sys/class/drm"):
        device = f"/sys/class/drm/{node}/device"
        if not node.startswith("renderD") or host.number(f"{device}/vendor") != _AMD:
            continue
        if gpu := _gpu(host, device, len(found), computing.get(int(node.removeprefix("renderD")), "")):
            found.append(gpu)
    if not found and computing:
        found = list(_rocm_smi(host, list(computing.values())))
    return _visible(found, host) or None


def _visible(found: list[Gpu], host: Host) -> tuple[Gpu, ...]:
    """Those that ROCm shows to this process: variables hide GPUs from programs, by their numbers among those that
    compute, and not from the driver (ROCm's documentation, "GPU isolation techniques"). What follows the first unknown
    number is not visible, and UUIDs are not looked at."""
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        asked = host.environ.get(variable)
        if asked is None or "GPU-" in asked:
            continue
        computing = [gpu for gpu in found if gpu.architecture]
        shown: list[Gpu] = []
        for word in (w.strip() for w in asked.split(",")):
            if not word.isdigit() or int(word) >= len(computing):
                break
            shown.append(computing[int(word)])
        found = shown
    return tuple(found)


def _computing(host: Host) -> Iterator[tuple[int, str]]:
    """Render node number and architecture of each KFD node that is a GPU."""
    for node in host.names(_NODES):
        said = dict(
            pair for line in host.read(f"{_NODES}/{node}/properties").splitlines() if len(pair := line.split()) == 2
        )
        version = int(said.get("gfx_target_version", "0"))
        if int(said.get("simd_count", "0")) and version:
            name = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
            yield int(said.get("drm_render_minor", "0")), name


def _gpu(host: Host, device: str, index: int, architecture: str) -> Gpu | None:
    total, used = host.number(f"{device}/mem_info_vram_total"), host.number(f"{device}/mem_info_vram_used")
    if total is None or used is None:
        return None
    free = total - used
    gtt = host.number(f"{device}/mem_info_gtt_total") or 0
    is_shared = architecture in _APUS and gtt > total
    if is_shared:
        total = gtt
        free = min(gtt - (host.number(f"{device}/mem_info_gtt_used") or 0), host.memory().available_bytes)
    problem = ""
    if not architecture:
        problem = "the driver offers no computing on it (no KFD node): ROCm does not know it, Vulkan may"
    elif not host.path("/dev/kfd").exists():
        problem = "/dev/kfd is missing: give the container --device /dev/kfd --device /dev/dri"
    elif not host.may_open("/dev/kfd"):
        problem = "/dev/kfd may not be used by this user: `sudo usermod -aG render,video $USER`, then log in again"
    return Gpu(
        vendor="amd",
        index=index,
        name=_name(host, device),
        memory_bytes=total,
        free_bytes=max(free, 0),
        build="HIP" if architecture else "VULKAN",
        driver=host.read("/sys/module/amdgpu/version"),  # only where it is not the kernel's own
        architecture=architecture,
        is_shared=is_shared,
        problem=problem,
    )


def _name(host: Host, device: str) -> str:
    """Its marketing name, from the card itself or from libdrm's list; else its number."""
    said = host.read(f"{device}/product_name")
    if said:
        return said
    number, revision = host.number(f"{device}/device") or 0, host.number(f"{device}/revision") or 0
    for line in host.read("/usr/share/libdrm/amdgpu.ids").splitlines():
        parts = [p.strip() for p in line.split(",", 2)]
        if len(parts) == 3 and parts[:2] == [f"{number:X}", f"{revision:02X}"]:
            return parts[2]
    return f"AMD GPU {number:04x}"


def _rocm_smi(host: Host, architectures: list[str]) -> Iterator[Gpu]:
    answer = host.command(("rocm-smi", "--showmeminfo", "vram", "--showproductname", "--json"))
    try:
        cards: Any = json.loads(answer)
    except ValueError:
        return
    for index, card in enumerate(c for name, c in cards.items() if name.startswith("card")):
        # "Card series" until ROCm 5, "Card Series" since.
        said = {key.lower(): value for key, value in card.items()}
        total, used = int(said["vram total memory (b)"]), int(said["vram total used memory (b)"])
        architecture = architectures[index] if index < len(architectures) else ""
        yield Gpu("amd", index, said.get("card series", "AMD GPU"), total, total - used, "HIP", "", architecture)
