"""What to load on a machine, and how: the fit of models into memory.

Two plans are made of the same memory. The first is that of the design which Conclave started from: full copies of one
model, by a table of memory sizes (`TABLE`). The second is ours: the weights once, and what the other copies would have
taken becomes KV cache, that is, candidates and conversations; or a bigger model (`Plan.bigger`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from node.core.shape import Need, Shape, cells_for, kv_bytes_per_cell, need, state_bytes

GIB = 1 << 30
CONTEXT = 4096  # tokens a sequence, at least
MOST_CONTEXT = 32_768
# In main memory a slot has no longer context than this unless it is asked for: llama.cpp writes zeros to all of the KV
# cache when it starts, so the system counts it as used, in memory that other programs want too; and a processor takes
# minutes to read a longer prompt. Of a GPU's own memory nobody else wants the rest.
MOST_IN_MEMORY = 8192
SLOTS = 16  # sequences, if they fit
LEAST_SLOTS = 4
CANDIDATES = 8  # a prompt: batches of four and eight are what a machine computes for little more than one
# Memory of a machine -> what the original design loads there: class and quantization. The first line that fits counts.
TABLE = ((24, "14B", "Q4_K_M"), (16, "7B", "Q4_K_M"), (8, "3B", "Q6_K"))
# And what we take beyond its ends.
ABOVE = ((96, "70B", "Q4_K_M"), (48, "32B", "Q4_K_M"))
BELOW = ((4, "1.5B", "Q6_K"), (0, "0.5B", "Q8_0"))
MOST_COPIES = 4
# Slower than people read (250 words a minute) nobody waits for an answer.
READABLE = 5.0  # tokens a second
# What is on a machine already is kept to a fifth below that: the speed is an estimate, and a model that was fetched for
# it must not be passed over at the next start because memory was measured a little slower.
KEEPS = 0.8
# Of the speed at which a processor reads memory, decoding has had half: 42.5 tokens/s with 0.53 GB of weights, on two
# cores that read 46 GB/s (scripts/bench/RESULTS.md has the first figure).
SHARE = 0.5
IN_CACHES = 128 << 20  # bytes of weights that may stay in a processor's caches: memory does not decide then
_BIGGER = 1.2  # times the parameters, for a model to be worth the name
_NEARLY = 0.9  # a machine "with 16 GB" shows 14.9 to 16 GiB


@dataclass(frozen=True, slots=True)
class Room:
    """Memory for a model, in bytes. `usable` is what a model may take, by `rule`. `where` is gpu or memory."""

    where: str
    name: str
    total: int
    free: int
    usable: int
    rule: str


def gpu_room(name: str, total: int, free: int) -> Room:
    """A GPU with memory of its own: nine tenths of it, or what others leave."""
    usable = min(total * 9 // 10, free)
    rule = "90 % of the GPU's memory" if usable < free else "what other programs leave of the GPU's memory"
    return Room("gpu", name, total, free, usable, rule)


def memory_room(name: str, total: int, free: int, limit: int = 0) -> Room:
    """Main memory, for the processor or a GPU that shares it: all but 4 GiB (half of it where that is more), or what
    others leave, or what the system lets a GPU have (`limit`)."""
    kept = total - 4 * GIB
    usable, rule = (kept, "memory less 4 GiB") if kept > total // 2 else (total // 2, "half of the memory")
    if free < usable:
        usable, rule = free, "what other programs leave of the memory"
    if limit and limit < usable:
        usable, rule = limit, "what the system lets the GPU have"
    return Room("memory", name, total, free, max(usable, 0), rule)


def bounded(room: Room, most: int) -> Room:
    """No more of a room than its owner wants to give."""
    return room if room.usable <= most else replace(room, usable=max(most, 0), rule="--max-memory")


def together(rooms: Sequence[Room]) -> Room:
    """Several GPUs, over which a model's layers are spread."""
    if len(rooms) == 1:
        return rooms[0]
    return Room(
        rooms[0].where,
        " + ".join(room.name for room in rooms),
        sum(room.total for room in rooms),
        sum(room.free for room in rooms),
        sum(room.usable for room in rooms),
        rooms[0].rule + ", each",
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """A model in a room. `cells` is the whole KV cache in tokens, in main memory fewer than all slots could hold at
    once (`cells_for`): those that wait are kept outside of it. `gpu_layers` counts as llama.cpp does: all layers and
    one for the output."""

    shape: Shape
    slots: int
    context: int
    cells: int
    kv_type: str
    candidates: int
    gpu_layers: int
    need: Need


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load: `fit`, beside `copies` full ones of the same model, as a process each would take. `why` explains,
    `bytes_per_s` is how fast the processor reads weights, 0 where that is not known."""

    room: Room
    fit: Fit
    copies: int
    copy_bytes: int
    bigger: Fit | None
    why: tuple[str, ...]
    bytes_per_s: float = 0.0


def tokens_per_s(shape: Shape, bytes_per_s: float) -> tuple[float, float]:
    """About how many tokens a second one candidate is written with, and how many at most; zeros if that is not known.
    Each token takes the weights of the model, or of the experts in use, from memory once."""
    most = bytes_per_s / shape.read_bytes if shape.read_bytes > IN_CACHES else 0.0
    return SHARE * most, most


def budget(room: Room) -> str:
    """What a model may take of a room, for a person."""
    return f"{room.name}: {room.usable / GIB:.1f} GiB may be used: {room.rule}"


def fit(
    shape: Shape,
    usable: int,
    *,
    on_gpu: bool,
    kv_types: Sequence[str] = ("f16", "q8_0"),
    swa_full: bool = True,
) -> Fit | None:
    """The best way to load a model into `usable` bytes; None if it does not fit with `LEAST_SLOTS`.

    First as many slots as are wanted at the least context, then longer contexts; a smaller KV type only where it is
    needed. Without `swa_full` layers with a sliding window keep that only.
    """
    shape = replace(shape, copies_input=shape.is_tied) if on_gpu else shape
    for kv_type in kv_types:
        found = _fit(shape, usable, kv_type, on_gpu, swa_full)
        if found is not None:
            return found
    return None


def _fit(shape: Shape, usable: int, kv_type: str, on_gpu: bool, swa_full: bool) -> Fit | None:
    context = min(CONTEXT, shape.context or CONTEXT)

    def takes(slots: int, context: int) -> Need:
        return need(shape, slots * context, slots, kv_type, swa_full=swa_full)

    slots = SLOTS
    while slots > LEAST_SLOTS and takes(slots, context).total > usable:
        slots -= 4 if slots > 8 else 1
    if takes(slots, context).total > usable:
        return None
    longest = MOST_CONTEXT if on_gpu else MOST_IN_MEMORY
    most = min(longest, shape.context or longest)
    while slots == SLOTS and context * 2 <= most and takes(slots, context * 2).total <= usable:
        context *= 2
    cells = slots * context if on_gpu else cells_for(slots, context, kv_bytes_per_cell(shape, kv_type))
    return Fit(
        shape,
        slots,
        context,
        cells,
        kv_type,
        min(CANDIDATES, slots // 4 * 4),
        shape.layers + 1 if on_gpu else 0,
        need(shape, cells, slots, kv_type, swa_full=swa_full),
    )


def copy_bytes(shape: Shape) -> int:
    """A full copy of a model as a process of its own: its weights, its context of `CONTEXT` tokens, its buffers."""
    alone = need(shape, CONTEXT, 1, "f16")
    return alone.total - alone.embedding


def offloaded(shape: Shape, usable: int, fitted: Fit) -> int:
    """Layers that go to a GPU with `usable` bytes when not all do, counted as llama.cpp does (the output first, then
    layers from the last); each takes its weights and its part of the KV cache."""
    left = usable - fitted.need.compute - fitted.need.output - fitted.need.embedding - shape.output_bytes
    left -= shape.input_bytes if shape.is_tied else 0
    if left < 0:
        return 0
    layers = 1
    for layer in reversed(range(shape.layers)):
        left -= shape.layer_bytes[layer] + kv_bytes_per_cell(shape, fitted.kv_type, layer=layer) * fitted.cells
        left -= state_bytes(shape, fitted.slots, layer=layer)
        if left < 0:
            break
        layers += 1
    return layers


def shared(
    shape: Shape, gpu: Room, main: Room, *, kv_types: Sequence[str] = ("f16", "q8_0"), swa_full: bool = True
) -> Fit | None:
    """A model that is too big for the GPU alone: some layers on it, the others for the processor. None if both together
    are too small."""
    whole = fit(shape, gpu.usable, on_gpu=True, kv_types=kv_types, swa_full=swa_full)
    if whole is not None:
        return whole
    found = fit(shape, gpu.usable + main.usable, on_gpu=True, kv_types=kv_types, swa_full=swa_full)
    if found is None:
        return None
    layers = offloaded(shape, gpu.usable, found)
    on_main = shape.weight_bytes - sum(shape.layer_bytes[shape.layers - max(layers - 1, 0) :])
    return replace(found, gpu_layers=layers) if on_main <= main.usable else None


def plan(
    shapes: Iterable[Shape],
    classes: dict[str, str],
    room: Room,
    *,
    swa_full: bool = True,
    bytes_per_s: float = 0.0,
    here: Collection[tuple[str, str]] = (),
) -> Plan | None:
    """What to load in a room, of models by their class (name -> class); None if nothing fits.

    Where it is known how fast weights are read (`bytes_per_s`), as for a processor, what fits and would be too slow to
    be read along is passed over. `here` are the models on this machine, by name and quantization: these may be a little
    slower (`KEEPS`), as for `pick`, so that a plan and the start of a node agree.
    """
    offers = list(shapes)
    on_gpu = room.where == "gpu"
    nominal = room.total / GIB / _NEARLY
    why = [budget(room)]
    for least, size, quantization in (*ABOVE, *TABLE, *BELOW):
        if nominal < least:
            continue
        for shape in offers:
            if classes.get(shape.name) != size or shape.quantization != quantization:
                continue
            found = fit(shape, room.usable, on_gpu=on_gpu, swa_full=swa_full)
            if found is not None and least and is_slow(shape, bytes_per_s, is_here=_is_in(here, shape)):
                about, _ = tokens_per_s(shape, bytes_per_s)
                why.append(f"{shape.name} {quantization} fits, but would write about {about:.1f} tokens/s")
                break
            if found is not None:
                each = copy_bytes(shape)
                copies = min(room.usable // each, MOST_COPIES)
                bigger = _bigger(offers, found, room, swa_full, bytes_per_s, here)
                why += _reasons(found, copies, each, least, len(why) > 1, swa_full)
                if bytes_per_s:
                    why.append(
                        f"a token takes {shape.read_bytes / GIB:.1f} GiB of weights from memory, which this machine "
                        f"reads with {bytes_per_s / 1e9:.0f} GB/s (measured; decoding gets half of it or more)"
                    )
                return Plan(room, found, copies, each, bigger, tuple(why), bytes_per_s)
            why.append(f"{shape.name} {quantization} does not fit: {shape.weight_bytes / GIB:.1f} GiB of weights")
            break
    return None


def is_slow(shape: Shape, bytes_per_s: float, *, is_here: bool = False) -> bool:
    """Whether a model is known to write slower than people read; one that is on the machine may be a little slower."""
    about, _ = tokens_per_s(shape, bytes_per_s)
    return 0 < about < READABLE * (KEEPS if is_here else 1)


def _is_in(here: Collection[tuple[str, str]], shape: Shape) -> bool:
    return (shape.name, shape.quantization) in here


@dataclass(frozen=True, slots=True)
class Pick:
    """Which of some models to load, by its place among them; None: none fits. `slow` are the places of those that fit
    and would write slower than people read."""

    at: int | None
    slow: tuple[int, ...] = ()


def pick(shapes: Iterable[Shape], room: Room, bytes_per_s: float = 0.0) -> Pick:
    """Of models that are there, the biggest first, the first that fits and is not known to be slow; if all that fit
    are, the quickest of them. Looks at no more models than it must. All are on the machine: see `KEEPS`."""
    slow: list[tuple[float, int]] = []
    for at, shape in enumerate(shapes):
        if fit(shape, room.usable, on_gpu=room.where == "gpu") is None:
            continue
        if not is_slow(shape, bytes_per_s, is_here=True):
            return Pick(at, tuple(i for _, i in slow))
        slow.append((tokens_per_s(shape, bytes_per_s)[0], at))
    quickest = max(slow, key=lambda each: each[0], default=None)
    return Pick(quickest[1] if quickest else None, tuple(i for _, i in slow))


def _bigger(
    offers: list[Shape],
    found: Fit,
    room: Room,
    swa_full: bool,
    bytes_per_s: float,
    here: Collection[tuple[str, str]],
) -> Fit | None:
    """The model with the most parameters that fits beside `LEAST_SLOTS` contexts; on a GPU, with all its layers."""
    best: Fit | None = None
    for shape in offers:
        if shape.quantization != "Q4_K_M" or shape.parameters < _BIGGER * found.shape.parameters:
            continue
        if is_slow(shape, bytes_per_s, is_here=_is_in(here, shape)):
            continue
        other = fit(shape, room.usable, on_gpu=room.where == "gpu", swa_full=swa_full)
        if other is not None and (best is None or shape.parameters > best.shape.parameters):
            best = other
    return best


def _reasons(found: Fit, copies: int, each: int, least: int, passed: bool, swa_full: bool) -> list[str]:
    """`passed`: bigger ones of those that are proposed do not fit or are slow, which is said before."""
    shape, takes = found.shape, found.need
    name = f"{shape.name} {shape.quantization}"
    if not least:
        why = f"{name} is the smallest"
    elif passed:
        why = f"{name} is the next smaller one that we propose"
    else:
        why = f"{name} is what we propose from {least} GiB on: it leaves memory for many conversations at once"
    lines = [why]
    if copies:
        lines.append(
            f"programs that load the model again for each voter would hold {copies} here, {each / GIB:.1f} GiB each"
        )
    is_shared = found.cells < found.slots * found.context
    cells = f", {found.cells} tokens in all; more wait outside" if is_shared else ""
    lines.append(
        f"weights once: {takes.weights / GIB:.1f} GiB, KV {takes.kv / GIB:.1f} GiB ({found.slots} x {found.context} "
        f"tokens, {found.kv_type}{cells}), buffers {(takes.compute + takes.output + takes.embedding) / GIB:.1f} GiB"
    )
    if shape.window:
        kept = "kept whole, so that topics can be rolled back" if swa_full else "all that is kept (--swa small)"
        lines.append(f"its sliding windows of {shape.window} tokens are {kept}")
    return lines
