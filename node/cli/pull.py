"""`models pull`: a model from the mesh if a node of it has it, else from the hub."""

from __future__ import annotations

import sys
from argparse import Namespace

from node.cli import elsewhere
from node.cli.progress import Progress
from node.cli.render import one_line
from node.errors import InvalidRequest
from node.models import catalogue, hub, split


def run(options: Namespace) -> int:
    """Fetch it. Raises ConclaveError."""
    name = options.name
    path = None if name.startswith("hf:") else elsewhere.pull(name, _say)
    if path is None:
        path = hub.pull(reference_of(name), _say, Progress(sys.stderr))
        split.read(path)  # it may be whole and yet no model
        _say("it came from the hub")
    print(path)
    _say(f"start a node with it: python -m node --model {split.stem(path.name)}")
    return 0


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
