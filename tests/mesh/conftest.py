"""Fixtures of the mesh's tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from meshnode import Node

from node.mesh.identity import Identity, new_token
from tests import loopback

Start = Callable[..., Awaitable[Node]]


@pytest.fixture
def token() -> str:
    return new_token()


# gRPC's asyncio has one completion queue for the process, and loses events when one of several loops is closed: all
# tests that use it run on the session's loop.
@pytest_asyncio.fixture(loop_scope="session")
async def start(token: str) -> AsyncIterator[Start]:
    """Starts a node: `await start("a")`, with `join` and the arguments of Mesh; `join=None` only listens."""
    nodes: list[Node] = []

    async def start_one(
        letter: str,
        *,
        join: Any = "none",
        token: str = token,
        identity: Identity | None = None,
        port: int = 0,
        **options: Any,
    ) -> Node:
        node = Node(identity or Identity(token, letter * 10), **options)
        nodes.append(node)
        await node.listen(port)
        if join is not None:
            await node.mesh.start(join)
        return node

    yield start_one
    await asyncio.gather(*(n.stop() for n in nodes))
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert [t for t in others if "node/mesh" in str(t.get_coro())] == []


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with loopback.nobody() as port:
        yield f"{loopback.HOST}:{port}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"
