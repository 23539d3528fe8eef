"""POST /v1/embeddings: the mean-pooled last hidden state of the node's model, of length 1."""

from __future__ import annotations

import array
import base64
import sys
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node import wire
from node.api.http import asked, names, schema
from node.api.http.here import Here, read
from node.api.http.wait import Whole
from node.errors import InvalidRequest

_DECODER = msgspec.json.Decoder(schema.EmbeddingRequest)


class Embeddings:
    """The endpoint."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def __call__(self, request: Request) -> Response:
        """Vectors of one text or several. Raises ConclaveError."""
        body = await read(request, _DECODER)
        engine = self._here.engine
        name = engine.info.name
        names.mode(body.model or "", name)  # any name of /v1/models: there is one embedder
        form = body.encoding_format or "float"
        if form not in ("float", "base64"):
            raise InvalidRequest(f"encoding_format is {form[:40]!r}: it must be float or base64")
        if body.dimensions is not None:
            raise InvalidRequest("dimensions cannot be chosen: vectors are as long as the model's hidden state")
        texts = asked.prompts(body.input, engine.piece)
        if not 1 <= len(texts) <= wire.MAX_TEXTS or not all(texts):
            raise InvalidRequest(f"input has {len(texts)} texts: send 1 to {wire.MAX_TEXTS}, none of them empty")

        async def work() -> bytes:
            lengths = await engine.lengths(texts)
            if max(lengths) > engine.info.context:
                raise InvalidRequest(
                    f"a text of {max(lengths)} tokens does not fit a sequence of {engine.info.context}: shorten it"
                )
            data = [
                {"object": "embedding", "index": i, "embedding": _encoded(v, form)}
                for i, v in enumerate(await engine.embed(texts))
            ]
            usage = {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
            return msgspec.json.encode({"object": "list", "data": data, "model": name, "usage": usage})

        return Whole(work)


def _encoded(vector: list[float], form: str) -> Any:
    """As numbers, or as float32 in little-endian order and base64, which OpenAI's own clients ask for."""
    if form == "float":
        return vector
    packed = array.array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()
