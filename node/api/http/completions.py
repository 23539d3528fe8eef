"""POST /v1/completions: texts to go on with, as they are."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node.api.http import asked, schema, votes
from node.api.http.asked import MAX_PROMPTS, Asked
from node.api.http.deltas import Answered, Called, Ended, Said, Thought, reason, whole
from node.api.http.here import Here, now, read, request_id
from node.api.http.wait import Stream, Whole
from node.errors import InvalidRequest
from node.types import TokenLogprob

_DECODER = msgspec.json.Decoder(schema.CompletionRequest)
_encode = msgspec.json.encode


class Completions:
    """The endpoint."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def __call__(self, request: Request) -> Response:
        """Go on with one text or several. Raises ConclaveError."""
        body = await read(request, _DECODER)
        texts = asked.prompts(body.prompt, self._here.engine.piece)
        if not 1 <= len(texts) <= MAX_PROMPTS:
            raise InvalidRequest(f"{len(texts)} prompts: send 1 to {MAX_PROMPTS}")
        id = request_id(request)
        all_of_them = [
            asked.completion(body, text, self._here.node, f"{id}/{i}" if i else id) for i, text in enumerate(texts)
        ]
        completion = _Completion(self._here, all_of_them, echo=bool(body.echo))
        return Stream(completion.stream, id) if body.stream else Whole(completion.whole, id)


class _Completion:
    """The texts of one request; choices are numbered through."""

    def __init__(self, here: Here, texts: list[Asked], *, echo: bool) -> None:
        self._here = here
        self._texts = texts
        self._echo = echo
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": now(),
            "model": texts[0].model,
            "system_fingerprint": here.fingerprint,
        }

    async def whole(self) -> bytes:
        """All texts as one object."""
        choices: list[dict[str, Any]] = []
        found: list[Answered] = []
        for wanted in self._texts:
            answered, spoken = await whole(self._here.answer(wanted))
            found.append(answered)
            before = self._before(wanted)
            for candidate, said in zip(answered.choices, spoken, strict=True):
                logprobs = _logprobs(said.logprobs, len(before))
                text = before + said.text
                choices.append(_choice(len(choices), text, reason(candidate), logprobs))
        return _encode(self._head | {"choices": choices, "usage": _usage(found)} | self._votes(found))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """All texts as events."""

        def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
            return b"data: " + _encode(self._head | {"choices": choices} | more) + b"\n\n"

        found: list[Answered] = []
        first = 0
        for wanted in self._texts:
            sent: dict[int, int] = {}
            if self._echo:
                for index in range(wanted.choices):
                    sent[index] = len(self._before(wanted))
                    yield chunk([_choice(first + index, self._before(wanted), None)])
            async with contextlib.aclosing(self._here.answer(wanted)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Said):
                        at = sent.get(piece.choice, 0)
                        sent[piece.choice] = at + len(piece.text)
                        logprobs = _logprobs(piece.logprobs, at)
                        yield chunk([_choice(first + piece.choice, piece.text, None, logprobs)])
                    elif isinstance(piece, Ended):
                        yield chunk([_choice(first + piece.choice, "", reason(piece.candidate))])
                    elif isinstance(piece, Answered):
                        found.append(piece)
                    elif not isinstance(piece, Called | Thought):
                        yield chunk([], conclave=votes.event(piece))
            first += wanted.choices
        if extra := self._votes(found):
            yield chunk([], **extra)
        if self._texts[0].include_usage:
            yield chunk([], usage=_usage(found))

    def _before(self, wanted: Asked) -> str:
        return wanted.request.messages[-1].content if self._echo else ""

    def _votes(self, found: list[Answered]) -> dict[str, Any]:
        if not self._texts[0].is_vote or len(found) != 1:
            return {}
        return {"conclave": votes.outcome(found[0].result)}


def _choice(index: int, text: str, finish: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """Log probabilities as this older endpoint says them; `offset` is where the first token's text begins."""
    if not tokens:
        return None
    offsets = []
    for t in tokens:
        offsets.append(offset)
        offset += len(t.bytes.decode(errors="ignore"))
    return {
        "tokens": [t.token for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{other.token: other.logprob for other in t.top} for t in tokens],
        "text_offset": offsets,
    }


def _usage(found: list[Answered]) -> dict[str, Any]:
    prompt = sum(f.result.usage.prompt for f in found)
    written = sum(c.tokens for f in found for c in f.choices)
    cached = sum(f.result.usage.cached for f in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
