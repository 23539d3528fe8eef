"""The house keeps its shape: imports point down only, siblings do not know each other, core is pure.

Read from the syntax tree, so that imports inside functions and under TYPE_CHECKING count too.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NODE = Path(__file__).resolve().parents[1] / "node"

# Lowest first. Names on one line are siblings and do not import each other, except where LEAVES says so.
LEVELS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "__init__ address errors logs types metrics tracing",
        "core config disk home",
        "v1",
        "wire",
        "engine mesh store hardware models",
        "download pool",
        "replicator backends",
        "coordinator",
        "api",
        "app",
        "cli client",
        "__main__",
    )
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# The shared vocabulary: these may know each other (types raises errors, metrics counts types).
LEAVES = frozenset({"__init__", "errors", "types", "metrics", "logs"})
# A program that uses a node from outside takes the wire format, not the node.
CLIENT_MAY = frozenset({"__init__", "address", "errors", "types", "v1", "wire"})

# Outside packages and the only places that may import them; a folder is named with a closing slash.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "llama_cpp": ("engine/llamacpp/",),
    "httpx2": ("engine/remote/",),
    "mlx": ("engine/mlx/",),
    "mlx_lm": ("engine/mlx/",),
    "grpc": ("v1/", "wire.py", "wire/", "mesh/", "mesh.py", "api/", "app/", "cli.py", "cli/", "client.py"),
    "grpc_health": ("mesh/", "api/", "app/", "cli.py", "cli/", "client.py"),
    "grpc_reflection": ("api/",),
    "prometheus_client": ("metrics.py",),
    "opentelemetry": ("tracing.py",),
    "starlette": ("api/",),
    "uvicorn": ("api/",),
}

# What would give core threads, I/O, a clock, or chance that a test cannot repeat.
IMPURE = frozenset(
    "asyncio threading _thread multiprocessing concurrent subprocess signal socket ssl select selectors http urllib "
    "time datetime os pathlib io shutil tempfile glob fcntl mmap secrets uuid logging sys".split()
)
IMPORTERS = frozenset({"import_module", "importlib.import_module", "__import__"})
IMPURE_CALLS = frozenset({"open", "input", "print", "exec", "eval", "__import__"})


@dataclass(frozen=True)
class Import:
    """One import: the dotted name that it brings in, and where."""

    name: str
    line: int


def imports(tree: ast.AST, path: str) -> Iterator[Import]:
    """Every module that is imported anywhere in the tree, relative ones made absolute."""
    package = ["node", *Path(path).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "node":  # from node import x, y
                yield from (Import(f"node.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield Import(module, node.lineno)
        elif isinstance(node, ast.Call) and _called(node) in IMPORTERS:
            yield from (
                Import(str(name.value), node.lineno) for name in node.args[:1] if isinstance(name, ast.Constant)
            )


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def part(dotted: str) -> str:
    """The part of the house that a dotted name lies in: `node.core.slots` -> `core`."""
    names = dotted.split(".")
    if len(names) == 1 or names[1].startswith("__version"):
        return "__init__"
    return names[1]


def part_of_file(path: str) -> str:
    """The part that a file under node/ belongs to: `core/slots.py` -> `core`, `wire.py` -> `wire`."""
    first = Path(path).parts[0]
    return first.removesuffix(".py")


def check(path: str, source: str) -> list[str]:
    """What is wrong with one file; `path` is relative to node/."""
    tree = ast.parse(source)
    here = part_of_file(path)
    if here not in LEVEL:
        return [f"{path}: `{here}` has no level: give it one in LEVELS"]
    found = [problem for each in imports(tree, path) for problem in _check_import(path, here, each)]
    if here == "core":
        found += _check_purity(path, tree)
    return found


def _check_import(path: str, here: str, each: Import) -> Iterator[str]:
    where = f"{path}:{each.line}"
    top = each.name.split(".")[0]
    if top != "node":
        places = ONLY_IN.get(top)
        if places and not any(path == place or (place.endswith("/") and path.startswith(place)) for place in places):
            yield f"{where}: {top} is imported only in {', '.join(places)}"
        if here == "core" and top in IMPURE:
            yield f"{where}: core is pure and imports no {top}"
        return
    there = part(each.name)
    if there == here:
        return
    if there not in LEVEL:
        yield f"{where}: `{there}` has no level: give it one in LEVELS"
    elif here == "client" and there not in CLIENT_MAY:
        yield f"{where}: client imports only {', '.join(sorted(CLIENT_MAY))}, not {there}"
    elif {here, there} <= LEAVES or (here == "cli" and there == "client"):
        return
    elif LEVEL[there] == LEVEL[here]:
        yield f"{where}: {here} and {there} are siblings and do not know each other"
    elif LEVEL[there] > LEVEL[here]:
        yield f"{where}: {here} imports {there}, which lies above it"


def _check_purity(path: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _called(node)
        if called in IMPURE_CALLS:
            yield f"{path}:{node.lineno}: core is pure and does not call {called}()"
        # random.Random(seed) can be repeated; the module's own functions and an unseeded generator cannot.
        elif called.startswith("random.") and called != "random.Random":
            yield f"{path}:{node.lineno}: core takes a seeded random.Random, it does not call {called}()"
        elif called in {"random.Random", "Random"} and not (node.args or node.keywords):
            yield f"{path}:{node.lineno}: core seeds its random.Random"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            yield from (
                f"{path}:{node.lineno}: core takes a seeded random.Random, not random.{alias.name}"
                for alias in node.names
                if alias.name != "Random"
            )


def test_the_house_keeps_its_shape() -> None:
    """No file under node/ breaks a rule."""
    files = [path for path in sorted(NODE.rglob("*.py")) if path.parent != NODE / "v1"]
    assert len(files) > 1
    problems = [problem for path in files for problem in check(str(path.relative_to(NODE)), path.read_text())]
    assert not problems, "\n" + "\n".join(problems)


def test_v1_holds_generated_code_only() -> None:
    """Nothing is written by hand in node/v1, and it imports nothing else of the house."""
    for path in sorted((NODE / "v1").glob("*.py")):
        source = path.read_text()
        assert "enerated" in source[:400], f"{path} is not generated"
        assert {part(each.name) for each in imports(ast.parse(source), f"v1/{path.name}") if "node." in each.name} <= {
            "v1"
        }


BROKEN = {
    "up": ("core/slots.py", "from node.engine import engine", "lies above"),
    "up, plain import": ("wire.py", "import node.coordinator", "lies above"),
    "up, from node": ("store.py", "from node import app", "lies above"),
    "up, relative": ("core/slots.py", "from ..engine.backend import Backend", "lies above"),
    "up, inside a function": ("config.py", "def f():\n    from node.cli import main", "lies above"),
    "up, for types only": (
        "mesh/peer.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from node.coordinator import Coordinator",
        "lies above",
    ),
    "up, by name": ("core/plan.py", "import importlib\nimportlib.import_module('node.app')", "lies above"),
    "up, leaf": ("errors.py", "from node.config import Config", "lies above"),
    "siblings": ("engine/engine.py", "from node.mesh.peer import Peer", "siblings"),
    "siblings, core and config": ("core/plan.py", "from node.config import Config", "siblings"),
    "siblings, store": ("store.py", "from node.hardware import detect", "siblings"),
    "unknown part": ("helpers.py", "", "has no level"),
    "unknown import": ("app.py", "from node.helpers import x", "has no level"),
    "client knows the node": ("client.py", "from node.app import App", "client imports only"),
    "client reads config": ("client.py", "from node.config import Config", "client imports only"),
    "asyncio in core": ("core/slots.py", "import asyncio", "core is pure"),
    "threading in core": ("core/slots.py", "from threading import Lock", "core is pure"),
    "grpc in core": ("core/slots.py", "import grpc.aio", "imported only in"),
    "os in core": ("core/slots.py", "from os import path", "core is pure"),
    "pathlib in core": ("core/slots.py", "from pathlib import Path", "core is pure"),
    "clock in core": ("core/slots.py", "import time", "core is pure"),
    "date in core": ("core/slots.py", "from datetime import datetime", "core is pure"),
    "socket in core": ("core/slots.py", "def f():\n    import socket", "core is pure"),
    "open in core": ("core/slots.py", "def f():\n    open('x')", "does not call open"),
    "chance in core": ("core/placement.py", "import random\nrandom.shuffle([])", "seeded random.Random"),
    "chance in core, by name": ("core/placement.py", "from random import choice", "seeded random.Random"),
    "no seed in core": ("core/placement.py", "import random\nrandom.Random()", "seeds its"),
    "llama_cpp elsewhere": ("engine/engine.py", "import llama_cpp", "imported only in"),
    "llama_cpp below": ("models/files.py", "from llama_cpp import llama_cpp", "imported only in"),
    "mlx elsewhere": ("hardware/apple.py", "import mlx.core as mx", "imported only in"),
    "mlx_lm elsewhere": ("engine/llamacpp/backend.py", "import mlx_lm", "imported only in"),
    "grpc in errors": ("errors.py", "import grpc", "imported only in"),
    "grpc in the coordinator": ("coordinator.py", "from grpc import StatusCode", "imported only in"),
    "grpc in the engine": ("engine/engine.py", "import grpc.aio", "imported only in"),
}

SOUND = {
    "down": ("coordinator.py", "from node.core.consensus import elect\nfrom node.mesh.mesh import Mesh"),
    "same part": ("engine/engine.py", "from node.engine.backend import Backend\nfrom .scheduler import Scheduler"),
    "leaves": ("types.py", "from node.errors import InvalidRequest"),
    "version": ("mesh/mesh.py", "from node import __version__"),
    "seeded": ("core/placement.py", "import random\nrng = random.Random(7)\nrng.shuffle([])"),
    "llama_cpp at home": ("engine/llamacpp/backend.py", "import llama_cpp"),
    "mlx at home": ("engine/mlx/backend.py", "import mlx.core\nfrom mlx_lm import load"),
    "grpc at home": ("mesh/peer.py", "import grpc.aio"),
    "cli uses client": ("cli.py", "from node.client import Client\nfrom node.app import App"),
    "client": ("client.py", "import grpc\nfrom node.v1 import types_pb2\nfrom node.wire import to_dict"),
    "entry": ("__main__.py", "from node.cli import main"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found(name: str) -> None:
    """Each rule can fail."""
    path, source, expected = BROKEN[name]
    problems = check(path, source)
    assert problems
    assert all(expected in problem for problem in problems), problems


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_passes(name: str) -> None:
    """No rule fires on what is meant to be there."""
    path, source = SOUND[name]
    assert check(path, source) == []
