"""When a node borrows: what does not fit, or what it was told; and what it says when it cannot."""

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from node import backends
from node.config import Config
from node.core.plan import GIB, Room
from node.engine import llamacpp, trial
from node.errors import BackendError, InvalidRequest, NotFound, PeerUnavailable
from node.mesh.identity import Identity, new_token
from node.models import split
from node.models.shape import shape
from node.pool.borrower import WAIT_S, Wanted
from node.pool.borrower import Borrower as Lent
from node.types import NodeInfo
from scripts.bench.make_model import Shape, write

SMALL = Shape("qwen2", layers=6, width=128, heads=4, kv_heads=2, hidden=256, vocabulary=300, context=1024)
Make = Callable[..., Awaitable[list[str]]]


class Borrower:
    """Lends six layers, or nothing."""

    def __init__(self, problem: str = "") -> None:
        self.asked: list[Wanted] = []
        self.waits: list[float] = []
        self.problem = problem

    async def borrow(self, wanted: Wanted, within_s: float = WAIT_S) -> tuple[tuple[str, int], ...]:
        self.asked.append(wanted)
        self.waits.append(within_s)
        if self.problem and within_s < math.inf:
            raise NotFound(self.problem)
        return (("127.0.0.1:1", 4),)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options that would be loaded with."""
    found: list[Any] = []

    async def ensure(options: Any, directory: Path, version: str, progress: object) -> None:
        found.append(options)

    monkeypatch.setattr(trial, "ensure", ensure)
    monkeypatch.setattr(llamacpp, "has_rpc", lambda: True)
    return found


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    path = tmp_path / "small.gguf"
    write(path, SMALL)

    async def made(borrower: Borrower, usable: int, *, after_loss: bool = False, **config: Any) -> list[str]:
        room = Room("memory", "a machine", 8 * GIB, usable, usable, "what others leave")
        monkeypatch.setattr(backends, "rooms", lambda machine, **_: (room, room))
        notices: list[str] = []
        await backends.make(
            Config(model=str(path), **config),
            tmp_path,
            notices.append,
            borrower=borrower,  # type: ignore[arg-type]
            after_loss=after_loss,
        )
        return notices

    return made


async def test_what_fits_is_not_borrowed_for(make: Make, loaded: list[Any]) -> None:
    borrower = Borrower()
    assert await make(borrower, 4 * GIB) == []
    assert borrower.asked == []
    assert loaded[0].spread is None


async def test_what_does_not_fit_is_spread(make: Make, loaded: list[Any]) -> None:
    borrower = Borrower()
    assert await make(borrower, 1 << 20) == []
    [wanted] = borrower.asked
    assert (wanted.here, wanted.even, wanted.shape.layers) == (1 << 20, False, 6)
    assert wanted.cells >= wanted.sequences * 1024
    assert loaded[0].spread == llamacpp.Spread(6, (llamacpp.Lender("127.0.0.1:1", 4),))


async def test_even_is_spread_though_it_fits(make: Make, loaded: list[Any]) -> None:
    borrower = Borrower()
    await make(borrower, 4 * GIB, borrow="even")
    assert borrower.asked[0].even
    assert loaded[0].spread is not None


async def test_nobody_lends(make: Make, loaded: list[Any]) -> None:
    """It is tried here, and said; whoever asked for it gets an error."""
    [notice] = await make(Borrower("nobody lends"), 1 << 20)
    assert "is more than this machine should hold" in notice
    assert notice.endswith("and is loaded here all the same: nobody lends")
    assert loaded[0].spread is None
    with pytest.raises(NotFound, match="nobody lends"):
        await make(Borrower("nobody lends"), 1 << 20, borrow="even")


async def test_after_a_loss_what_fits_is_loaded_here(make: Make, loaded: list[Any]) -> None:
    """Even if it was to be spread, and soon: a lender that comes back later changes nothing."""
    borrower = Borrower("nobody lends")
    [notice] = await make(borrower, 4 * GIB, borrow="even", after_loss=True)
    assert "is loaded here as a whole" in notice
    assert borrower.waits == [backends.LOST_S]
    assert loaded[0].spread is None


async def test_after_a_loss_a_smaller_model_takes_the_place(
    make: Make, loaded: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "smaller.gguf"
    write(other, SMALL)
    file = backends.resolve.resolve(str(other))
    real = backends.resolve.resolve
    monkeypatch.setattr(
        backends.resolve, "resolve", lambda model, *rest: file if model == "auto" else real(model, *rest)
    )
    borrower = Borrower("nobody lends")
    notices = await make(borrower, 1 << 20, after_loss=True)
    assert notices == ["this node goes on with smaller until it is started again: nobody lends"]
    assert borrower.waits == [WAIT_S]
    assert (loaded[0].path, loaded[0].spread) == (other, None)


async def test_after_a_loss_without_another_model_it_waits_for_memory(
    make: Make, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, real = backends.resolve.resolve("bundled"), backends.resolve.resolve
    monkeypatch.setattr(
        backends.resolve, "resolve", lambda model, *rest: demo if model == "auto" else real(model, *rest)
    )
    borrower = Borrower("nobody lends")
    assert await make(borrower, 1 << 20, after_loss=True) == []
    assert borrower.waits == [WAIT_S, math.inf]
    assert loaded[0].spread is not None


async def test_who_does_not_give_what_it_offers_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A lender that has died is known for seconds to those who have not missed it yet."""

    class Loan:
        def __init__(self, peer: Any, *rest: Any) -> None:
            self.peer = peer

        async def open(self) -> str:
            if self.peer.id == "d" * 10:
                raise PeerUnavailable("node dddddddddd cannot be reached")
            return f"127.0.0.1:{ord(self.peer.id[0])}"

        async def close(self) -> None:
            closed.append(self.peer.id)
            await self.peer.close()

    path = tmp_path / "small.gguf"
    write(path, SMALL)
    closed: list[str] = []
    told: list[str] = []
    lenders = [
        NodeInfo(id=each * 10, name=each, address="127.0.0.1:9", lends_bytes=size * GIB)
        for each, size in (("d", 2), ("e", 1), ("f", 1))
    ]
    monkeypatch.setattr("node.pool.borrower.Loan", Loan)
    borrower = Lent(
        Identity(new_token(), "a" * 10), "1", join="none", runtime=tmp_path, interfaces=(), tell=told.append, lost=print
    )

    async def ask_all(places: object) -> list[NodeInfo]:
        return lenders

    monkeypatch.setattr(borrower, "_ask_all", ask_all)
    wanted = Wanted(shape(split.read(path)), 4096, 4, "f16", GIB, even=True)
    try:
        assert await borrower.borrow(wanted) == (("127.0.0.1:101", 2), ("127.0.0.1:102", 2))
        assert [share.node[:1] for share in borrower.shares] == ["", "e", "f"]
        assert told[0] == "d is left out: node dddddddddd cannot be reached"
        assert "d" * 10 in closed
    finally:
        await borrower.close()


