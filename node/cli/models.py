"""`models`: what there is, what fits this machine and why, fetch and remove."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

from node.cli import elsewhere, pull, render, spread
from node.cli.readers import nearest
from node.cli.wrap import fitted
from node.config import load
from node.core.plan import GIB, Fit, Plan, Room, budget, fit, gpu_room, plan, shared, together, tokens_per_s
from node.core.quantization import QUANTIZATIONS
from node.core.shape import Shape
from node.errors import InvalidRequest, NotFound
from node.hardware.machine import detect
from node.hardware.rooms import rooms
from node.home import home
from node.models import catalogue, checksum, library, resolve, split
from node.models.catalogue import Entry
from node.models.shape import shape

ACTIONS = ("list", "plan", "pull", "rm")
MIB = 1 << 20


def run(options: Namespace) -> int:
    """Carry out one of `ACTIONS`. Raises ConclaveError."""
    action = options.action or "list"
    if action not in ACTIONS:
        raise InvalidRequest(f"models {action!r}: there are {', '.join(ACTIONS)}{nearest(action, ACTIONS)}")
    if action in ("pull", "rm"):
        if not options.name:
            raise InvalidRequest(f"models {action} needs a name: `models list` shows them")
        return pull.run(options) if action == "pull" else _remove(options.name, sure=bool(options.yes))
    room, main = _rooms(options.memory)
    if action == "plan":
        return _plan(options, room, main)
    return _list(options, room)


def _rooms(memory: tuple[int, ...] | None) -> tuple[Room, Room | None]:
    """Where models go: this machine's memory, or GPUs of the sizes that were stated."""
    if memory:
        return together([gpu_room(f"a GPU of {size / GIB:g} GiB", size, size) for size in memory]), None
    room, main = rooms(detect(), most=load({}, os.environ, home().config / "conclave.toml").max_memory_bytes)
    if room is None:
        raise NotFound("the system does not say how much memory it has: state it, as in --memory 16GiB")
    return room, main


# ---- plan -----------------------------------------------------------------------------------------------------------


def _plan(options: Namespace, room: Room, main: Room | None) -> int:
    swa_full = options.swa != "small"
    if options.name:
        wanted = _shape_of(options.name)
        on_gpu = room.where == "gpu"
        if on_gpu and main:
            found = shared(wanted, room, main, swa_full=swa_full)
        else:
            found = fit(wanted, room.usable, on_gpu=on_gpu, swa_full=swa_full)
        if found is None:
            return spread.run(options, wanted, room)
        made: Plan | None = Plan(room, found, 0, 0, None, (budget(room),), _reads(room, main))
    else:
        made = plan(
            catalogue.shapes(),
            catalogue.classes(),
            room,
            swa_full=swa_full,
            bytes_per_s=_reads(room, main),
            here=resolve.here() if room is main else (),
        )
    if options.json:
        print(json.dumps(as_json(made, room), ensure_ascii=False, indent=2))
    elif made is not None:
        print("\n".join(fitted(line, sys.stdout, 4) for line in lines(made)))
    if made is None:
        print(f"no model of the catalogue fits {room.usable / GIB:.1f} GiB", file=sys.stderr)
        return 1
    return 0


def _reads(room: Room, main: Room | None) -> float:
    """Bytes a second at which weights are read, where the processor of this machine does it; 0: not known."""
    from node.hardware.bandwidth import known_bytes_per_s  # numpy takes longer than the rest of a command

    cpu = detect().cpu if room is main else None
    return known_bytes_per_s(cpu) if cpu else 0.0


def _shape_of(name: str) -> Shape:
    """The shape of a file, of a model on this machine, or of one of the catalogue (NAME or NAME:QUANT)."""
    entry, quantization = catalogue.find_with_quantization(name)
    if entry is None or not quantization:
        try:
            file = resolve.resolve(name)
            return replace(shape(file.head), name=file.name)
        except NotFound:
            if entry is None:
                raise
        except InvalidRequest as e:
            raise InvalidRequest(e.message.removeprefix("--model ")) from None
    return entry.shape(_known(quantization or "Q4_K_M"))


