"""Apple silicon: one memory for processor and GPU, of which the GPU may keep only a part wired.

Metal's limit (`recommendedMaxWorkingSetSize`) is two thirds of memory up to 36 GiB and three quarters beyond, unless
`sysctl iogpu.wired_limit_mb` says otherwise (0: the default); llama.cpp's discussion 2182 has both measured.
"""

from __future__ import annotations

import re

from node.hardware.gpu import Gpu
from node.hardware.host import Host

_ASKED = ("hw.memsize", "machdep.cpu.brand_string", "iogpu.wired_limit_mb", "kern.osproductversion")
_SMALL = 36 << 30


def detect(host: Host | None = None) -> tuple[Gpu, ...] | None:
    """The GPU of an Apple processor; None elsewhere, Intel Macs included."""
    host = host or Host()
    if host.system != "darwin" or host.machine != "arm64":
        return None
    # Names that a release of macOS does not know are said on stderr and left out.
    said = dict(re.findall(r"^([\w.]+): (.*)$", host.command(("sysctl", *_ASKED)), re.MULTILINE))
    memory = int(said.get("hw.memsize", "0"))
    if not memory:
        return None
    wired = int(said.get("iogpu.wired_limit_mb", "0")) << 20
    limit = min(wired, memory) if wired else memory * 2 // 3 if memory <= _SMALL else memory * 3 // 4
    return (
        Gpu(
            vendor="apple",
            index=0,
            name=f"{said.get('machdep.cpu.brand_string', 'Apple silicon')} GPU",
            memory_bytes=limit,
            free_bytes=min(limit, host.memory().available_bytes),
            build="METAL",
            driver=f"macOS {said['kern.osproductversion']}" if "kern.osproductversion" in said else "",
            is_shared=True,
        ),
    )
