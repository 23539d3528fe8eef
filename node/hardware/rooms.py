"""From a machine to the memory that a model may take on it."""

from __future__ import annotations

from node.core.plan import Room, bounded, gpu_room, memory_room, together
from node.hardware.machine import Machine

# Graphics of a processor that llama.cpp computes on faster than on its cores.
_GOOD_SHARED = ("apple", "nvidia", "amd")


def rooms(machine: Machine, *, has_gpu: bool = True, most: int = 0) -> tuple[Room | None, Room | None]:
    """Where a model goes, and main memory; None for what is not there. `most` bytes of both together (0: no limit).

    llama.cpp is built for one vendor, so of several the one with the most usable memory counts. Without `has_gpu` (it
    was built for none) the processor computes: then both are one.
    """
    room, main = _rooms(machine, has_gpu)
    if room is None or not most:
        return room, main
    first = bounded(room, most)
    if main is None or room is main:
        return first, first if main else None
    return first, bounded(main, most - first.usable)


def _rooms(machine: Machine, has_gpu: bool) -> tuple[Room | None, Room | None]:
    cpu = machine.cpu
    main = memory_room(cpu.name, cpu.memory_bytes, cpu.available_bytes) if cpu else None
    if not has_gpu:
        return main, main
    by_vendor: dict[str, list[Room]] = {}
    for gpu in machine.gpus:
        if not gpu.problem and not gpu.is_shared:
            by_vendor.setdefault(gpu.vendor, []).append(gpu_room(gpu.name, gpu.memory_bytes, gpu.free_bytes))
    if by_vendor:
        return max((_of(each) for each in by_vendor.values()), key=lambda room: room.usable), main
    for gpu in machine.gpus:
        if not gpu.problem and gpu.vendor in _GOOD_SHARED and cpu:
            free = min(cpu.available_bytes, gpu.free_bytes)
            return memory_room(gpu.name, cpu.memory_bytes, free, gpu.memory_bytes), main
    return main, main


def _of(found: list[Room]) -> Room:
    """GPUs of one vendor together; but of MIG instances a process sees one (NVIDIA's MIG User Guide, "CUDA Device
    Enumeration"), so the best of them alone."""
    if any(" MIG " in room.name for room in found):
        return max(found, key=lambda room: room.usable)
    return together(found)
