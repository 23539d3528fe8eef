"""The model of a node: an engine here or a server elsewhere, and memory that is borrowed for it or lent to others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from node import backends, download
from node.config import Config
from node.core.plan import SLOTS
from node.engine.engine import Engine
from node.engine.face import EngineFace
from node.engine.shelf import Shelf
from node.errors import ConclaveError
from node.home import home
from node.mesh.identity import Identity
from node.pool.borrower import Borrower
from node.pool.lender import Lender

Notice = Callable[[str], None]
Progress = Callable[[str, float], None]


def is_elsewhere(config: Config) -> bool:
    """Whether a server has the model."""
    return config.backend == "openai" or (bool(config.url) and config.backend == "auto")


def elsewhere(config: Config, node: str) -> EngineFace:
    """The connection to a server that has the model. Raises InvalidRequest."""
    from node.engine import remote

    options = remote.options(config.url, config.model, config.slots or SLOTS, config.ctx, config.queue)
    return remote.RemoteEngine(options, node=node)


async def here(
    config: Config,
    directory: Path,
    identity: Identity,
    borrower: Borrower | None,
    shelf: Shelf | None,
    notice: Notice,
    progress: Progress,
    *,
    after_loss: bool = False,
) -> Engine:
    """The local engine, with its model found but not loaded. `directory` is this node's own, `after_loss` as of `Node`.
    Raises ConclaveError."""

    async def fetch(name: str) -> Path | None:
        return await _from_peers(config, identity, name, notice, progress)

    return Engine(
        await backends.make(config, directory, notice, progress, fetch, borrower, after_loss=after_loss),
        node=identity.node_id,
        queue_limit=config.queue,
        memory=config.kv_memory << 20,
        shelf=shelf,
        drafts=config.draft,
    )


async def _from_peers(config: Config, identity: Identity, name: str, notice: Notice, progress: Progress) -> Path | None:
    """A model that is not on this machine, from a node that has it; None if none has."""
    places = home()
    if config.join == "none":
        return None
    return await download.pull(
        name,
        identity,
        places.data,
        download.Arrived(tell=lambda a: progress(f"fetching {name}", a.share), say=notice),
        runtime=places.runtime,
        interfaces=config.interfaces,
        join=config.join,
    )


def borrower(
    config: Config, identity: Identity, tell: Notice, lost: Callable[[ConclaveError], None]
) -> Borrower | None:
    """Who finds memory on other nodes for a model that is too big for this one; `lost` hears when one of them dies."""
    if config.borrow == "no" or config.backend not in ("auto", "llama"):
        return None
    return Borrower(
        identity,
        backends.llama_version(),
        join=config.join,
        runtime=home().runtime,
        interfaces=config.interfaces,
        tell=tell,
        lost=lost,
    )


async def lender(config: Config, notice: Notice) -> Lender:
    """What this node lends of its memory: nothing without --pool. Raises InvalidRequest."""
    if not config.pool:
        return Lender(0, 0, "")
    most, threads, free = await asyncio.to_thread(backends.lendable, config, notice)
    return Lender(most, threads, backends.llama_version(), free)
