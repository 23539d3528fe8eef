"""Carrying the mesh's token to another machine with six digits that a person reads there and types here.

One side shows a code, the other types it. SPAKE2 (RFC 9382's scheme, by the `spake2` package) makes a shared key of it
that whoever listens, or stands between, cannot learn: an attacker has one guess a try, in a million, and three wrong
tries end it. The side that types proves first that it knows the code, so the token goes to nobody else.

    types -> shows   "clv-pair-1", its SPAKE2 message
    shows -> types   its SPAKE2 message
    types -> shows   proof
    shows -> types   proof and the token, encrypted; or how many tries are left
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from spake2 import SPAKE2_A, SPAKE2_B

from node.errors import NotFound, PeerUnavailable, Unauthenticated
from node.mesh.identity import parse_token

DIGITS = 6
TRIES = 3
SHOWN_S = 300.0  # As long as a person needs to walk to another room.
STEP_S = 10.0  # Of one side's answer.
MAX_FRAME = 512
MAX_CALLS = 200  # Connections in all: who opens more and says nothing must not keep us.
_MAGIC = b"clv-pair-1"
_SHOWS, _TYPES = b"conclave pair: shows", b"conclave pair: types"


def new_code() -> str:
    """Six random digits."""
    return f"{secrets.randbelow(10**DIGITS):0{DIGITS}}"


def digits(text: str) -> str:
    """The code in what a person typed, with spaces and dashes where they like them; "" if it is none."""
    found = text.replace(" ", "").replace("-", "")
    return found if len(found) == DIGITS and found.isascii() and found.isdigit() else ""


class Shown:
    """A code that is shown from `listen` on, until it was typed, or the tries or the time are over; `wait` says so."""

    def __init__(self, code: str, token: str, on_try: Callable[[str], None] = lambda _: None) -> None:
        self.left = TRIES
        self._code, self._token, self._on_try = code, token, on_try
        self._turn = asyncio.Lock()  # one at a time, so that tries are counted
        self._calls = 0
        self._end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int = 0) -> int:
        """Begin to serve on all interfaces; returns the port."""
        if socket.has_dualstack_ipv6():
            listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listener = socket.create_server(("", port))
        self._server = await asyncio.start_server(self._called, sock=listener)
        found: int = listener.getsockname()[1]
        return found

    async def wait(self, seconds: float = SHOWN_S) -> None:
        """Until it is over. Raises Unauthenticated after three wrong codes, NotFound when nobody came."""
        try:
            async with asyncio.timeout(seconds):
                paired = await asyncio.shield(self._end)
        except TimeoutError:
            line = f"nobody typed the code in {seconds / 60:g} minutes: run it again for a new one"
            raise NotFound(line) from None
        finally:
            if self._server is not None:
                self._server.close()
        if not paired:
            raise Unauthenticated(f"{TRIES} wrong codes were typed, so this one has ended: run it again for a new one")

    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._calls += 1
        try:
            async with asyncio.timeout(2 * STEP_S), self._turn:
                if not self._end.done():
                    await self._answer(reader, writer)
        except (TimeoutError, OSError, EOFError, ValueError):
            pass  # A stranger, or one who left: that is no try, for nothing was learnt by it.
        finally:
            writer.close()
            if self._calls >= MAX_CALLS and not self._end.done():
                self._end.set_result(False)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await _read(reader) != _MAGIC:
            return
        theirs = await _read(reader)
        side = SPAKE2_A(self._code.encode(), idA=_SHOWS, idB=_TYPES)
        ours = side.start()
        key = _key(side, theirs)
        await _write(writer, ours)
        proof = await _read(reader)
        if not hmac.compare_digest(proof, _proof(key, _TYPES)):
            self.left -= 1
            self._on_try(f"a wrong code was typed: {self.left} of {TRIES} tries are left")
            await _write(writer, b"wrong", struct.pack("!B", self.left))
            if not self.left:
                self._end.set_result(False)
            return
        nonce = secrets.token_bytes(12)
        sealed = ChaCha20Poly1305(_derived(key, b"token")).encrypt(nonce, self._token.encode(), _MAGIC)
        await _write(writer, b"right", _proof(key, _SHOWS), nonce + sealed)
        self._end.set_result(True)


async def type_code(host: str, port: int, code: str) -> str:
    """The token of the machine that shows a code. Raises Unauthenticated (wrong code), PeerUnavailable."""
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(STEP_S):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        raise PeerUnavailable(
            f"nothing shows a code at {where}: run `python -m node pair` there, and type the code that it shows now"
        ) from None
    try:
        async with asyncio.timeout(STEP_S):
            return await _type(reader, writer, code)
    except (OSError, EOFError, TimeoutError):
        raise PeerUnavailable(
            f"{where} ended the conversation: the code it showed is used or over, show a new one"
        ) from None
    except (ValueError, InvalidTag):
        raise PeerUnavailable(f"what answers at {where} does not show a code of this version") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _type(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, code: str) -> str:
    side = SPAKE2_B(code.encode(), idA=_SHOWS, idB=_TYPES)
    await _write(writer, _MAGIC, side.start())
    key = _key(side, await _read(reader))
    await _write(writer, _proof(key, _TYPES))
    verdict = await _read(reader)
    if verdict == b"wrong":
        (left,) = struct.unpack("!B", await _read(reader))
        more = (
            f"{left} of {TRIES} tries are left"
            if left
            else "that was the last try, the other machine must show a new one"
        )
        raise Unauthenticated(f"the code is wrong: {more}")
    proof, sealed = await _read(reader), await _read(reader)
    if verdict != b"right" or not hmac.compare_digest(proof, _proof(key, _SHOWS)):
        raise Unauthenticated(
            "the other side does not know the code that it should have shown: somebody stands between"
        )
    token = ChaCha20Poly1305(_derived(key, b"token")).decrypt(sealed[:12], sealed[12:], _MAGIC).decode()
    parse_token(token, "the other machine")
    return token


def _key(side: Any, theirs: bytes) -> bytes:
    try:
        key: bytes = side.finish(theirs)
    except Exception as e:  # the package raises what its group does, without a common base
        raise ValueError(str(e)) from None
    return key


def _derived(key: bytes, what: bytes) -> bytes:
    return hashlib.blake2b(what, key=key[:64], person=b"clv-pair-1").digest()[:32]


def _proof(key: bytes, who: bytes) -> bytes:
    return _derived(key, b"proof " + who)


async def _read(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack("!H", await reader.readexactly(2))
    if size > MAX_FRAME:
        raise ValueError("too long")
    return await reader.readexactly(size)


async def _write(writer: asyncio.StreamWriter, *frames: bytes) -> None:
    writer.write(b"".join(struct.pack("!H", len(f)) + f for f in frames))
    await writer.drain()
