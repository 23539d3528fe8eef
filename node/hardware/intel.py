"""Intel GPUs, read from sysfs (drivers i915 and xe); sycl-ls gives the name where oneAPI is installed.

How much memory a discrete GPU has is in `tile*/physical_vram_size_bytes` (xe: drivers/gpu/drm/xe/xe_tile_sysfs.c), in
`lmem_total_bytes` and `lmem_avail_bytes` (Intel's out-of-tree i915), or is the size of PCI BAR 2, which with a
resizable BAR covers all of it (Documentation/ABI/testing/sysfs-bus-pci: `resource`). Linux tells no one but root how
much of it is in use, except by that i915: else all of it counts as free.
"""

from __future__ import annotations

import re
from dataclasses import replace

from node.hardware.gpu import Gpu
from node.hardware.host import Host

_INTEL = 0x8086
_DRIVERS = ("i915", "xe")
_LMEM_BAR = 2
# The aperture of an integrated GPU is 256 MiB to 1 GiB at BAR 2; the smallest card has 4 GiB.
_LEAST_VRAM = 2 << 30
_INTEGRATED = "00:02.0"  # where on the bus an integrated GPU is, in every generation
_SYCL = re.compile(r"\[level_zero:gpu\].*?, ((?:Intel|.*Graphics)[^\[\n]*?)\s+[\d.]+ \[")


def detect(host: Host | None = None) -> tuple[Gpu, ...] | None:
    """The GPUs that Intel's drivers show; None without one."""
    host = host or Host()
    if host.system != "linux":
        return None
    found: list[Gpu] = []
    for node in host.names("/sys/class/drm"):
        device = f"/sys/class/drm/{node}/device"
        if not node.startswith("renderD") or host.number(f"{device}/vendor") != _INTEL:
            continue
        driver = host.link(f"{device}/driver")
        if driver in _DRIVERS:
            found.append(_gpu(host, device, len(found), driver))
    if not found:
        return None
    names = _SYCL.findall(host.command(("sycl-ls",)))
    if len(names) == len(found):
        found = [_named(gpu, name) for gpu, name in zip(found, names, strict=True)]
    return tuple(found)


def _gpu(host: Host, device: str, index: int, driver: str) -> Gpu:
    total, free = _own_memory(host, device)
    is_shared = total == 0
    if is_shared:
        main = host.memory()
        # The driver lets an integrated GPU use half of main memory (i915: the shmem region, halved by Level Zero).
        total, free = main.total_bytes // 2, min(main.total_bytes // 2, main.available_bytes)
    number = host.number(f"{device}/device") or 0
    place = host.link(device)  # 0000:03:00.0
    problem = ""
    if is_shared and place and not place.endswith(_INTEGRATED):
        is_shared, total, free = False, 0, 0
        problem = (
            "how much memory it has is not to be seen: turn on resizable BAR in the firmware, or use the xe driver"
        )
    return Gpu(
        vendor="intel",
        index=index,
        name=f"Intel {'integrated ' if is_shared else ''}GPU {number:04x}",
        memory_bytes=total,
        free_bytes=free,
        build="SYCL",
        driver=driver,
        is_shared=is_shared,
        problem=problem,
    )


def _own_memory(host: Host, device: str) -> tuple[int, int]:
    """Total and free bytes of its own memory; 0 for a GPU without."""
    tiles = [n for n in host.names(device) if re.fullmatch(r"tile\d+", n)]
    if total := sum(host.number(f"{device}/{tile}/physical_vram_size_bytes") or 0 for tile in tiles):
        return total, total
    cards = [n for n in host.names(f"{device}/drm") if n.startswith("card")]
    for card in cards:
        if total := host.number(f"{device}/drm/{card}/lmem_total_bytes") or 0:
            free = host.number(f"{device}/drm/{card}/lmem_avail_bytes")
            return total, total if free is None else free
    lines = host.read(f"{device}/resource").splitlines()
    if len(lines) > _LMEM_BAR:
        first, last = (int(word, 16) for word in lines[_LMEM_BAR].split()[:2])
        if last - first + 1 >= _LEAST_VRAM:
            return last - first + 1, last - first + 1
    return 0, 0


def _named(gpu: Gpu, name: str) -> Gpu:
    return replace(gpu, name=re.sub(r"\((?:R|TM)\)", "", name).replace("  ", " ").strip())
