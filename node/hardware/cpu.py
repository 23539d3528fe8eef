"""The processor and memory of this machine, as far as this process may use them.

A container is not taken for its host: cgroups of version 2 and 1 are read from the process's own group up to the root,
and the least limit holds. What a group uses does not count file pages that the kernel would give back
(`inactive_file`), as Docker and Kubernetes reckon it: the pages of a mapped model file are such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from node.hardware.host import Cores, Host

_CGROUP = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 60  # cgroup 1 says "none" with a huge number
# What llama.cpp's kernels profit from, most first; the names are those of /proc/cpuinfo.
_FEATURES = tuple("amx_int8 avx512f avx512_vnni avx_vnni avx2 avx fma f16c sve i8mm asimddp asimd".split())
_LEVELS = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX"), ("sve", "SVE"), ("asimd", "NEON"))
# ARM cores by part number, for machines whose /proc/cpuinfo gives no name: Linux, arch/arm64/include/asm/cputype.h.
_ARM_PARTS = {
    0xD03: "Cortex-A53", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510",
    0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cpu:
    """Cores and memory. `usable_cores` and the figures of memory respect the limits of a container; `fast_cores` are
    the physical cores of the fast kind that may be used, 0 where the system does not say."""

    name: str
    physical_cores: int
    logical_cores: int
    usable_cores: float
    memory_bytes: int
    available_bytes: int
    features: tuple[str, ...]
    is_limited: bool = False
    fast_cores: int = 0

    @property
    def level(self) -> str:
        """The widest vector instructions that llama.cpp would use; empty where the system does not say."""
        return next((name for feature, name in _LEVELS if feature in self.features), "")

    @property
    def threads(self) -> int:
        """How many threads should compute: one for each physical core of the fast kind that may be used. The parts of a
        step are equal, so the slowest core decides, and a core's second thread adds nothing to what it multiplies
        (llama.cpp, `cpu_get_num_math` in common/common.cpp, counts so too)."""
        return max(1, min(self.fast_cores or self.physical_cores, int(self.usable_cores)))


def detect(host: Host | None = None) -> Cpu | None:
    """This machine's processor; None where the system does not say."""
    host = host or Host()
    try:
        memory, cores = host.memory(), host.cores()
        limit, left = _memory_limit(host)
        quota = _quota(host)
        return Cpu(
            name=_name(host),
            physical_cores=cores.physical,
            logical_cores=cores.logical,
            usable_cores=min(cores.affinity, quota or cores.logical),
            memory_bytes=min(memory.total_bytes, limit or memory.total_bytes),
            available_bytes=min(memory.available_bytes, left) if limit else memory.available_bytes,
            features=_features(host),
            is_limited=bool(limit and limit < memory.total_bytes) or bool(quota and quota < cores.logical),
            fast_cores=_fast_cores(host, cores),
        )
    except Exception:  # psutil reads whatever the system shows, and a container may show less
        return None


# ---- cgroups --------------------------------------------------------------------------------------------------------


