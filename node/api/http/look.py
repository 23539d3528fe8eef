"""For looking at a node: health, metrics, models, what `status` shows, and the page."""

from __future__ import annotations

import importlib.resources
import time
from typing import Any

import msgspec
from google.protobuf import json_format
from starlette.requests import Request
from starlette.responses import Response

from node import metrics, wire
from node.api.http import names
from node.api.http.here import Here
from node.api.status import status_pb
from node.errors import NotFound
from node.types import NodeInfo, NodeState
from node.v1 import kvsync_pb2, types_pb2

_encode = msgspec.json.encode
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PARTS = ("page", "chat", "dom", "markdown", "mesh", "plots", "settings", "topics", "turn")
# What goes in and comes out, as OpenRouter says it and llama-server after it: no images.
_TEXT = {"input_modalities": ["text"], "output_modalities": ["text"]}
# The last is what browsers ask for beside any other document of ours.
PAGES = ("/", "/page.css", *(f"/{part}.js" for part in _PARTS), "/icon.svg", "/favicon.ico")
_FILES = {"/": "index.html", "/favicon.ico": "icon.svg"}
_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


class Look:
    """The endpoints."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self.is_stopping = False

    async def health(self, _: Request) -> Response:
        """Whether the node serves: 200, or 503 while it stops."""
        if self.is_stopping:
            return _json({"status": "stopping"}, 503)
        return _json({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text format."""
        self._gauge()
        return Response(metrics.exposition(), headers={"content-type": metrics.CONTENT_TYPE})

    async def models(self, _: Request) -> Response:
        """The names that requests may give."""
        others = self._here.others
        found = [self._model(n, others.get(n)) for n in names.listed(self._here.engine.info.name, others)]
        pages = {"has_more": False, "first_id": found[0]["id"], "last_id": found[-1]["id"]}  # for Anthropic's clients
        return _json({"object": "list", "data": found} | pages)

    async def model(self, request: Request) -> Response:
        """One of them. Raises NotFound."""
        name = request.path_params["name"]
        if not name:
            raise NotFound("the name of a model is missing")
        self._here.mode(name)
        return _json(self._model(name, self._here.others.get(name)))

    async def status(self, _: Request) -> Response:
        """The mesh as this node sees it: `node.v1.StatusResponse` as JSON, as `status --json` prints it."""
        here = self._here
        found = json_format.MessageToDict(
            status_pb(
                here.mesh,
                here.engine,
                here.store,
                here.version,
                here.coordinator.standings,
                here.travels,
                here.links(),
            ),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        return _json(found)

    async def topic(self, request: Request) -> Response:
        """A conversation that this node holds, as KVSync.Show tells it. Raises NotFound."""
        held = self._here.store.get(wire.name("topic", request.path_params["name"]))
        messages = [wire.message_pb(m) for m in held.messages]
        shown = kvsync_pb2.ShowResponse(
            info=types_pb2.TopicInfo(topic=held.name, version=wire.version_pb(held.version), tokens=held.tokens),
            messages=messages,
        )
        return _json(json_format.MessageToDict(shown, preserving_proto_field_name=True))

    async def forget(self, request: Request) -> Response:
        """A conversation goes, on every node, as by KVSync.Forget. Raises NotFound."""
        name = wire.name("topic", request.path_params["name"])
        _, nodes = await self._here.forget(name)
        return _json({"id": name, "object": "topic", "deleted": True, "nodes": [self._here.id, *nodes]})

    async def page(self, request: Request) -> Response:
        """The page for people, and its parts."""
        name = _FILES.get(request.url.path) or request.url.path.strip("/")
        body = (importlib.resources.files("node.api.http") / "page" / name).read_bytes()
        headers = {
            "content-security-policy": _POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        return Response(body, headers=headers, media_type=_KINDS[name.rpartition(".")[2]])

    def _model(self, name: str, other: NodeInfo | None) -> dict[str, Any]:
        """One of the names. A peer does not say how long its contexts are; it refuses what does not fit."""
        found = {"id": name, "object": "model", "created": self._here.started, "owned_by": "conclave"}
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._here.started))
        found |= {"type": "model", "display_name": name, "created_at": made}  # as Anthropic says it
        found["architecture"] = _TEXT
        if other is not None:
            return found | {"conclave": {"node": other.id, "name": other.name}}
        return found | {"context_length": self._here.engine.info.context}

    def _gauge(self) -> None:
        here, load, info = self._here, self._here.engine.load, self._here.engine.info
        metrics.QUEUED.set(load.queued)
        metrics.SLOTS.labels("used").set(info.sequences - load.free)
        metrics.SLOTS.labels("free").set(load.free)
        metrics.SLOTS.labels("parked").set(load.topics)
        metrics.TOPICS.set(len(here.store.list()))
        metrics.UNWRITTEN.set(here.store.unwritten)
        metrics.DECODE_SPEED.set(here.engine.decode_tokens_per_s)
        metrics.INFO.labels(here.id, info.name, info.backend, here.version).set(1)
        nodes = here.mesh.nodes()[1:]
        for state in NodeState:
            metrics.PEERS.labels(state.value).set(sum(n.state is state for n in nodes))


def _json(value: Any, status: int = 200) -> Response:
    return Response(_encode(value), status, media_type="application/json")
