"""A machine from a text file: what its files, commands and management library say, in the formats of their documents.

A file is made of sections, each begun by a line `=== KIND WHAT`: `host SYSTEM MACHINE`, `memory TOTAL AVAILABLE` in
bytes, `cores PHYSICAL LOGICAL AFFINITY`, `environ NAME VALUE`, and, with the lines that follow, `file PATH`,
`link PATH` (its target), `command NAME` (what it prints) and `nvml` (TOML, see `Nvml`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from node.hardware.host import Cores, Host, Memory

MACHINES = Path(__file__).parent / "machines"


class NVMLError(Exception):
    """As pynvml's: what cannot be answered raises."""


class Nvml:
    """The calls of pynvml that we make, answered from a table: `driver`, and `gpu`, a list with `name`, `uuid`,
    `total`, `free`, `capability`, and where MIG is on `mig`, a list with `name`, `uuid`, `total`, `free` (or {})."""

    def __init__(self, table: dict[str, Any]) -> None:
        self._table = table
        self.is_open = False

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlSystemGetDriverVersion(self) -> str:
        return str(self._table["driver"])

    def nvmlDeviceGetCount(self) -> int:
        assert self.is_open
        return len(self._table["gpu"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        gpu: dict[str, Any] = self._table["gpu"][index]
        if gpu.get("lost"):
            raise NVMLError("GPU is lost")
        return gpu

    def nvmlDeviceGetUUID(self, gpu: dict[str, Any]) -> str:
        return str(gpu["uuid"])

    def nvmlDeviceGetName(self, gpu: dict[str, Any]) -> str:
        return str(gpu["name"])

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, Any]) -> SimpleNamespace:
        if "total" not in gpu:
            raise NVMLError("Not Supported")
        return SimpleNamespace(total=gpu["total"], free=gpu["free"], used=gpu["total"] - gpu["free"])

    def nvmlDeviceGetCudaComputeCapability(self, gpu: dict[str, Any]) -> list[int]:
        return list(gpu["capability"])

    def nvmlDeviceGetMigMode(self, gpu: dict[str, Any]) -> list[int]:
        if "mig" not in gpu:
            raise NVMLError("Not Supported")
        return [1, 1] if gpu["mig"] else [0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: dict[str, Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: dict[str, Any], index: int) -> dict[str, Any]:
        instances: list[dict[str, Any]] = gpu["mig"]
        if index >= len(instances) or not instances[index]:
            raise NVMLError("Not Found")
        return instances[index]


def _sections(text: str) -> Iterator[tuple[str, str, str]]:
    for part in f"\n{text}".split("\n=== ")[1:]:
        head, _, body = part.partition("\n")
        kind, _, what = head.partition(" ")
        yield kind, what.strip(), body


def machine(name: str, root: Path) -> Host:
    """The machine recorded in machines/NAME.txt, its files written under `root`."""
    return host((MACHINES / f"{name}.txt").read_text(), root)


def host(text: str, root: Path) -> Host:
    """The machine that a text describes."""
    said: dict[str, Any] = {"system": "linux", "machine": "x86_64", "environ": {}}
    commands: dict[str, str] = {}
    memory, cores, nvml = Memory(0, 0), Cores(1, 1, 1), None
    for kind, what, body in _sections(text):
        where = root / what.lstrip("/")
        if kind == "host":
            said["system"], said["machine"] = what.split()
        elif kind == "memory":
            memory = Memory(*(int(n) for n in what.split()))
        elif kind == "cores":
            cores = Cores(*(int(n) for n in what.split()))
        elif kind == "environ":
            key, _, value = what.partition(" ")
            said["environ"][key] = value
        elif kind == "file":
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_text(body)
        elif kind == "link":
            where.parent.mkdir(parents=True, exist_ok=True)
            where.symlink_to(body.strip())
        elif kind == "command":
            commands[what] = body
        elif kind == "nvml":
            nvml = Nvml(tomllib.loads(body))
        else:
            raise AssertionError(f"a section of kind {kind!r}")

    def library() -> Any:
        if nvml is None:
            raise NVMLError("Driver Not Loaded")
        return nvml

    def command(argv: tuple[str, ...]) -> str:
        return commands.get(" ".join(argv), commands.get(argv[0], ""))

    return Host(root=root, command=command, memory=lambda: memory, cores=lambda: cores, nvml=library, **said)
