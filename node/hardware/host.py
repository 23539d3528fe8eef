"""Where a vendor's detection looks: files under a root, commands, the environment. Tests give a recorded machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_COMMAND_S = 1.5
_MOST_BYTES = 1 << 20  # of a file or an answer; what is looked at here is far smaller


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory in bytes; `available_bytes` is what could be taken without swapping."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Cores:
    """`affinity` is how many logical cores this process may run on, `allowed` which, where the system says that."""

    physical: int
    logical: int
    affinity: int
    allowed: tuple[int, ...] = ()


def run_command(argv: tuple[str, ...]) -> str:
    """What a command prints; empty where it is not installed, fails or does not end in time."""
    program = shutil.which(argv[0])
    if program is None:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_S,
            check=False,
        )
        return done.stdout[:_MOST_BYTES]
    return ""


def _memory() -> Memory:
    found = psutil.virtual_memory()
    return Memory(int(found.total), int(found.available))


def _cores() -> Cores:
    logical = psutil.cpu_count() or os.cpu_count() or 1
    allowed = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    return Cores(psutil.cpu_count(logical=False) or logical, logical, len(allowed) or logical, allowed)


# Where Windows shows its driver to Linux; the loader looks there only if the distribution has been told to.
_WSL_NVML = "/usr/lib/wsl/lib/libnvidia-ml.so.1"


def _nvml() -> Any:
    import pynvml

    if os.path.exists(_WSL_NVML):
        with contextlib.suppress(OSError):
            ctypes.CDLL(_WSL_NVML)  # what is loaded once is found by its name, wherever it came from
    return pynvml


@dataclass(frozen=True, slots=True)
class Host:
    """A machine as detection sees it; without arguments, this one.

    `nvml` imports NVIDIA's management library, and may raise whatever a broken installation raises.
    """

    root: Path = Path("/")
    system: str = sys.platform
    machine: str = field(default_factory=platform.machine)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    command: Callable[[tuple[str, ...]], str] = run_command
    memory: Callable[[], Memory] = _memory
    cores: Callable[[], Cores] = _cores
    nvml: Callable[[], Any] = _nvml

    def path(self, path: str) -> Path:
        """An absolute path of the machine."""
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        """A file's text without the space around it; empty if it cannot be read."""
        try:
            with self.path(path).open("rb") as file:
                return file.read(_MOST_BYTES).decode(errors="replace").strip("\0 \t\r\n")
        except (OSError, ValueError):
            return ""

    def may_open(self, path: str) -> bool:
        """Whether this user may read and write a device."""
        return os.access(self.path(path), os.R_OK | os.W_OK)

    def number(self, path: str) -> int | None:
        """A file's whole number, decimal or 0x…; None if it holds none."""
        with contextlib.suppress(ValueError):
            return int(self.read(path), 0)
        return None

    def names(self, path: str) -> list[str]:
        """What is in a folder, numbers in their order; empty if it cannot be read."""
        try:
            found = os.listdir(self.path(path))
        except OSError:
            return []
        return sorted(found, key=lambda n: (n.rstrip("0123456789"), int(n[len(n.rstrip("0123456789")) :] or 0)))

    def link(self, path: str) -> str:
        """The last name of what a link points to; empty if it is none."""
        try:
            return os.path.basename(os.readlink(self.path(path)))
        except OSError:
            return ""
