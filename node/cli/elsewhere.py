"""The models of other nodes, for commands: by name from who gives them, and which of ours they have too."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node import config
from node.cli.progress import Progress
from node.config import Config
from node.errors import ConclaveError
from node.home import home
from node.mesh.local import running_nodes
from node.models.catalogue import plain
from node.models.library import Local

if TYPE_CHECKING:  # these load grpc, which takes as long as the rest of a command
    from node.download import Has
    from node.mesh.identity import Identity


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A model that this machine does not have: `nodes` are the names of those that do."""

    name: str
    size: int
    nodes: tuple[str, ...]


def pull(name: str, say: Callable[[str], None]) -> Path | None:
    """A model from peers; None if there is no mesh, nobody has it, or what they have is not the hub's. Raises
    ConclaveError."""
    if (member := _member()) is None:
        return None
    chosen, identity = member
    from node import download

    here = home()
    progress = Progress(sys.stderr)
    arrived = download.Arrived(tell=lambda a: progress(f"fetching {name}", a.share), say=say)
    try:
        return asyncio.run(
            download.pull(
                name, identity, here.data, arrived,
                runtime=here.runtime, interfaces=chosen.interfaces, join=chosen.join,
            )
        )  # fmt: skip
    except download.NotTheHubs as e:
        say(e.message)
        return None
    finally:
        progress.end()


def models(here: Sequence[Local]) -> tuple[list[tuple[str, ...]], list[Elsewhere]]:
    """For each model of this machine the other nodes that have it, and what only they have. Takes two seconds at most;
    nothing where there is no mesh, or nobody answers."""
    nothing: tuple[list[tuple[str, ...]], list[Elsewhere]] = ([() for _ in here], [])
    try:
        if (member := _member()) is None:
            return nothing
        found, names = asyncio.run(_search(*member))
    except (ConclaveError, OSError):  # a list of what is here is worth having all the same
        return nothing
    return sorted_out(here, found, names)


def sorted_out(
    here: Sequence[Local], found: Sequence[Has], names: dict[str, str]
) -> tuple[list[tuple[str, ...]], list[Elsewhere]]:
    """`models` of what was found; `names` are those of nodes by their ids. Pure."""
    who: dict[tuple[str, int], dict[str, None]] = {}
    called: dict[tuple[str, int], str] = {}
    for model in found:
        key = plain(model.name), sum(file.size for file in model.files)
        who.setdefault(key, {})[names.get(model.node) or model.node] = None
        called.setdefault(key, model.name)
    ours = [(plain(model.name), model.size) for model in here]
    only = [Elsewhere(called[key], key[1], tuple(nodes)) for key, nodes in who.items() if key not in set(ours)]
    return [tuple(who.get(key, ())) for key in ours], sorted(only, key=lambda m: m.name.lower())


async def _search(chosen: Config, identity: Identity) -> tuple[list[Has], dict[str, str]]:
    from node import download

    runtime = home().runtime
    own = {node.node_id for node in running_nodes(runtime)}  # they have what this machine has
    async with download.search(identity, runtime=runtime, interfaces=chosen.interfaces, join=chosen.join) as found:
        return [model for model in found.models if model.node not in own], found.names


def _member() -> tuple[Config, Identity] | None:
    """The options and who we are in the mesh; None if this machine is in none. Raises ConclaveError."""
    here = home()
    chosen = config.load({}, os.environ, here.config / "conclave.toml")
    if chosen.join == "none" or not (chosen.token or (here.config / "token").exists()):
        return None
    # gRPC reads this when it is first imported: see `node.cli.serve`.
    os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")
    from node.mesh.identity import Identity, load_old_token, load_token, new_node_id

    old = None if chosen.token else load_old_token(here.config, time.time())
    return chosen, Identity(load_token(here.config, chosen.token), new_node_id(), old=old)
