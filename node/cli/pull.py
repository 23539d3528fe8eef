"""`models pull`: a model from the mesh if a node of it has it, else from the hub."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from node.cli import elsewhere
from node.cli.progress import Progress
from node.cli.render import one_line
from node.errors import InvalidRequest, NotFound
from node.models import catalogue, hub, split


def run(options: Namespace) -> int:
    """Fetch it. Raises ConclaveError."""
    name = options.name
    if name.startswith(("/", "./", "../", "~")) or name.endswith(".gguf"):
        _refuse_file(name)
    path = None if name.startswith("hf:") else elsewhere.pull(name, _say)
    if path is None:
        path = hub.pull(reference_of(name), _say, Progress(sys.stderr))
        split.read(path)  # it may be whole and yet no model
        _say("it came from the hub")
    print(path)
    _say(f"start a node with it: python -m node --model {split.stem(path.name)}")
    return 0


def _refuse_file(name: str) -> None:
    """A file that is here needs no fetching. Raises InvalidRequest; NotFound where there is none."""
    if Path(name).expanduser().exists():
        raise InvalidRequest(f"{name} is on this machine already: serve it with `python -m node --model {name}`")
    if "/" in name:
        raise NotFound(f"there is no file {name}: a model is fetched by its name, as `models list` shows it")


def reference_of(name: str) -> hub.Reference:
    """What is to come from the hub: `hf:…`, or NAME or NAME:QUANT of the catalogue. Raises InvalidRequest."""
    if name.startswith("hf:"):
        return hub.parse(name)
    entry, quantization = catalogue.find_with_quantization(name)
    if entry is None:
        hint = catalogue.meant(name) or ": `models list` shows them"
        raise InvalidRequest(
            f"no node of the mesh has {name!r}, and it is not in the catalogue{hint}; any repository is pulled as "
            "hf:OWNER/NAME"
        )
    return hub.Reference(entry.repo, quantization)


def _say(line: str) -> None:
    print(one_line(line, 400), file=sys.stderr)
