"""Snapshots: put together again byte for byte, cut so that a turn costs its own rows, refused for every lie."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core import blob, block, snapshot
from node.core.blob import Layout, Plane, Rows
from node.core.block import Codec
from node.core.refusal import Reason
from node.core.snapshot import Header, Ours
from node.errors import ConclaveError, CorruptSnapshot, IncompatibleSnapshot
from node.types import Version

F16, Q8 = Plane(1, 32), Plane(8, 68)
LAYOUTS = {
    "f16": Layout(((F16,) * 4,)),
    "q8_0": Layout(((Q8,) * 4,)),
    "rows of different widths": Layout(((Plane(1, 16), Plane(1, 48), Plane(1, 16), Plane(1, 48)),)),
    "window": Layout(((F16,) * 4, (F16, Plane(1, 64))), window=40),
}


def ours(layout: Layout, fingerprint: str = "fp", context: int = 1024) -> Ours:
    return Ours(fingerprint, layout, 500, context)


def rows_of(layout: Layout, tokens: int, seed: int = 1, first: int = 0) -> tuple[Rows, ...]:
    """Rows of a cache, of finite numbers."""
    rng = np.random.default_rng(seed)
    out = []
    for part, planes in enumerate(layout.parts):
        start = max(first, layout.window_start(tokens)) if part else first
        made = []
        for plane in planes:
            data = rng.integers(0, 256, (tokens, plane.row), dtype=np.uint8)
            data[:, 1 :: (34 if plane.type == 8 else 2)] &= 0x3B  # exponents far from that of NaN
            made.append(np.ascontiguousarray(data[start:]))
        out.append(Rows(start, tuple(made)))
    return tuple(out)


def blob_of(layout: Layout, rows: tuple[Rows, ...], tokens: int) -> blob.Bytes:
    return blob.write(layout, tokens, [(i, r.first, r.cut(r.first, r.end)) for i, r in enumerate(rows)])


def ids(n: int, seed: int = 7) -> list[int]:
    return np.random.default_rng(seed).integers(0, 500, n).tolist()


def make(
    layout: Layout, tokens: list[int], before: Header | None = None, held: dict[bytes, bytes] | None = None
) -> tuple[Header, dict[bytes, bytes]]:
    head = snapshot.header("t", Version(0, 1, "n"), tokens, ours(layout), before)
    return snapshot.encode(
        head, held or {}, rows_of(layout, len(tokens)), Codec.LZ4, block.shuffle_width(layout.parts[0])
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 39, 40, 63, 64, 65, 200, 256])
def test_a_state_is_put_together_byte_for_byte(name: str, tokens: int) -> None:
    layout = LAYOUTS[name]
    state = blob_of(layout, rows_of(layout, tokens), tokens)
    assert blob.read(state, layout.window)[0] == layout
    head, made = make(layout, ids(tokens))
    checked = snapshot.check(head.pack(), ours(layout))
    assert checked == head
    assert np.array_equal(snapshot.assemble(checked, ours(layout), made.get), state)


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("width", [1, 2, 34])
def test_every_codec_gives_back_what_it_got(codec: Codec, width: int) -> None:
    rng = np.random.default_rng(3)
    for rows in (rng.integers(0, 256, 34 * 64, dtype=np.uint8), np.zeros(34 * 1000, np.uint8)):
        data = block.encode(b"key", rows, codec, width)
        assert np.array_equal(block.decode(b"key", data, rows.nbytes), rows)
        assert (len(data) < rows.nbytes / 2) == (codec is not Codec.NONE and not rows.any())


def test_cells_in_any_order_are_sorted_by_position() -> None:
    layout = LAYOUTS["f16"]
    rows = rows_of(layout, 50)
    state = blob_of(layout, rows, 50)
    order = np.random.default_rng(1).permutation(50)
    shuffled = state.copy()
    table = shuffled[16 : 16 + 600].view(blob._CELL)
    table["position"] = order
    at = 16 + 600 + 8
    for plane in range(4):
        at += 12
        shuffled[at : at + 50 * 32] = rows[0].planes[plane][order].ravel()
        at += 50 * 32
    assert np.array_equal(blob_of(layout, blob.read(shuffled)[1], 50), state)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_turn_costs_its_own_rows(name: str) -> None:
    """Twenty turns of any length: what is encoded is the new tokens' rows; with a window, that of its beginning too."""
    layout, rng = LAYOUTS[name], random.Random(5)
    all_ids = ids(1000)
    n, before, held = 0, None, dict[bytes, bytes]()
    for _ in range(20):
        n += rng.randint(5, 45)
        head, made = make(layout, all_ids[:n], before, held)
        new = n - (len(before.tokens) if before else 0)
        assert sum(b.size for b in head.blocks if b.key in made and b.part == 0) == new * layout.token_bytes
        window = sum(b.size for b in head.blocks if b.key in made and b.part == 1)
        assert window <= (new + snapshot.BLOCK_TOKENS) * layout.window_bytes
        held |= {b.key: b.digest for b in head.blocks}
        before = snapshot.check(head.pack(), ours(layout))
    assert before is not None
    assert len(before.lengths) <= n / 16 + 1 + 20


