"""Which topics a node takes when it compares lists with a peer: those that it should keep, and no others."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import wire
from node.core import placement
from node.core.log import Entry
from node.replicator.turns import Turns
from node.store import Store
from node.types import Message, NodeInfo, TopicInfo, Version
from node.v1 import kvsync_pb2


class Other:
    """A peer with one topic, which it says that `maker` made."""

    kvsync = SimpleNamespace(List="list", Append="append", Pull="pull")

    def __init__(self, id: str, model: str, maker: str = "") -> None:
        self.id, self.info, self.maker = id, NodeInfo(id, "", fingerprint=model), maker

    async def call(self, method: str, request: object, timeout_s: float) -> kvsync_pb2.ListResponse:
        assert method == "list"
        return kvsync_pb2.ListResponse(topics=[wire.topic_pb(TopicInfo("t", Version(0, 1, self.maker), 9, 9))])

    async def stream(self, method: str, *_: object) -> AsyncGenerator[kvsync_pb2.PullResponse, None]:
        assert method == "pull"
        said = (Message("user", "ahoy"), Message("assistant", "ahoy"))
        yield kvsync_pb2.PullResponse(turn=wire.entry_pb("t", Entry(Version(0, 1, self.maker), messages=said)))


@pytest.fixture
def takes(tmp_path: Path) -> Callable[..., bool]:
    """Whether node c of a model, with so many replicas, takes the first other's topic when it compares with it."""

    def run(model: str, replicas: int, *others: Other) -> bool:
        async def compare() -> bool:
            store = Store(tmp_path, node="c")
            mesh: Any = SimpleNamespace(peers=lambda: list(others))
            turns = Turns("c", mesh, store, model, replicas, False, asyncio.ensure_future, lambda _: None)
            peer: Any = others[0]
            return bool(await turns.reconcile(peer))

        return asyncio.run(compare())

    return run


def test_a_topic_that_its_maker_would_give_us_is_taken(takes: Callable[..., bool]) -> None:
    assert takes("x", 1, Other("a", "x", "a"))


def test_also_from_a_maker_that_is_alone_with_its_model(takes: Callable[..., bool]) -> None:
    assert takes("y", 1, Other("a", "x", "a"))


def test_a_topic_of_another_model_is_not_where_its_maker_has_others_of_its_own(takes: Callable[..., bool]) -> None:
    assert not takes("y", 1, Other("a", "x", "a"), Other("b", "x"))


def test_a_node_that_keeps_topics_of_no_other_takes_none(takes: Callable[..., bool]) -> None:
    assert not any(takes("x", 0, Other(id, "x", id)) for id in "abdefgh")


def test_where_the_maker_is_gone_who_holds_its_topic_speaks_for_it(takes: Callable[..., bool]) -> None:
    assert takes("y", 1, Other("b", "y", "a"))
    assert not takes("y", 1, Other("b", "x", "a"), Other("d", "x"))


IDS = st.text("abcdef", min_size=1, max_size=3)


@given(st.dictionaries(IDS, st.sampled_from("xyz"), max_size=8), IDS, st.sampled_from("xyz"), st.integers(0, 9))
def test_keepers_are_others_of_the_makers_model_where_there_are_any(
    nodes: dict[str, str], maker: str, model: str, count: int
) -> None:
    models = nodes | {maker: model}
    kept = placement.keepers("t", maker, models, count)
    same = {id for id in models if id != maker and models[id] == model}
    assert set(kept) <= (same or set(models) - {maker})
    assert len(kept) == min(count, len(same or set(models) - {maker}))
    assert kept == placement.keepers("t", maker, dict(reversed(models.items())), count)
