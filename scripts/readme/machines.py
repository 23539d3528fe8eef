"""What `doctor` and `models plan` say of recorded machines (tests/hardware/machines), as the README's table.

python scripts/readme/machines.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/hardware")]

from recorded import machine  # noqa: E402

from node.cli.machine import describe  # noqa: E402
from node.core.plan import GIB, plan  # noqa: E402
from node.hardware.machine import detect  # noqa: E402
from node.hardware.rooms import rooms  # noqa: E402
from node.models import catalogue  # noqa: E402

SHOWN = (
    "desktop-rtx4090", "workstation-mixed", "server-a100-mig", "strix-halo", "arc-a770", "macbook-m3-max",
    "phone-snapdragon", "container-small",
)  # fmt: skip


def main() -> None:
    print("| found | may be used | model, once | slots | full copies | or |")
    print("|---|---|---|---|---|---|")
    for name in SHOWN:
        with tempfile.TemporaryDirectory() as folder:
            found = detect(machine(name, Path(folder)))
        room, _ = rooms(found)
        assert room is not None
        assert found.cpu is not None
        made = plan(catalogue.shapes(), catalogue.classes(), room)
        cpu = f"{found.cpu.name}, {found.cpu.usable_cores:g} threads, {found.cpu.available_bytes / GIB:.1f} GiB free"
        shown = "; ".join(describe(gpu) for gpu in found.gpus) or cpu
        if made is None:
            print(f"| {shown} | {room.usable / GIB:.1f} GiB | none | | | |")
            continue
        fits, other = made.fit, made.bigger
        bigger = f"{other.shape.name} {other.shape.quantization}, {other.slots} slots" if other else ""
        print(
            f"| {shown} | {room.usable / GIB:.1f} GiB ({room.rule}) | {fits.shape.name} {fits.shape.quantization} | "
            f"{fits.slots} x {fits.context} | {made.copies} | {bigger} |"
        )


if __name__ == "__main__":
    main()
