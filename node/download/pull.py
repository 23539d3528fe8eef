"""A model by its name from whoever of the mesh has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from node.download.download import Arrived, fetch
from node.download.offers import Choice, choose
from node.download.search import search
from node.mesh.identity import Identity
from node.models import library


async def pull(
    name: str,
    identity: Identity,
    data: Path,
    arrived: Arrived,
    *,
    runtime: Path | None,
    interfaces: Sequence[str] = (),
    join: str = "auto",
) -> Path | None:
    """Bring a model from peers into this machine's own folder; its first file, or None if nobody has it.

    `data` is `node.home.Home.data`, the others are `search`'s. Raises ConclaveError.
    """
    folder = library.own_folder(data)
    async with search(identity, runtime=runtime, interfaces=interfaces, join=join) as found:
        choice = choose(name, found.models)
        if choice is None:
            return None
        if _is_here(choice, folder):
            arrived.say(f"{choice.name} is here already")
            return folder / choice.files[0].name
        nodes = f"node{'s' if len(choice.nodes) > 1 else ''} {', '.join(choice.nodes)}"
        arrived.say(f"{', '.join(f.name for f in choice.files)}, {choice.size / 1e9:.2f} GB, from {nodes}")
        return await fetch(choice, found.peers, folder, arrived)


def _is_here(choice: Choice, folder: Path) -> bool:
    try:
        return all((folder / f.name).stat().st_size == f.size for f in choice.files)
    except OSError:
        return False
