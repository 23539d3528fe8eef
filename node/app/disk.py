"""What a node keeps in its data directory, opened: conversations, KV that outlives the process, KV of idle topics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from node.config import Config
from node.engine.shelf import Shelf
from node.errors import InvalidRequest, NotReady
from node.store import Blocks, Store


def directory(text: str) -> Path | None:
    """Where --data-dir is; None if it was not given. Raises InvalidRequest."""
    try:
        return Path(text).expanduser().absolute() if text else None
    except RuntimeError:
        raise InvalidRequest(f"--data-dir {text!r}: there is no such user's home directory") from None


async def topics(directory: Path, node: str) -> Store:
    """The conversations. Raises NotReady if they cannot be read."""
    try:
        store = await asyncio.to_thread(Store, directory / "topics", node=node)
        await asyncio.to_thread(store.load)
    except OSError as e:
        raise NotReady(
            f"the conversations in {directory} cannot be read: {e.strerror or e}; give another --data-dir"
        ) from None
    return store


async def blocks(directory: Path, config: Config, notice: Callable[[str], None]) -> Blocks:
    """KV for other nodes and for after a restart. Without a folder that can be written, the node goes on."""
    try:
        return await asyncio.to_thread(Blocks, directory / "kv", config.disk_budget << 20)
    except (OSError, InvalidRequest) as e:
        notice(f"KV is not kept over restarts, nor for other nodes: {e}")
        return Blocks(directory, 0)


def shelf(directory: Path, config: Config, notice: Callable[[str], None]) -> Shelf | None:
    """The folder for KV that memory has no room for. Without one that can be written, the node goes on."""
    if not config.kv_disk or not config.kv_memory:
        return None
    try:
        return Shelf(directory / "parked", config.kv_disk << 20)
    except OSError as e:
        notice(f"idle topics cannot be kept on disk: {e}")
        return None
