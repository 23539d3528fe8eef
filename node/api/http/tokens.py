"""POST /tokenize, /detokenize and /apply-template: what a model reads, as llama-server tells it (its tools/server)."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node.api.http import asked, schema
from node.api.http.here import Here, read
from node.api.http.wait import Whole
from node.errors import InvalidRequest

_TOKENIZE = msgspec.json.Decoder(schema.TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(schema.DetokenizeRequest)
_TEMPLATE = msgspec.json.Decoder(schema.TemplateRequest)
_encode = msgspec.json.encode


class Tokens:
    """The endpoints."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def tokenize(self, request: Request) -> Response:
        """Tokens of a text. Raises InvalidRequest."""
        body = await read(request, _TOKENIZE)
        if body.parse_special is False:
            raise InvalidRequest("parse_special cannot be false here: a model's control tokens are always known")

        async def work() -> bytes:
            engine = self._here.engine
            found = await engine.tokens(body.content, is_part=not body.add_special)
            pieces = [{"id": t, "piece": _shown(engine.piece(t))} for t in found] if body.with_pieces else found
            return _encode({"tokens": pieces})

        return Whole(work)

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens. Raises InvalidRequest."""
        body = await read(request, _DETOKENIZE)
        [text] = asked.prompts([body.tokens], self._here.engine.piece)
        return Response(_encode({"content": text}), media_type="application/json")

    async def template(self, request: Request) -> Response:
        """A conversation as the model reads it. Raises ConclaveError."""
        body = await read(request, _TEMPLATE)
        if body.add_generation_prompt is False:
            raise InvalidRequest("add_generation_prompt cannot be false here: a prompt is for the next answer")
        wanted = asked.chat(body, self._here.node)

        async def work() -> bytes:
            return _encode({"prompt": await self._here.coordinator.rendered(wanted.request)})

        return Whole(work)


def _shown(piece: bytes) -> Any:
    """Text where it is any; bytes as numbers where a character spans tokens."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
