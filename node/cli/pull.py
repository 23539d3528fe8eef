"""`models pull`: a model from the mesh if a node of it has it, else from the hub."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from node import config
from node.cli.progress import Progress
from node.cli.readers import nearest
from node.cli.render import one_line
from node.errors import InvalidRequest
from node.home import home
from node.models import catalogue, hub, split


def run(options: Namespace) -> int:
    """Fetch it. Raises ConclaveError."""
    name = options.name
    path = None if name.startswith("hf:") else _of_the_mesh(name)
    if path is None:
        path = hub.pull(reference_of(name), _say, Progress(sys.stderr))
        split.read(path)  # it may be whole and yet no model
    print(path)
    _say(f"start a node with it: python -m node --model {split.stem(path.name)}")
    return 0


def reference_of(name: str) -> hub.Reference:
    """What is to come from the hub: `hf:…`, or NAME or NAME:QUANT of the catalogue. Raises InvalidRequest."""
    if name.startswith("hf:"):
        return hub.parse(name)
    base, _, quantization = name.partition(":")
    entry = catalogue.find(base)
    if entry is None:
        known = [e.name for e in catalogue.entries()]
        hint = nearest(base, known) or ": `models list` shows them"
        raise InvalidRequest(
            f"no node of the mesh has {name!r}, and it is not in the catalogue{hint}; any repository is pulled as "
            "hf:OWNER/NAME"
        )
    return hub.Reference(entry.repo, quantization)


def _say(line: str) -> None:
    print(one_line(line, 400), file=sys.stderr)


def _of_the_mesh(name: str) -> Path | None:
    """The model from peers; None if there is no mesh, or nobody has it."""
    here = home()
    chosen = config.load({}, os.environ, here.config / "conclave.toml")
    if chosen.join == "none" or not (chosen.token or (here.config / "token").exists()):
        return None
    # gRPC reads this when it is first imported: see `node.cli.serve`.
    os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")
    from node import download
    from node.mesh.identity import Identity, load_old_token, load_token, new_node_id

    old = None if chosen.token else load_old_token(here.config, time.time())
    identity = Identity(load_token(here.config, chosen.token), new_node_id(), old=old)
    progress = Progress(sys.stderr)
    arrived = download.Arrived(tell=lambda a: progress(f"fetching {name}", a.share), say=_say)
    try:
        return asyncio.run(
            download.pull(
                name, identity, here.data, arrived,
                runtime=here.runtime, interfaces=chosen.interfaces, join=chosen.join,
            )
        )  # fmt: skip
    finally:
        progress.end()
