"""Six digits carry the token: only to who knows them, three tries at most, and nothing to whoever listens."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import NotFound, PeerUnavailable, Unauthenticated
from node.mesh import pairing
from node.mesh.identity import new_token
from tests import loopback

HOST = "127.0.0.1"


async def test_the_right_code_brings_the_token_once() -> None:
    token = new_token()
    shown = pairing.Shown("012345", token)
    port = await shown.listen()
    assert await pairing.type_code(HOST, port, "012345") == token
    await shown.wait()
    with pytest.raises(PeerUnavailable, match="nothing shows a code"):
        await pairing.type_code(HOST, port, "012345")


async def test_three_wrong_codes_end_it() -> None:
    told: list[str] = []
    shown = pairing.Shown("012345", new_token(), told.append)
    port = await shown.listen()
    for left in ("2 of 3 tries are left", "1 of 3 tries are left", "that was the last try"):
        with pytest.raises(Unauthenticated, match=left):
            await pairing.type_code(HOST, port, "543210")
    with pytest.raises(PeerUnavailable):  # the right one comes too late
        await pairing.type_code(HOST, port, "012345")
    with pytest.raises(Unauthenticated, match="3 wrong codes"):
        await shown.wait()
    assert told[0] == "a wrong code was typed: 2 of 3 tries are left"


async def test_guesses_at_the_same_time_are_counted_too() -> None:
    token = new_token()
    shown = pairing.Shown("000005", token)
    port = await shown.listen()
    tries = (pairing.type_code(HOST, port, f"{i:06}") for i in range(6, 30))
    found = await asyncio.gather(*tries, return_exceptions=True)
    wrong = [f for f in found if isinstance(f, Unauthenticated)]
    assert len(wrong) == pairing.TRIES
    assert token not in found
    with pytest.raises(Unauthenticated):
        await shown.wait()


async def test_strangers_and_those_who_leave_are_no_try() -> None:
    token = new_token()
    shown = pairing.Shown("012345", token)
    port = await shown.listen()
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff", b"\0\x0aclv-pair-1\0\x21" + b"S" + bytes(32)):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(said)
        writer.write_eof()
        await asyncio.sleep(0.05)
        writer.close()
    assert shown.left == pairing.TRIES
    assert await pairing.type_code(HOST, port, "012345") == token
    await shown.wait()


async def test_nobody_comes() -> None:
    shown = pairing.Shown("012345", new_token())
    await shown.listen()
    with pytest.raises(NotFound, match="nobody typed the code"):
        await shown.wait(0.05)


async def test_who_shows_must_know_the_code_too() -> None:
    """A machine that only pretends to show a code says that the proof was right and sends a token of its own."""

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await pairing._read(reader)
        theirs = await pairing._read(reader)
        side = pairing.SPAKE2_A(b"999999", idA=pairing._SHOWS, idB=pairing._TYPES)
        ours = side.start()
        key = pairing._key(side, theirs)
        await pairing._write(writer, ours)
        await pairing._read(reader)
        await pairing._write(writer, b"right", pairing._proof(key, pairing._SHOWS), bytes(64))
        writer.close()

    server = await asyncio.start_server(pretend, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Unauthenticated, match="somebody stands between"):
        await pairing.type_code(HOST, port, "012345")
    server.close()


async def test_what_is_not_the_other_side() -> None:
    with loopback.nobody() as port, pytest.raises(PeerUnavailable, match="nothing shows a code"):
        await pairing.type_code(HOST, port, "012345")

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x05hello" * 20)
        writer.close()

    server = await asyncio.start_server(garbage, HOST, 0)
    with pytest.raises(PeerUnavailable, match="does not show a code of this version"):
        await pairing.type_code(HOST, server.sockets[0].getsockname()[1], "012345")
    server.close()


@given(st.text(max_size=12))
def test_digits(text: str) -> None:
    found = pairing.digits(text)
    assert found == "" or (len(found) == 6 and found.isdigit() and found.isascii())


def test_codes_as_people_type_them() -> None:
    assert {pairing.digits(t) for t in ("012345", "012 345", "012-345", " 0 1 2 3 4 5 ")} == {"012345"}
    assert len({pairing.new_code() for _ in range(50)}) > 40
