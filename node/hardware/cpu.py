"""The processor and memory of this machine, as far as this process may use them."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
# What llama.cpp's kernels profit from, most first; the names are those of /proc/cpuinfo.
_FEATURES = ("avx512f", "avx2", "avx", "fma", "f16c", "asimd", "sve", "i8mm")


@dataclass(frozen=True, slots=True)
class Cpu:
    """Cores and memory. `usable_cores` and `memory_bytes` respect the limits of a container."""

    name: str
    physical_cores: int
    logical_cores: int
    usable_cores: float
    memory_bytes: int
    available_bytes: int
    features: tuple[str, ...]


def detect() -> Cpu | None:
    """This machine's processor; None where the system does not say."""
    try:
        memory = psutil.virtual_memory()
        logical = psutil.cpu_count() or os.cpu_count() or 1
        limit, used = _memory_limit()
        total = min(memory.total, limit) if limit else memory.total
        available = min(memory.available, max(limit - used, 0)) if limit else memory.available
        return Cpu(
            name=_name(),
            physical_cores=psutil.cpu_count(logical=False) or logical,
            logical_cores=logical,
            usable_cores=min(_affinity(logical), _quota() or logical),
            memory_bytes=int(total),
            available_bytes=int(available),
            features=_features(),
        )
    except Exception:  # psutil reads whatever the system shows, and a container may show less
        return None


def _affinity(logical: int) -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _quota() -> float:
    """Cores that a container's quota allows; 0 without one (cgroup 2, then 1)."""
    words = _read(_CGROUP / "cpu.max").split()
    if not words:
        words = [_read(_CGROUP / "cpu/cpu.cfs_quota_us"), _read(_CGROUP / "cpu/cpu.cfs_period_us")]
    try:
        quota, period = (int(w) for w in words)
    except ValueError:  # "max": no limit
        return 0.0
    return quota / period if quota > 0 and period > 0 else 0.0


def _memory_limit() -> tuple[int, int]:
    """A container's limit and use, in bytes; 0 for no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        text = _read(_CGROUP / limit)
        if text.isdigit() and int(text) < 1 << 60:  # cgroup 1 says "none" with a huge number
            now = _read(_CGROUP / used)
            return int(text), int(now) if now.isdigit() else 0
    return 0, 0


def _cpuinfo(field: str) -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""


def _name() -> str:
    if sys.platform == "darwin":
        import subprocess

        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=5).stdout.strip()
        if found:
            return found
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _features() -> tuple[str, ...]:
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(f for f in _FEATURES if f in flags)