def _known(quantization: str) -> str:
    found = next((q for q in QUANTIZATIONS if q.lower() == quantization.lower()), "")
    if not found:
        raise InvalidRequest(f"{quantization!r}: a plan knows {', '.join(QUANTIZATIONS)}")
    return found


def as_json(made: Plan | None, room: Room) -> dict[str, object]:
    """What `models plan --json` prints."""
    memory = asdict(room)
    if made is None:
        return {"plan": None, "memory": memory}
    return {
        "plan": {
            **_fit_json(made.fit),
            "seed_instances": made.copies,
            "seed_instance_bytes": made.copy_bytes,
            "bigger": _fit_json(made.bigger) if made.bigger else None,
            "tokens_per_s": round(tokens_per_s(made.fit.shape, made.bytes_per_s)[0], 1) or None,
            "why": list(made.why),
        },
        "memory": memory,
    }


def _fit_json(found: Fit) -> dict[str, object]:
    return {
        "model": found.shape.name,
        "quantization": found.shape.quantization,
        "slots": found.slots,
        "ctx": found.context,
        "candidates": found.candidates,
        "kv_type": found.kv_type,
        "gpu_layers": found.gpu_layers,
        "weight_bytes": found.need.weights,
        "kv_bytes": found.need.kv,
        "buffer_bytes": found.need.compute + found.need.output,
        "bytes": found.need.total,
    }


def lines(made: Plan) -> list[str]:
    """A plan for a person."""
    out = [made.why[0]]
    if made.copies:
        out.append(
            f"a copy a voter:      {made.copies} x {made.fit.shape.name} {made.fit.shape.quantization}, "
            f"{made.copy_bytes / GIB:.1f} GiB each, as programs that share nothing"
        )
    out.append(f"Conclave:            {describe(made.fit)}{_speed(made.fit, made)}")
    if made.bigger:
        out.append(f"or a bigger model:   {describe(made.bigger)}{_speed(made.bigger, made)}")
    out += [f"  because {reason}" for reason in made.why[1:]]
    if made.room.where == "memory":
        out.append(
            "a node takes less with --max-memory GIB, --slots N or --ctx TOKENS, and longer texts with a larger --ctx"
        )
    return out


def _speed(found: Fit, made: Plan) -> str:
    about, most = tokens_per_s(found.shape, made.bytes_per_s)
    return f", about {about:.0f} tokens/s, {most:.0f} at most" if about >= 1 else ", under 1 token/s" if about else ""


def describe(found: Fit) -> str:
    """A fit in one line."""
    takes = found.need
    line = (
        f"{found.shape.name} {found.shape.quantization} once, {found.slots} slots of {found.context} tokens "
        f"({found.kv_type}), {found.candidates} candidates: {takes.total / GIB:.1f} GiB"
    )
    layers = found.shape.layers + 1
    return line + (f", {found.gpu_layers} of {layers} layers on the GPU" if 0 < found.gpu_layers < layers else "")


# ---- list -----------------------------------------------------------------------------------------------------------