def _groups(host: Host, controller: str) -> Iterator[str]:
    """Folders of this process's group and those above it; `controller` is empty for cgroup 2."""
    for line in host.read("/proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            base = f"{_CGROUP}/{controllers}" if controller else _CGROUP
            if controller and not host.path(base).exists():
                base = f"{_CGROUP}/{controller}"
            # Inside a container the path may be the host's, which is not to be seen: then only the root's files answer.
            inner = PurePosixPath("/", path)
            for each in (inner, *inner.parents):
                yield base + str(each).rstrip("/")
            return
    yield f"{_CGROUP}/{controller}".rstrip("/")


def _quota(host: Host) -> float:
    """Cores that a quota allows; 0 without one."""
    found = []
    for group in _groups(host, ""):
        found.append(host.read(f"{group}/cpu.max").split())
    for group in _groups(host, "cpu"):
        found.append([host.read(f"{group}/cpu.cfs_quota_us"), host.read(f"{group}/cpu.cfs_period_us")])
    # "max", or -1: no limit.
    quotas = [int(w[0]) / int(w[1]) for w in found if len(w) == 2 and w[0].isdigit() and w[1].isdigit() and int(w[1])]
    return min(quotas, default=0.0)


def _memory_limit(host: Host) -> tuple[int, int]:
    """The least limit in bytes, and what is left of the fullest group; 0 and 0 for no limit."""
    limits: list[int] = []
    left: list[int] = []
    for controller, limit_file, used_file, inactive in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for group in _groups(host, controller):
            limit = host.read(f"{group}/{limit_file}")
            if limit.isdigit() and int(limit) < _NO_LIMIT:
                used = host.number(f"{group}/{used_file}") or 0
                spare = re.search(rf"^{inactive} (\d+)$", host.read(f"{group}/memory.stat"), re.MULTILINE)
                limits.append(int(limit))
                left.append(max(int(limit) - used + (int(spare[1]) if spare else 0), 0))
    return (min(limits), min(left)) if limits else (0, 0)


# ---- cores ----------------------------------------------------------------------------------------------------------

_CPUS = "/sys/devices/system/cpu"
# A little core has a third of a big one's capacity, or less; the middle ones of a phone have three quarters.
_BIG = 0.5
_MOST_CPUS = 8192  # of Linux


def _fast_cores(host: Host, cores: Cores) -> int:
    """Physical cores of the fast kind among those that this process may use; 0 where the system does not say.

    macOS: `hw.perflevel0` (sysctl, "performance levels", fastest first). Linux: the `cpus` of the event source
    `cpu_core` on Intel's hybrids (tools/perf/Documentation/intel-hybrid.txt), `cpu_capacity` on ARM
    (Documentation/ABI/testing/sysfs-devices-system-cpu), and siblings by `topology/thread_siblings_list`.
    """
    if host.system == "darwin":
        said = host.command(("sysctl", "-n", "hw.perflevel0.physicalcpu")).strip()
        return int(said) if said.isdigit() else 0
    allowed = cores.allowed or tuple(range(cores.logical))
    siblings = {cpu: host.read(f"{_CPUS}/cpu{cpu}/topology/thread_siblings_list") for cpu in allowed}
    capacities = {cpu: host.number(f"{_CPUS}/cpu{cpu}/cpu_capacity") or 0 for cpu in allowed}
    big = _listed(host.read("/sys/devices/cpu_core/cpus")) & set(allowed)
    if not big and all(capacities.values()):
        big = {cpu for cpu, capacity in capacities.items() if capacity > _BIG * max(capacities.values())}
    if not big and not all(siblings.values()):
        return 0
    return len({siblings[cpu] or cpu for cpu in big or allowed})


def _listed(text: str) -> set[int]:
    """The numbers of a list as the kernel writes it: `0-7,16`. Empty for anything else."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(last or first) > _MOST_CPUS:
            return set()
        found.update(range(int(first), int(last or first) + 1))
    return found


# ---- the processor --------------------------------------------------------------------------------------------------


def _fields(host: Host) -> dict[str, str]:
    """The fields of /proc/cpuinfo; of those that come once a core, the last one's."""
    lines = (line.partition(":") for line in host.read("/proc/cpuinfo").splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _name(host: Host) -> str:
    if host.system == "darwin":
        return host.command(("sysctl", "-n", "machdep.cpu.brand_string")).strip() or host.machine
    said = _fields(host)
    for key in ("model name", "Hardware", "Model"):
        if said.get(key):
            return said[key]
    part = said.get("CPU part", "")
    known = _ARM_PARTS.get(int(part, 16)) if re.fullmatch(r"0x[0-9a-fA-F]+", part) else None
    return known or host.machine


def _features(host: Host) -> tuple[str, ...]:
    if host.system == "darwin":
        return ("asimddp", "asimd") if host.machine == "arm64" else ()
    said = _fields(host)
    flags = set((said.get("flags") or said.get("Features") or "").split())
    return tuple(f for f in _FEATURES if f in flags)
