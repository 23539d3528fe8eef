"""An OpenAI-compatible server that does what a script says, on loopback, HTTP/1.1 by hand so that it can misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

Body = dict[str, Any]


def chunk(text: str = "", *, reason: str | None = None, logprob: float | None = None, **delta: Any) -> Body:
    """One event of a chat's stream."""
    choice: Body = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": reason}
    if logprob is not None:
        choice["logprobs"] = {"content": [{"token": text, "logprob": logprob, "bytes": list(text.encode())}]}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def usage(prompt: int, completion: int) -> Body:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


class Server:
    """`script` gives the events of an answer by its request: dicts are sent as events, bytes as they are, numbers are
    seconds to wait, None closes the connection. `refuse` gives (status, message) for a request, or None."""

    def __init__(self, script: Callable[[Body], list[Any]]) -> None:
        self.script = script
        self.refuse: Callable[[Body, dict[str, str]], tuple[int, str] | None] = lambda body, headers: None
        self.models: Any = {"data": [{"id": "served-model", "max_model_len": 2048}]}
        self.requests: list[Body] = []
        self.closed = 0  # connections that the client closed in the middle of an answer
        self.open = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b" ", 2)
                headers = {
                    k.strip().lower(): v.strip()
                    for k, _, v in (line.partition(":") for line in head.decode().split("\r\n")[1:])
                }
                body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
                if not await self._answer(method.decode(), path.decode(), headers, body, reader, writer):
                    break
        writer.close()

    async def _answer(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Body,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        body["path"] = path
        refused = self.refuse(body, headers)
        if refused:
            self._whole(writer, refused[0], {"error": {"message": refused[1]}})
        elif path.endswith("/models"):
            self._whole(writer, 200, self.models)
        elif path.endswith("/embeddings"):
            data = [{"index": i, "embedding": [3.0, 4.0]} for i in range(len(body["input"]))]
            self._whole(writer, 200, {"data": data[::-1]})
        elif path.endswith("completions"):
            self.requests.append(body)
            return await self._stream(body, reader, writer)
        else:
            self._whole(writer, 404, {"error": "not found"})
        return True

    def _whole(self, writer: asyncio.StreamWriter, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data)

    async def _stream(self, body: Body, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        gone = asyncio.ensure_future(reader.read(1))
        self.open += 1
        try:
            for step in [*self.script(body), "[DONE]"]:
                if step is None:
                    return False
                if isinstance(step, int | float):
                    await asyncio.wait((gone,), timeout=step)
                else:
                    data = (
                        step
                        if isinstance(step, bytes)
                        else b"data: " + (step if isinstance(step, str) else json.dumps(step)).encode() + b"\n\n"
                    )
                    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
                    await writer.drain()
                if gone.done():
                    self.closed += 1
                    return False
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return False  # a connection for each answer keeps the script simple
        finally:
            self.open -= 1
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
