"""`models pull`: a model from the mesh if a node of it has it, else from the hub."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from node import config
from node.cli.parser import nearest
from node.cli.render import one_line
from node.errors import InvalidRequest
from node.home import home
from node.models import catalogue, hub, split

if TYPE_CHECKING:
    from node.download import Progress


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
    with shown() as progress:
        return asyncio.run(
            download.pull(
                name, identity, here.data, progress,
                runtime=here.runtime, interfaces=chosen.interfaces, join=chosen.join,
            )
        )  # fmt: skip


@contextmanager
def shown() -> Iterator[Progress]:
    """A download as a person sees it: a bar on a terminal, else a line each tenth, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    from node.download import Progress

    to = Console(stderr=True, highlight=False)
    if not to.is_terminal:
        yield Progress(tell=_tenths(), say=_say)
        return
    bar = Bar(BarColumn(), TaskProgressColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
              console=to)  # fmt: skip
    with bar:
        task = bar.add_task("", visible=False)
        progress = Progress(
            tell=lambda p: bar.update(task, total=p.total, completed=p.done, visible=True),
            say=lambda line: bar.console.print(one_line(line, 400), markup=False, soft_wrap=True),
        )
        yield progress


def _tenths() -> Callable[[Progress], None]:
    said = -1

    def tell(p: Progress) -> None:
        nonlocal said
        if p.total and 10 * p.done // p.total > said:
            said = 10 * p.done // p.total
            _say(f"{10 * said} % of {p.total / 1e9:.2f} GB")

    return tell
