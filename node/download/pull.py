"""A model by its name from whoever of the mesh has it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from node.download.download import Arrived, fetch
from node.download.offers import Choice, choose, entry_of
from node.download.search import Searched, search
from node.errors import BackendError, NotReady
from node.mesh.identity import Identity
from node.models import checksum, hub, library


class NotTheHubs(BackendError):
    """A model came from peers as they described it, and is not what the hub has under its name and size."""


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

    What the catalogue knows is compared with the hub's SHA-256, where the hub can be asked. `data` is
    `node.home.Home.data`, the others are `search`'s. Raises ConclaveError, `NotTheHubs` among them; such a model is
    removed.
    """
    folder = library.own_folder(data)
    async with search(identity, runtime=runtime, interfaces=interfaces, join=join) as found:
        choice = choose(name, found.models)
        if choice is None:
            return None
        if _is_here(choice, folder):
            arrived.say(f"{choice.name} is here already")
            return folder / choice.files[0].name
        names = ", ".join(found.name(node) for node in choice.nodes)
        arrived.say(f"{', '.join(f.name for f in choice.files)}, {choice.size / 1e9:.2f} GB, from {names}")
        entry = entry_of(choice.name)
        expected = asyncio.create_task(asyncio.to_thread(hub.sums, entry.repo)) if entry else None
        try:
            path = await fetch(choice, found.peers, folder, arrived, data)
            if arrived.by_source:
                arrived.say(f"it came from {_sources(arrived, found)}")
            if expected is not None:
                said = await asyncio.to_thread(_compare, choice, folder, await expected)
                arrived.say(
                    said or f"the hub has no {choice.files[0].name} of this size, or was not reached: not compared"
                )
            return path
        finally:
            if expected is not None:
                expected.cancel()


def _sources(arrived: Arrived, found: Searched) -> str:
    """Who gave how much."""
    given = arrived.by_source.most_common()
    total = max(sum(size for _, size in given), 1)
    if len(given) == 1:
        return found.name(given[0][0])
    return ", ".join(f"{found.name(node)} ({100 * size / total:.0f} %)" for node, size in given)


def _compare(choice: Choice, folder: Path, expected: dict[str, tuple[int, str]]) -> str:
    """What to say of files that are the hub's; empty if it has none of that name and size. Raises NotTheHubs."""
    known = [(f, expected[f.name][1]) for f in choice.files if expected.get(f.name, (0, ""))[0] == f.size]
    if len(known) < len(choice.files):
        return ""
    try:
        wrong = [file.name for file, sha256 in known if checksum.of(folder / file.name) != sha256]
    except OSError as e:
        raise NotReady(
            f"{choice.name} cannot be read again ({e.strerror or e}): look at the disk, and pull again"
        ) from None
    if not wrong:
        return "its SHA-256 is the hub's"
    for file in choice.files:
        (folder / file.name).unlink(missing_ok=True)
        checksum.beside(folder / file.name).unlink(missing_ok=True)
    raise NotTheHubs(
        f"{', '.join(wrong)}, as the mesh has it, is not the hub's (another SHA-256 at the same size: it is damaged "
        "there, or changed): it was removed"
    )


def _is_here(choice: Choice, folder: Path) -> bool:
    try:
        return all((folder / f.name).stat().st_size == f.size for f in choice.files)
    except OSError:
        return False
