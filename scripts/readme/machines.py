"""What `doctor` and `models plan` say of recorded machines (tests/hardware/machines): writes machines.md beside this
file, a table and then all that they print.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/hardware")]

from recorded import machine  # noqa: E402

from node.cli.machine import describe, hardware, planned  # noqa: E402
from node.cli.models import lines  # noqa: E402
from node.core.plan import GIB, plan  # noqa: E402
from node.hardware.machine import Machine, detect  # noqa: E402
from node.hardware.rooms import rooms  # noqa: E402
from node.models import catalogue  # noqa: E402

SHOWN = (
    "desktop-rtx4090", "workstation-mixed", "server-a100-mig", "strix-halo", "arc-a770", "macbook-m3-max",
    "phone-snapdragon", "container-small",
)  # fmt: skip
PAGE = Path(__file__).with_name("machines.md")
HEAD = """# Eight machines

What `python -m node doctor` says of the hardware, and what `python -m node models plan` says, on eight machines that
are recorded as what their files, commands and management library say
([tests/hardware/machines](../../tests/hardware/machines)): none of them was there. Doctor's other lines are about the
network, the disk and the program, so they are left out. How fast a processor's memory is was not recorded, so no plan
says how fast tokens are written.
Written by `python scripts/readme/machines.py`.
"""


def found(name: str) -> Machine:
    with tempfile.TemporaryDirectory() as folder:
        return detect(machine(name, Path(folder)))


def page() -> str:
    """All of machines.md."""
    return HEAD + "\n" + "\n".join(table()) + "\n" + "".join(_section(name) for name in SHOWN)


def _section(name: str) -> str:
    here = found(name)
    room, _ = rooms(here)
    assert room is not None
    made = plan(catalogue.shapes(), catalogue.classes(), room)
    said = [line for check in (*hardware(here), planned(here, lambda _: 0.0)) for line in check.lines()]
    planning = lines(made) if made else [f"no model of the catalogue fits {room.usable / GIB:.1f} GiB"]
    out = [
        "",
        f"## {name}",
        "",
        "```",
        "$ python -m node doctor",
        *said,
        "",
        "$ python -m node models plan",
        *planning,
        "```",
    ]
    return "\n".join(out) + "\n"


def table() -> Iterator[str]:
    """A line a machine."""
    yield "| found | may be used | model, once | slots | full copies | or |"
    yield "|---|---|---|---|---|---|"
    for name in SHOWN:
        here = found(name)
        room, _ = rooms(here)
        assert room is not None
        assert here.cpu is not None
        made = plan(catalogue.shapes(), catalogue.classes(), room)
        cpu = f"{here.cpu.name}, {here.cpu.usable_cores:g} threads, {here.cpu.available_bytes / GIB:.1f} GiB free"
        shown = "; ".join(describe(gpu) for gpu in here.gpus) or cpu
        if made is None:
            yield f"| {shown} | {room.usable / GIB:.1f} GiB | none | | | |"
            continue
        fits, other = made.fit, made.bigger
        bigger = f"{other.shape.name} {other.shape.quantization}, {other.slots} slots" if other else ""
        yield (
            f"| {shown} | {room.usable / GIB:.1f} GiB ({room.rule}) | {fits.shape.name} {fits.shape.quantization} | "
            f"{fits.slots} x {fits.context} | {made.copies} | {bigger} |"
        )


if __name__ == "__main__":
    PAGE.write_text(page())