def test_a_prompt_that_changed_is_sent_from_there() -> None:
    layout, tokens = LAYOUTS["f16"], ids(300)
    head, _ = make(layout, tokens)
    changed = [*tokens[:150], 0, *tokens[151:]]
    other = snapshot.header("u", Version(0, 2, "m"), changed, ours(layout), head)
    assert other.lengths == (64, 64, *[16] * 10, 12)
    assert len({b.key for b in head.blocks} & {b.key for b in other.blocks}) == 2, "the two whole blocks before"


def test_too_many_cuts_are_cut_anew() -> None:
    layout, before = LAYOUTS["f16"], None
    for n in range(1, 130):
        before = snapshot.header("t", Version(0, n, "n"), ids(200)[:n], ours(layout), before)
        assert len(before.lengths) <= snapshot.MOST_CUTS * (n // 64 + 1)


def test_another_model_has_other_keys() -> None:
    layout = LAYOUTS["f16"]
    one = snapshot.blocks(ids(100), (64, 36), "fp", layout)
    assert {b.key for b in one}.isdisjoint(b.key for b in snapshot.blocks(ids(100), (64, 36), "other", layout))
    narrower = replace(layout, parts=((Plane(1, 16),) * 4,))
    assert {b.key for b in one}.isdisjoint(b.key for b in snapshot.blocks(ids(100), (64, 36), "fp", narrower))


# ---- lies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound() -> tuple[Header, dict[bytes, bytes]]:
    return make(LAYOUTS["window"], ids(150))


def refused(reason: Reason, call: Callable[[], object]) -> None:
    with pytest.raises((CorruptSnapshot, IncompatibleSnapshot)) as caught:
        call()
    assert caught.value.reason == reason
    assert isinstance(caught.value, IncompatibleSnapshot) == (reason in ("fingerprint", "layout"))


def lies() -> Iterator[tuple[str, Callable[[dict[str, Any]], Any], Reason]]:
    """A field of the header, what is done to it, and why it is refused."""
    big = np.arange(1_000_000, dtype="<u4").tobytes()
    yield "another fingerprint", lambda f: f | {"fingerprint": "other"}, Reason.FINGERPRINT
    yield "another layout", lambda f: f | {"layout": bytes(16)}, Reason.LAYOUT
    yield "no tokens", lambda f: f | {"tokens": b""}, Reason.TOKENS
    yield "half a token", lambda f: f | {"tokens": f["tokens"][:-1]}, Reason.TOKENS
    yield "a million tokens", lambda f: f | {"tokens": big}, Reason.TOKENS
    yield "out of vocabulary", lambda f: f | {"tokens": f["tokens"][:-4] + b"\xf4\x01\x00\x00"}, Reason.TOKENS
    yield "negative token", lambda f: f | {"tokens": f["tokens"][:-4] + b"\xff\xff\xff\xff"}, Reason.TOKENS
    yield "a token less", lambda f: f | {"tokens": f["tokens"][:-4]}, Reason.CUTS
    yield "another token", lambda f: f | {"tokens": bytes([f["tokens"][0] ^ 1]) + f["tokens"][1:]}, Reason.KEYS
    yield "no cuts", lambda f: f | {"lengths": b""}, Reason.CUTS
    yield "a block of none", lambda f: f | {"lengths": b"\0" + f["lengths"]}, Reason.CUTS
    yield "a block of too many", lambda f: f | {"lengths": bytes([65, 63, 22])}, Reason.CUTS
    yield "a block over a boundary", lambda f: f | {"lengths": bytes([60, 64, 26])}, Reason.CUTS
    yield "a block less", lambda f: f | {"blocks": f["blocks"][:-1]}, Reason.KEYS
    yield "a block more", lambda f: f | {"blocks": [*f["blocks"], f["blocks"][0]]}, Reason.KEYS
    yield "blocks swapped", lambda f: f | {"blocks": [f["blocks"][1], f["blocks"][0], *f["blocks"][2:]]}, Reason.KEYS
    yield "a block twice", lambda f: f | {"blocks": [f["blocks"][0], f["blocks"][0], *f["blocks"][2:]]}, Reason.KEYS
    yield "a key too short", lambda f: _block(f, 0, 0, b"x"), Reason.KEYS
    yield "a size that lies", lambda f: _block(f, 0, 1, 1 << 40), Reason.SIZE
    yield "a size of none", lambda f: _block(f, 0, 1, 0), Reason.SIZE
    yield "a digest too short", lambda f: _block(f, 0, 2, b"x"), Reason.SIZE
    yield "a size that is no number", lambda f: _block(f, 0, 1, "8"), Reason.MALFORMED
    yield "a size that is true", lambda f: _block(f, 0, 1, True), Reason.MALFORMED
    yield "a block that is none", lambda f: f | {"blocks": [1, *f["blocks"][1:]]}, Reason.MALFORMED
    yield "another format", lambda f: f | {"format": 2}, Reason.MALFORMED
    yield "a field more", lambda f: f | {"more": 1}, Reason.MALFORMED
    yield "a field less", lambda f: {k: x for k, x in f.items() if k != "version"}, Reason.MALFORMED
    yield "a version before the first", lambda f: f | {"version": [-1, 1, "n"]}, Reason.MALFORMED
    yield "a version past all", lambda f: f | {"version": [0, 1 << 63, "n"]}, Reason.MALFORMED
    yield "a version of two", lambda f: f | {"version": [0, 1]}, Reason.MALFORMED
    yield "no topic", lambda f: f | {"topic": ""}, Reason.MALFORMED
    yield "a topic too long", lambda f: f | {"topic": "x" * 257}, Reason.MALFORMED
    yield "no map", lambda f: [1, 2], Reason.MALFORMED


def _block(fields: dict[str, Any], at: int, field: int, value: object) -> dict[str, Any]:
    blocks = [list(b) for b in fields["blocks"]]
    blocks[at][field] = value
    return fields | {"blocks": blocks}


@pytest.mark.parametrize(("change", "reason"), [pytest.param(c, r, id=n) for n, c, r in lies()])
def test_a_header_that_lies_is_refused(
    sound: tuple[Header, dict[bytes, bytes]], change: Callable[[dict[str, Any]], Any], reason: Reason
) -> None:
    fields = msgpack.unpackb(sound[0].pack())
    refused(reason, lambda: snapshot.check(msgpack.packb(change(fields)), ours(LAYOUTS["window"])))


def test_a_header_too_large_is_not_read(sound: tuple[Header, dict[bytes, bytes]]) -> None:
    refused(Reason.TOO_LARGE, lambda: snapshot.check(bytes(snapshot.MAX_HEADER_BYTES + 1), ours(LAYOUTS["window"])))
    deep = b"\x91" * 100_000 + b"\xc0"
    refused(Reason.MALFORMED, lambda: snapshot.check(deep, ours(LAYOUTS["window"])))


def test_a_header_cut_off_anywhere_is_refused(sound: tuple[Header, dict[bytes, bytes]]) -> None:
    whole = sound[0].pack()
    for length in range(len(whole)):
        refused(Reason.MALFORMED, lambda length=length: snapshot.check(whole[:length], ours(LAYOUTS["window"])))  # type: ignore[misc]
    refused(Reason.MALFORMED, lambda: snapshot.check(whole + b"\0", ours(LAYOUTS["window"])))


@pytest.mark.parametrize("codec", list(Codec))
def test_a_block_cut_off_anywhere_or_with_any_bit_flipped_is_refused(codec: Codec) -> None:
    rows = np.tile(np.arange(64, dtype=np.uint8), 8)
    data = block.encode(b"key", rows, codec, 2)
    for length in range(len(data)):
        with pytest.raises(CorruptSnapshot):
            block.decode(b"key", data[:length], rows.nbytes)
    with pytest.raises(CorruptSnapshot):
        block.decode(b"key", data + b"\0", rows.nbytes)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert np.array_equal(block.decode(b"key", bytes(flipped), rows.nbytes), rows)
        except CorruptSnapshot:
            continue


def test_a_block_under_another_key_is_refused() -> None:
    rows = np.zeros(64, np.uint8)
    refused(Reason.CHECKSUM, lambda: block.decode(b"other", block.encode(b"key", rows), 64))


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
def test_a_bomb_allocates_no_more_than_was_announced(codec: Codec) -> None:
    """256 MiB of zeros in a few bytes, said to be 64 KiB."""
    import tracemalloc

    bomb = block.encode(b"key", np.zeros(256 << 20, np.uint8), codec, 1)
    head = block._HEAD.unpack_from(bomb)
    said = block._HEAD.pack(*head[:4], 64 << 10, head[5]) + bomb[block.HEAD_BYTES :][: 64 << 10]
    tracemalloc.start()
    try:
        with pytest.raises(CorruptSnapshot):
            block.decode(b"key", said, 64 << 10)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("plane", "bad"),
    [
        (F16, b"\x00\x7c"),
        (F16, b"\x01\xfc"),
        (Plane(0, 32), b"\x00\x00\x80\x7f"),
        (Plane(30, 32), b"\xc0\x7f"),
        (Q8, b"\xff\x7f"),
    ],
)
def test_numbers_that_are_none_are_refused(plane: Plane, bad: bytes) -> None:
    layout = Layout(((plane, plane),))
    rows = np.zeros(10 * 2 * plane.row, np.uint8)
    each = snapshot.Block(b"k" * 16, 0, 0, 10, rows.nbytes)
    assert snapshot.check_block(each, block.encode(each.key, rows), ours(layout)).nbytes == rows.nbytes
    at = 13 * plane.row  # in the second plane
    rows[at : at + len(bad)] = np.frombuffer(bad, np.uint8)
    refused(Reason.NUMBERS, lambda: snapshot.check_block(each, block.encode(each.key, rows), ours(layout)))