async def test_without_rpc(make: Make, loaded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "has_rpc", lambda: False)
    borrower = Borrower()
    [notice] = await make(borrower, 1 << 20)
    assert "`make run RPC=1` builds it" in notice
    [notice] = await make(borrower, 4 * GIB, borrow="even")
    assert notice.startswith("--borrow even: ")
    assert borrower.asked == []
    assert [each.spread for each in loaded] == [None, None]


@pytest.mark.parametrize("pool", ["", "auto", "1"])
def test_lending_without_rpc_is_a_line(monkeypatch: pytest.MonkeyPatch, pool: str) -> None:
    monkeypatch.setattr(llamacpp, "has_rpc", lambda: False)
    notices: list[str] = []
    assert backends.lendable(Config(pool=pool), notices.append)[0] == 0
    assert notices == ["--pool lends nothing: llama-cpp-python was built without RPC: `make run RPC=1` builds it"]


def test_what_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said, or what a model might take; no more than there is."""
    monkeypatch.setattr(llamacpp, "has_rpc", lambda: True)
    room = Room("memory", "a machine", 8 * GIB, 5 * GIB, 4 * GIB, "half of the memory")
    monkeypatch.setattr(backends, "rooms", lambda machine, **_: (room, room))
    assert backends.lendable(Config(pool="auto"), print)[0] == 4 * GIB
    most, threads, free = backends.lendable(Config(pool="1.5", threads=3), print)
    assert (most, threads) == (int(1.5 * GIB), 3)
    assert 0 < free() < 1 << 50
    with pytest.raises(InvalidRequest, match=r"a machine has 8\.0 GiB in all"):
        backends.lendable(Config(pool="9"), print)


def test_a_model_that_is_spread_is_inspected_without_being_loaded(tmp_path: Path) -> None:
    """It may be too big for the trial of others, and damaged all the same."""
    path = tmp_path / "small.gguf"
    write(path, SMALL)
    over = llamacpp.Spread(6, (llamacpp.Lender("127.0.0.1:1", 4),))
    llamacpp.probe(llamacpp.LlamaOptions(path, "small", "fp", spread=over))
    path.write_bytes(path.read_bytes()[:-70_000])
    with pytest.raises(BackendError, match="could not be loaded"):
        llamacpp.probe(llamacpp.LlamaOptions(path, "small", "fp", spread=over))
