"""The whole machine: every vendor is asked in a thread of its own, so that none waits for another or falls with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.hardware import amd, apple, intel, nvidia, qualcomm
from node.hardware import cpu as processor
from node.hardware.cpu import Cpu
from node.hardware.gpu import Gpu, Unusable
from node.hardware.host import Host

Vendor = Callable[[Host], tuple[Gpu, ...] | None]
VENDORS: dict[str, Vendor] = {
    "NVIDIA": nvidia.detect,
    "AMD": amd.detect,
    "Intel": intel.detect,
    "Apple": apple.detect,
    "Qualcomm": qualcomm.detect,
}
# A driver that hangs must not hang the node; one that wakes a GPU takes a second.
PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has. `problems` says in one line each which vendor's detection failed, and how."""

    cpu: Cpu | None
    gpus: tuple[Gpu, ...] = ()
    problems: tuple[str, ...] = ()


def detect(host: Host | None = None, vendors: dict[str, Vendor] | None = None, patience: float = PATIENCE_S) -> Machine:
    """This machine, or a recorded one. Never raises; waits `patience` seconds at most."""
    host = host or Host()
    asked = VENDORS if vendors is None else vendors
    found: dict[str, tuple[Gpu, ...]] = {}
    problems: dict[str, str] = {}

    def ask(name: str, vendor: Vendor) -> None:
        try:
            found[name] = vendor(host) or ()
        except Unusable as e:
            problems[name] = f"{name}: {e}"
        except Exception as e:
            problems[name] = f"{name}: detection failed with {e!r}"

    threads = {
        name: threading.Thread(target=ask, args=(name, vendor), name=f"detect-{name}", daemon=True)
        for name, vendor in asked.items()
    }
    for thread in threads.values():
        thread.start()
    cpu = processor.detect(host)
    until = time.monotonic() + patience
    for name, thread in threads.items():
        thread.join(max(until - time.monotonic(), 0.0))
        if thread.is_alive():
            problems.setdefault(name, f"{name}: its driver does not answer within {patience:g} s")
    gpus = tuple(gpu for name in asked if name not in problems for gpu in found.get(name, ()))
    return Machine(cpu, gpus, tuple(problems[name] for name in asked if name in problems))