def test_a_block_that_is_gone_or_is_not_the_one_that_was_announced(sound: tuple[Header, dict[bytes, bytes]]) -> None:
    head, _ = sound
    refused(Reason.MISSING, lambda: snapshot.assemble(head, ours(LAYOUTS["window"]), lambda _: None))
    first = head.blocks[0]
    other = block.encode(first.key, np.zeros(first.size, np.uint8))
    refused(Reason.CHECKSUM, lambda: snapshot.check_block(first, other, ours(LAYOUTS["window"]), digest=first.digest))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises((CorruptSnapshot, IncompatibleSnapshot)):
        snapshot.check(data, ours(LAYOUTS["f16"]))
    with pytest.raises(CorruptSnapshot):
        block.decode(b"key", data, 64)
    with pytest.raises(ConclaveError):
        snapshot.summary(data)
    with pytest.raises(blob.LayoutUnknown):
        blob.read(np.frombuffer(data, np.uint8))


def test_states_that_are_not_as_described_stay_at_home() -> None:
    layout = LAYOUTS["f16"]
    state = blob_of(layout, rows_of(layout, 10), 10)

    def with_words(at: int, value: int) -> blob.Bytes:
        out = state.copy()
        out[at : at + 4] = np.frombuffer(value.to_bytes(4, "little"), np.uint8)
        return out

    assert blob.read(state)[0] == layout
    transposed = 16 + 120
    for at, value in (
        (0, 1),
        (8, 2),
        (12, 0),
        (12, 11),
        (16, 5),
        (20, 2),
        (24, 1),
        (transposed, 1),
        (transposed + 4, 3),
    ):
        with pytest.raises(blob.LayoutUnknown):
            blob.read(with_words(at, value))
    for length in range(0, state.nbytes, 7):
        with pytest.raises(blob.LayoutUnknown):
            blob.read(state[:length])
    with pytest.raises(blob.LayoutUnknown):
        blob.read(state, window=64)
    with pytest.raises(ValueError, match="blocks end"):
        blob.write(layout, 11, [(0, 0, rows_of(layout, 10)[0].cut(0, 10))])
    with pytest.raises(ValueError, match="a block of"):
        blob.write(layout, 10, [(0, 1, rows_of(layout, 9)[0].cut(0, 9))])