def _list(options: Namespace, room: Room) -> int:
    demo = library.Local(resolve.BUNDLED.stem, resolve.BUNDLED, resolve.BUNDLED.stat().st_size, "bundled")
    here = [*library.find(os.environ, home().data), demo]
    on_gpu = room.where == "gpu"
    known = [(entry, fit(entry.shape("Q4_K_M"), room.usable, on_gpu=on_gpu)) for entry in catalogue.entries()]
    others, only = elsewhere.models(here)

    def where(entry: Entry) -> str:
        """Who has a quantization of a model of the catalogue; the hub has all."""
        ours = ["here"] if library.matching(entry.name, here) else []
        nodes = [n for each in library.matching(entry.name, only) for n in each.nodes]
        return ", ".join(dict.fromkeys((*ours, *nodes))) or "hub"

    if options.json:
        said = {
            "catalogue": [{**_entry_json(entry, found), "where": where(entry)} for entry, found in known],
            "here": [
                {**asdict(each), "path": str(each.path), "nodes": nodes, "sha256": checksum.kept(each.path) or None}
                for each, nodes in zip(here, others, strict=True)
            ],
            "elsewhere": [asdict(each) for each in only],
        }
        print(json.dumps(said, ensure_ascii=False, indent=2))
        return 0
    to = render.console(sys.stdout)
    to.print("on this machine (--model NAME):")
    local = [
        (each.name, _size(each.size), ", ".join(("here", *map(render.one_line, nodes))), each.place, str(each.path))
        for each, nodes in zip(here, others, strict=True)
    ]
    render.table(to, ("name", "size", "where", "from", "file"), local, right=(1,), spare=(3, 4))
    if only:
        to.print("\non other nodes (models pull NAME, or --model NAME):")
        more = [(render.one_line(m.name), _size(m.size), ", ".join(map(render.one_line, m.nodes))) for m in only]
        render.table(to, ("name", "size", "where"), more, right=(1,))
    to.print(f"\nto be had (models pull NAME); what fits {room.usable / GIB:.1f} GiB here:")
    head = ("name", "Q4_K_M", "slots x tokens", "where", "trained for", "window", "tools", "licence")
    rows = [
        (
            entry.name,
            _size(entry.shape("Q4_K_M").weight_bytes),
            _fits(entry, found, room),
            render.one_line(where(entry)),
            f"{entry.facts.context // 1024}k",
            str(entry.facts.window or "-"),
            entry.tools,
            entry.licence,
        )
        for entry, found in known
    ]
    render.table(to, head, rows, right=(1,), spare=(5, 7, 6, 4, 3, 1))
    if any(row[2] == "--swa small" for row in rows):
        render.prose(to, "--swa small: fits a node with that option, which keeps the KV of its sliding windows only")
    return 0


def _fits(entry: Entry, found: Fit | None, room: Room) -> str:
    """How much of a model fits; of one that does not, why."""
    if found is not None:
        return f"{found.slots} x {found.context}"
    wanted = entry.shape("Q4_K_M")
    if wanted.window and fit(wanted, room.usable, on_gpu=room.where == "gpu", swa_full=False) is not None:
        return "--swa small"
    return "KV too big" if wanted.weight_bytes < room.usable else "too big"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _entry_json(entry: Entry, found: Fit | None) -> dict[str, object]:
    return {
        "name": entry.name,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "repo": entry.repo,
        "context": entry.facts.context,
        "window": entry.facts.window,
        "template": entry.template,
        "tools": entry.tools,
        "source": entry.source,
        "checked": entry.checked,
        "fits": _fit_json(found) if found else None,
    }


# ---- rm ----------------------------------------------------------------------------------------------------


def _remove(name: str, *, sure: bool) -> int:
    here = library.find(os.environ, home().data)
    found = [m for m in here if str(m.path) == name] or library.matching(name, here)
    if not found and name in ("bundled", resolve.BUNDLED.stem):
        raise InvalidRequest("the bundled model is part of Conclave: it goes with that")
    if not found:
        raise NotFound(f"{name!r} is not on this machine: `models list` shows what is")
    if len(found) > 1:
        raise InvalidRequest(f"{name!r} means {', '.join(m.name for m in found)}: give one whole name")
    [model] = found
    if not model.is_ours:
        raise InvalidRequest(f"{model.name} belongs to {model.place}: remove it there ({model.path})")
    if not sure and not _confirmed(model):
        print("nothing was removed", file=sys.stderr)
        return 1
    for each in split.parts(model.path):
        real = Path(os.path.realpath(each))
        each.unlink(missing_ok=True)
        checksum.beside(each).unlink(missing_ok=True)
        if real != each:
            real.unlink(missing_ok=True)  # the hub's cache keeps the bytes elsewhere and links to them
    print(f"{model.name} is removed: {_size(model.size)}")
    return 0


def _confirmed(model: library.Local) -> bool:
    """A person is asked; a script that says `rm` means it."""
    if not sys.stdin.isatty():
        return True
    question = f"Remove {model.name}, {_size(model.size)} ({model.path})? [y/N] "
    try:
        print(question, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return False
