"""What `doctor` says of processor, memory and GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from node.cli.check import FAIL, GIB, OK, WARN, Check
from node.core.plan import plan, tokens_per_s
from node.hardware.bandwidth import known_bytes_per_s
from node.hardware.cpu import Cpu
from node.hardware.gpu import Gpu
from node.hardware.idle import idle
from node.hardware.machine import Machine
from node.hardware.rooms import rooms
from node.models import catalogue, resolve

LOW_MEMORY, LEAST_MEMORY = 2 * GIB, GIB // 2


def hardware(machine: Machine) -> Iterator[Check]:
    """Processor, memory and GPUs, and whose detection failed."""
    cpu = machine.cpu
    if cpu is None:
        yield Check("processor", WARN, "the system does not say", "give --threads and --ctx yourself")
    else:
        cores = f"{cpu.physical_cores} cores"
        if cpu.usable_cores < cpu.physical_cores:
            cores += f", of which {cpu.usable_cores:g} may be used"
        yield Check("processor", OK, f"{cpu.name}, {cores}{', ' + cpu.level if cpu.level else ''}")
        free = f"{cpu.available_bytes / GIB:.1f} of {cpu.memory_bytes / GIB:.1f} GiB free"
        if cpu.is_limited:
            free += " (the limit of this container)"
        if cpu.available_bytes < LEAST_MEMORY:
            yield Check("memory", FAIL, free, "end other programs: not even a small model fits")
        elif cpu.available_bytes < LOW_MEMORY:
            yield Check("memory", WARN, free, "end other programs, or take a small model and --slots 4")
        else:
            yield Check("memory", OK, free)
    for gpu in machine.gpus:
        yield Check(f"GPU {gpu.vendor} {gpu.index}", WARN if gpu.problem else OK, describe(gpu), gpu.problem)
    for problem in machine.problems:
        yield Check("GPU", WARN, problem, "other hardware is not affected")
    if not machine.gpus and not machine.problems:
        yield Check("GPU", OK, "none: the processor computes")


def describe(gpu: Gpu) -> str:
    """A GPU in one line."""
    memory = f"{gpu.free_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.1f} GiB free"
    if gpu.is_shared:
        memory += " (shared with the processor)"
    return ", ".join(filter(None, (gpu.name, memory, gpu.architecture, gpu.driver and f"driver {gpu.driver}")))


def backend_on_gpu(machine: Machine, has_gpu: bool) -> Iterator[Check]:
    """Whether llama.cpp was built for the GPU that is there."""
    if found := idle(machine, has_gpu):
        yield Check("backend on GPU", WARN, found.found, found.advice)


def _reads(cpu: Cpu) -> float:
    return known_bytes_per_s(cpu, makes_folder=False)  # to look at a machine makes nothing on it


def planned(machine: Machine, reads: Callable[[Cpu], float] = _reads, most: int = 0) -> Check:
    """What this machine is good for, in `most` bytes (0: no limit); `reads` says how fast a processor reads memory."""
    room, main = rooms(machine, most=most)
    if room is None:
        return Check("plan", WARN, "the system does not say how much memory there is", "models plan --memory SIZE")
    speed = reads(machine.cpu) if room is main and machine.cpu else 0.0
    made = plan(catalogue.shapes(), catalogue.classes(), room, bytes_per_s=speed, here=resolve.here())
    if made is None:
        return Check("plan", WARN, f"no model of the catalogue fits {room.usable / GIB:.1f} GiB", "end other programs")
    takes = made.fit
    about, _ = tokens_per_s(takes.shape, speed)
    rate = f", about {about:.0f} tokens/s" if about else ""
    return Check(
        "plan",
        OK,
        f"{room.usable / GIB:.1f} GiB may be used ({room.rule}): {takes.shape.name} {takes.shape.quantization}, "
        f"{takes.slots} slots of {takes.context} tokens, {takes.candidates} candidates{rate}; `models plan` says why",
    )