def test_taking_over_is_weighed_against_prefilling() -> None:
    rates = snapshot.Rates(link_s=1e-6, codec_s=2e-9, restore_s=2e-10)  # a link of 8 Mbit/s
    assert snapshot.is_worth(2048, 5e-3, 25_000_000, 1_000_000, rates)
    assert not snapshot.is_worth(2048, 5e-3, 25_000_000, 25_000_000, rates)
    assert block.choose(0.8, 2e-9, 1e-7)
    assert not block.choose(0.8, 2e-9, 1e-8)
    assert not block.choose(1.0, 2e-9, 1e-3)


def test_what_another_mesh_made_is_refused(sound: tuple[Header, dict[bytes, bytes]]) -> None:
    """By its header's keys; and a block with its rows and checksum put right without the secret by its checksum."""
    layout = LAYOUTS["window"]
    mine = replace(ours(layout), secret=b"this mesh's own ")
    refused(Reason.KEYS, lambda: snapshot.check(sound[0].pack(), mine))
    first = snapshot.header("t", Version(0, 1, "n"), ids(150), mine).blocks[0]
    rows = np.zeros(first.size, np.uint8)
    assert snapshot.check_block(first, block.encode(first.key, rows, secret=mine.secret), mine).nbytes == rows.nbytes
    refused(Reason.CHECKSUM, lambda: snapshot.check_block(first, block.encode(first.key, rows), mine))
