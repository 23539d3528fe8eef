"""What the endpoints use of this node."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
from starlette.requests import Request

from node import wire
from node.api.http import names
from node.api.http.asked import Asked, Node
from node.api.http.deltas import Delta, deltas
from node.coordinator import Coordinator
from node.core import thoughts
from node.engine.face import EngineFace
from node.errors import InvalidRequest
from node.mesh.mesh import Mesh
from node.replicator import Travels
from node.store import Store
from node.types import Candidate, NodeInfo, Version

MAX_BODY_BYTES = 16 << 20  # far more than a prompt that fits any context
MAX_ID_BYTES = 128
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Here:
    """This node's parts. `started` is Unix time in seconds."""

    id: str
    coordinator: Coordinator
    engine: EngineFace
    mesh: Mesh
    store: Store
    defaults: wire.Defaults
    version: str
    forget: Callable[[str], Awaitable[tuple[Version, list[str]]]]  # a topic, everywhere (`Replicator.forget`)
    started: int = 0
    travels: Travels | None = None
    links: Callable[[], Mapping[str, float]] = dict  # seconds a byte, by node

    @property
    def node(self) -> Node:
        """What reading a request takes from the node."""
        return Node(self.engine.info.name, self.defaults, self.others)

    @property
    def others(self) -> dict[str, NodeInfo]:
        """Models that other nodes have and this one has not, each with a node that has it. One that calls itself a vote
        is none: it may be a mesh's HTTP listener, and this node's own votes have those names."""
        found = {p.info.model: p.info for p in self.mesh.peers()}
        own = {"", self.engine.info.name}
        return {name: info for name, info in found.items() if name not in own and name.partition(":")[0] != names.VOTE}

    def mode(self, name: str) -> names.Mode:
        """What a model name means here. Raises NotFound."""
        return names.mode(name, self.engine.info.name, self.others)

    @property
    def fingerprint(self) -> str:
        """What OpenAI calls a system's fingerprint: equal ones give equal answers for equal seeds, as far as any do."""
        return f"b-{self.engine.info.fingerprint[:12]}"

    def answer(self, asked: Asked, cache_key: str | None = None) -> AsyncGenerator[Delta, None]:
        """The pieces of an answer. With a cache key it has a topic of that name, unless a turn of that is under way."""
        request = asked.request
        if cache_key and not request.topic and not request.is_raw:
            topic = wire.name("prompt_cache_key", f"cache:{cache_key}")
            if not self.coordinator.is_busy(topic):
                request = replace(request, topic=topic)
        return deltas(self.coordinator.stream(request, None, asked.wishes), asked, self.id)

    async def reasoning(self, choices: Sequence[Candidate]) -> int:
        """Tokens of what choices thought before they answered, counted anew in their texts by this node's model."""
        thought = [(t, c.tokens) for c in choices if (t := thoughts.split(c.text)[0])]
        lengths = await self.engine.lengths([t for t, _ in thought]) if thought else []
        return sum(min(n, written) for n, (_, written) in zip(lengths, thought, strict=True))


async def read(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The body of a request, bounded and checked. Raises InvalidRequest."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise InvalidRequest(f"the request is longer than {MAX_BODY_BYTES >> 20} MiB")
        return decoder.decode(body)
    except msgspec.MsgspecError as e:
        raise InvalidRequest(f"the request is not valid: {e}") from None
    except (UnicodeError, RecursionError, ValueError) as e:
        raise InvalidRequest(f"the request is not valid JSON: {type(e).__name__}") from None


def request_id(request: Request) -> str:
    """The key by which a client that asks again gets the same answer, or a fresh one. Raises InvalidRequest."""
    given = wire.name("Idempotency-Key", request.headers.get("idempotency-key", "")[:MAX_ID_BYTES])
    return given or secrets.token_hex(8)


def now() -> int:
    """Unix time in seconds."""
    return int(time.time())
