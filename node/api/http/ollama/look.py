"""Which models there are, in Ollama's words, and embeddings."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node import wire
from node.api.http import names
from node.api.http.here import Here, read
from node.api.http.names import LATEST
from node.api.http.ollama import say, schema
from node.api.http.ollama.asked import model
from node.api.http.wait import Whole
from node.errors import InvalidRequest
from node.types import NodeInfo

# The version of Ollama's API that this follows: programs refuse what is older than what they know.
API = "0.12.6"
# What changes the models of a server: `python -m node models` does that here.
UNSERVED = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest}")
_STAYS_S = 10 * 365 * 86_400  # a model is never unloaded while its node runs
_EMBED = msgspec.json.Decoder(schema.EmbedRequest)
_SHOW = msgspec.json.Decoder(schema.ShowRequest)
_encode = msgspec.json.encode


class Look:
    """The endpoints."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def version(self, _: Request) -> Response:
        """The API's version, and ours."""
        return _json({"version": API, "conclave": self._here.version})

    async def tags(self, _: Request) -> Response:
        """The names that requests may give: votes, this node's model, and those of others."""
        others = self._here.others
        found = [self._model(n, others.get(n)) for n in names.listed(self._here.engine.info.name, others)]
        return _json({"models": found})

    async def ps(self, _: Request) -> Response:
        """The model that is loaded."""
        info = self._here.engine.info
        more = {
            "expires_at": say.stamp(time.time() + _STAYS_S),
            "size_vram": 0,
            "context_length": info.context,
        }
        found = self._model(info.name, None)
        found.pop("modified_at")
        return _json({"models": [found | more]})

    async def show(self, request: Request) -> Response:
        """One model. Raises NotFound."""
        body = await read(request, _SHOW)
        info = self._here.engine.info
        name = body.model or body.name
        if not name:
            raise InvalidRequest("the name of a model is missing: send `model`")
        self._here.mode(model(name))
        other = self._here.others.get(model(name))
        details = self._details(other)
        kind = details["family"] or "unknown"
        return _json(
            {
                "modelfile": "",
                "parameters": "",
                "template": "",
                "details": details,
                "model_info": {
                    "general.architecture": kind,
                    "general.basename": other.model if other else info.name,
                    **({} if other else {"general.parameter_count": info.parameters}),
                    **({} if other else {f"{kind}.context_length": info.context}),
                },
                # What is not here, such as vision, the model has not.
                "capabilities": ["completion", "tools", *(["thinking"] if not other and info.thinks else [])],
                "modified_at": say.stamp(self._here.started),
            }
        )

    async def embed(self, request: Request) -> Response:
        """Vectors of one text or several. Raises ConclaveError."""
        body = await read(request, _EMBED)
        texts = [body.input] if isinstance(body.input, str) else body.input or []
        return Whole(lambda: self._embed(body, [t for t in texts if t]), refused=say.refused)

    async def embeddings(self, request: Request) -> Response:
        """The vector of one text, as it was before `embed`. Raises ConclaveError."""
        body = await read(request, _EMBED)

        async def work() -> bytes:
            found = msgspec.json.decode(await self._embed(body, [body.prompt] if body.prompt else []))
            return _encode({"embedding": (found["embeddings"] or [[]])[0]})

        return Whole(work, refused=say.refused)

    async def unserved(self, request: Request) -> Response:
        """What this node does not do for clients."""
        said = f"{request.url.path} is not served here: `python -m node models` lists, gets and removes models"
        return Response(_encode({"error": said}), 501, media_type="application/json")

    async def _embed(self, body: schema.EmbedRequest, texts: list[str]) -> bytes:
        begun = time.monotonic()
        engine = self._here.engine
        names.mode(model(body.model), engine.info.name)
        if body.dimensions:
            raise InvalidRequest("dimensions cannot be chosen: vectors are as long as the model's hidden state")
        if len(texts) > wire.MAX_TEXTS:
            raise InvalidRequest(f"input has {len(texts)} texts: send at most {wire.MAX_TEXTS}")
        lengths = await engine.lengths(texts) if texts else [0]
        if max(lengths) > engine.info.context:
            raise InvalidRequest(
                f"a text of {max(lengths)} tokens does not fit a sequence of {engine.info.context}: shorten it"
            )
        return _encode(
            {
                "model": body.model,
                "embeddings": await engine.embed(texts) if texts else [],
                "total_duration": int((time.monotonic() - begun) * 1e9),
                "load_duration": 0,
                "prompt_eval_count": sum(lengths),
            }
        )

    def _model(self, name: str, other: NodeInfo | None) -> dict[str, Any]:
        info = self._here.engine.info
        name = name if ":" in name else name + LATEST
        return {
            "name": name,
            "model": name,
            "modified_at": say.stamp(self._here.started),
            "size": 0 if other else info.weights_bytes,
            "digest": hashlib.sha256(f"{(other or info).fingerprint} {name}".encode()).hexdigest(),
            "details": self._details(other),
        }

    def _details(self, other: NodeInfo | None) -> dict[str, Any]:
        """What is known of the model: llama.cpp describes it by architecture, size in billions and quantization. A peer
        says none of that of its own."""
        info = self._here.engine.info
        family, quantization = "", ""
        if info.backend == "llama" and other is None:
            family, _, quantization = (*info.description.split(" ", 2), "", "")[:3]
        return {
            "parent_model": "",
            "format": "gguf" if (other or info).backend == "llama" else "",
            "family": family,
            "families": [family] if family else [],
            "parameter_size": "" if other else _human(info.parameters),
            "quantization_level": re.sub(r" - ([SML])\w*$", r"_\1", quantization),  # "Q4_K - Medium" is Q4_K_M
        }


def _human(count: int) -> str:
    """A number of parameters as Ollama says it, such as 7.6B; empty where it is not known."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return ""


def _json(value: Any) -> Response:
    return Response(_encode(value), media_type="application/json")
