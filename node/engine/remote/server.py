"""The connections to an OpenAI-compatible server, and its errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx2

from node.engine.remote.options import KEY, RemoteOptions
from node.engine.remote.stream import END, Events, refusal
from node.errors import BackendError, ConclaveError, Overloaded, Unauthenticated

_CONNECT_S = 5.0
_SILENCE_S = 300.0  # a server that says nothing for so long is given up: a long prompt on a slow machine takes minutes
_MOST_ANSWER = 64 << 20  # bytes of an answer that is no stream
_MOST_REFUSAL = 1 << 16  # bytes of what a refusal says


class Refused(Exception):
    """The server does not understand the request as such (400 or 422); says why."""


class Server:
    """One server. Whatever is asked of it raises BackendError where it is gone or no such server, Unauthenticated and
    Overloaded. `transport` is for tests."""

    def __init__(self, options: RemoteOptions, transport: Any = None) -> None:
        self.url = options.url
        self._http = httpx2.AsyncClient(
            base_url=options.url,
            headers={"Authorization": f"Bearer {options.key}"} if options.key else {},
            timeout=httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=options.sequences + 4),
            transport=transport,
            follow_redirects=False,  # the key is for this server
        )

    async def models(self) -> list[dict[str, Any]]:
        """What it serves, each with an id."""
        said = await self._get("/models")
        return [m for m in said.get("data") or () if isinstance(m, dict) and m.get("id")]

    async def slot_tokens(self) -> int:
        """Tokens of a slot, which llama-server alone says; 0 elsewhere."""
        with contextlib.suppress(ConclaveError, KeyError, TypeError, ValueError):
            said = await self._get(str(httpx2.URL(self.url).join("/props")))
            return int(said["default_generation_settings"]["n_ctx"])
        return 0

    async def embeddings(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text. Raises BackendError where it gives none."""
        try:
            answer = await self._http.post("/embeddings", json={"model": model, "input": list(texts)})
        except httpx2.HTTPError as e:
            raise self._unreachable(e) from None
        if answer.status_code != 200:
            raise self._refusal(answer.status_code, answer.content[:_MOST_ANSWER])
        try:
            data = sorted(answer.json()["data"], key=lambda d: d["index"])
            return [[float(x) for x in d["embedding"]] for d in data]
        except (ValueError, KeyError, TypeError):
            raise BackendError(f"{self.url} sent what is no embedding") from None

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        """The data of the events of a streamed answer. Raises Refused before the first."""
        events = Events()
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    said = await _limited(response)
                    if response.status_code in (400, 422):
                        raise Refused(refusal(response.status_code, said) or "bad request")
                    raise self._refusal(response.status_code, said)
                async for piece in response.aiter_bytes():
                    for data in events.feed(piece):
                        if data == END:
                            break
                        yield data
        except httpx2.HTTPError as e:
            raise self._unreachable(e) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _get(self, where: str) -> dict[str, Any]:
        try:
            answer = await self._http.get(where, timeout=_CONNECT_S * 2)
            if answer.status_code != 200:
                raise self._refusal(answer.status_code, answer.content)
            said = answer.json()
        except httpx2.HTTPError as e:
            raise self._unreachable(e) from None
        except ValueError:
            raise BackendError(f"{self.url} is no OpenAI-compatible server: {where} is no JSON") from None
        return said if isinstance(said, dict) else {}

    def _refusal(self, code: int, data: bytes) -> ConclaveError:
        said = refusal(code, data)
        if code in (401, 403):
            return Unauthenticated(f"{self.url} wants a key, or another one: set {KEY} ({said})")
        if code in (429, 503):
            return Overloaded(f"{self.url} is busy or loading: {said}")
        return BackendError(f"{self.url} answered {code}: {said}")

    def _unreachable(self, e: Exception) -> BackendError:
        said = " ".join(str(e).split()) or type(e).__name__
        return BackendError(f"{self.url} does not answer ({said[:200]}): start the server, or correct --url")


async def _limited(response: httpx2.Response) -> bytes:
    data = b""
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > _MOST_REFUSAL:
            break
    return data[:_MOST_REFUSAL]
