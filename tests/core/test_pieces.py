"""Pieces of a model: what a description may say, and who brings what."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.manifest import HASH, PIECE, File, Manifest, check, check_files, safe_name
from node.core.pieces import SHARED, Pieces
from node.errors import InvalidRequest


@given(st.integers(0, 30), st.integers(1, 4), st.randoms(use_true_random=False), st.booleans())
def test_every_piece_comes_once_whoever_fails(count: int, sources: int, rng: random.Random, fails: bool) -> None:
    held = {i for i in range(count) if rng.random() < 0.3}
    pieces = Pieces(count, held)
    assert pieces.left == count - len(held)
    came: list[int] = []
    flying: list[tuple[str, int]] = []
    names = [f"s{i}" for i in range(sources)]
    for _ in range(10_000):
        if not pieces.left:
            break
        source = rng.choice(names)
        piece = pieces.take(source)
        if piece is not None:
            assert piece not in held
            assert piece not in came
            assert (source, piece) not in flying
            flying.append((source, piece))
        assert all(sum(p == piece for _, p in flying) <= SHARED for _, piece in flying)
        if flying and (piece is None or rng.random() < 0.5):
            source, piece = flying.pop(rng.randrange(len(flying)))
            if fails and rng.random() < 0.3:
                pieces.failed(piece, source)
            elif pieces.done(piece):
                came.append(piece)
    assert sorted(came) == sorted(set(range(count)) - held)


def test_the_first_takes_the_first_and_the_idle_one_helps_at_the_end() -> None:
    pieces = Pieces(2)
    assert (pieces.take("slow"), pieces.take("quick")) == (0, 1)
    assert pieces.done(1)
    assert pieces.take("quick") == 0, "the slow one's"
    assert pieces.take("third") is None, "two are enough"
    pieces.failed(0, "slow")
    assert pieces.take("third") == 0
    assert pieces.done(0)
    assert not pieces.done(0)
    assert pieces.left == 0


def described(*sizes: int) -> Manifest:
    files = [File(f"m-{i}.gguf", s, bytes(-(-s // PIECE) * HASH)) for i, s in enumerate(sizes)]
    return Manifest(tuple(files))


@given(st.lists(st.integers(1, 5 * PIECE), min_size=1, max_size=5))
def test_pieces_cover_all_files(sizes: list[int]) -> None:
    manifest = described(*sizes)
    assert check(manifest) == ""
    spans: dict[int, list[tuple[int, int]]] = {}
    for i in range(manifest.count):
        piece = manifest.piece(i)
        assert 0 < piece.size <= PIECE
        assert len(piece.sha256) == HASH
        spans.setdefault(piece.file, []).append((piece.offset, piece.size))
    for i, size in enumerate(sizes):
        assert sum(s for _, s in spans[i]) == size
        assert [o for o, _ in spans[i]] == [n * PIECE for n in range(len(spans[i]))]
    for wrong in (-1, manifest.count):
        with pytest.raises(InvalidRequest):
            manifest.piece(wrong)


def test_the_digest_covers_everything() -> None:
    one = Manifest((File("a.gguf", 5, hashlib.sha256(b"1").digest()),))
    others = [
        File("b.gguf", 5, one.files[0].hashes),
        File("a.gguf", 6, one.files[0].hashes),
        File("a.gguf", 5, hashlib.sha256(b"2").digest()),
    ]
    assert len({one.digest, *(Manifest((f,)).digest for f in others), Manifest((one.files[0],) * 2).digest}) == 5


@pytest.mark.parametrize("name", [
    "", ".gguf", "..gguf", "../a.gguf", "a/b.gguf", "/etc/passwd", "a.bin", "a.gguf\n", "a\x00.gguf", "a\\b.gguf",
    "-a.gguf", "a" * 300 + ".gguf", "ä.gguf", "\u202ea.gguf", "a.gguf.partial", "~a.gguf", "a;b.gguf",
])  # fmt: skip
def test_names_that_are_refused(name: str) -> None:
    assert check_files((File(name, 1),))


def test_what_else_is_refused() -> None:
    assert check_files(())
    assert check_files((File("a.gguf", 0),))
    assert check_files((File("a.gguf", 1 << 60),))
    assert check_files((File("a.gguf", 1), File("A.gguf", 1)))
    assert check_files(tuple(File(f"{i}.gguf", 1) for i in range(1000)))
    assert check(Manifest((File("a.gguf", PIECE + 1, bytes(HASH)),)))


@given(st.text())
def test_a_safe_name_is_one(text: str) -> None:
    assert check_files((File(safe_name(text), 1),)) == ""
