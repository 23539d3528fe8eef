"""A conversation outlives its node: its turns are elsewhere before they are answered, its KV follows."""

import asyncio
import contextlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nodes import Node, meet, nodes, part

from node import metrics
from node.config import Config
from node.core import blob, block, placement, snapshot
from node.core.log import Entry
from node.core.members import Change, Kind
from node.core.refusal import Reason, refuse
from node.core.slots import Speeds, common_prefix
from node.engine.fake import FakeBackend, FakeSpec
from node.errors import NotFound, PeerUnavailable
from node.replicator import Options, snapshots, transfer, turns
from node.replicator import links as links_module
from node.replicator import replicator as replicator_module
from node.types import GenerateResult, NodeInfo, Version
from node.v1 import kvsync_pb2

LONG = "Please tell me about it. " * 14


def texts(node: Node, topic: str = "t") -> list[str]:
    return [m.content for m in node.store.get(topic).messages]


def durability(result: GenerateResult) -> list[str]:
    return [w for w in result.outcome.warnings if w.startswith("durability")]


async def soon(condition: object, what: str) -> None:
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicator_module, "DEBOUNCE_S", 0.02)
    monkeypatch.setattr(replicator_module, "AGAIN", 0)
    monkeypatch.setattr(replicator_module, "DISK_S", 1e6)  # what is said of a disk must not be over before it is read
    # The tests' machines are busy; what they test is not how quick a disk is.
    monkeypatch.setattr(turns, "ACKNOWLEDGE_S", 10.0)
    monkeypatch.setattr(turns, "FRESH_S", 10.0)


async def test_another_node_goes_on_from_the_log_and_from_the_kv(tmp_path: Path) -> None:
    """The node that held the topic is gone; the other remembers, and computes what is new only. The answer is the one
    that the first node would have given, token by token."""
    async with nodes(tmp_path, 2) as (one, two):
        await one.say(f"my boat is called Argo {LONG}")
        first = await one.say("hi")
        assert not durability(first)
        assert texts(two) == texts(one), "the turn is on the other node when it is answered"
        assert set(one.store.get("t").replicas) == {one.id, two.id}
        await one.settled()
        assert two.blocks.tokens("t") == one.blocks.tokens("t") > 150
        part(one, two)
        there = await two.say("what is my boat called?")
        here = await one.say("what is my boat called?")
        assert "Argo" in there.text
        assert there.text == here.text
        assert there.usage.cached == here.usage.cached > 150
        assert there.version == Version(1, 3, two.id), "it took over from a node that it does not see"
        assert here.version == Version(0, 3, one.id)


async def test_both_sides_of_a_partition_went_on_and_agree_afterwards(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        await one.say("my boat is called Argo")
        await one.settled()
        part(one, two)
        await one.say("hi")
        await one.say("thank you")
        assert not durability(await two.say("hello")), "nobody else is alive who could have it"
        lost = texts(one)
        meet(one, two)
        await soon(lambda: one.store.version("t") == two.store.version("t"), "versions agree")
        await one.settled()
        assert one.store.version("t") == Version(1, 2, two.id)
        assert texts(one) == texts(two)
        both = [node.store.log("t") for node in (one, two)]  # the last turn of it comes last
        await soon(lambda: all(Version(0, 3, one.id) in log.branches() for log in both), "the branch is on both")
        for node in (one, two):
            log = node.store.log("t")
            assert log.branches() == [Version(0, 3, one.id)], "what one said alone is kept, on both"
            assert [m.content for m in log.conversation(Version(0, 3, one.id))] == lost


async def test_a_turn_costs_its_new_tokens(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (one, two):

        def sent() -> float:
            return metrics.SYNC_BYTES.labels("sent", "snapshot")._value.get()

        await one.say(f"hello {LONG}")
        await one.settled()
        ours = one.replicator.snapshots.ours
        assert ours is not None
        before = await one.replicator.snapshots.header("t")
        for _ in range(4):
            assert before is not None
            already = sent()
            await one.say("thank you")
            await one.settled()
            head = await one.replicator.snapshots.header("t")
            assert head is not None
            # An answer may read as other tokens than were sampled: then it is replaced, with the block that it is in.
            same = common_prefix(before.tokens, head.tokens)
            new = (len(head.tokens) - same + snapshot.GROWTH_TOKENS) * ours.layout.token_bytes
            assert 0 < sent() - already < new + 100 * len(head.blocks)
            assert two.blocks.tokens("t") == len(head.tokens)
            before = head


async def test_a_peer_that_was_away_takes_what_it_missed(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3, Options(replicas=2)) as (one, two, three):
        await one.say("my boat is called Argo")
        part(one, three)
        part(two, three)
        await one.say("hi")
        await one.say("forget me", topic="u")
        assert "u" not in [t.topic for t in three.store.list()]
        assert len(texts(three)) == 2
        meet(one, two, three)
        await soon(lambda: three.store.version("t") == one.store.version("t"), "the turn comes")
        await soon(lambda: three.store.version("u") == one.store.version("u"), "the topic comes")
        await one.settled()
        await soon(lambda: three.blocks.tokens("t") == one.blocks.tokens("t"), "its KV comes")


async def test_who_stood_in_for_a_node_that_was_away_is_not_left_behind(tmp_path: Path) -> None:
    """It kept a turn while the keeper was away, is no keeper any more, and gets the later turns all the same."""
    async with nodes(tmp_path, 4, Options(replicas=1)) as made:
        one = made[0]
        [keeper] = [n for n in made if n.id == one.replicator.turns.keepers("t")[0].id]
        part(one, keeper)
        await one.say("my boat is called Argo")
        [stand_in] = [n for n in made[1:] if n is not keeper and n.store.version("t").turn == 1]
        meet(one, keeper)
        await one.say("hi")
        for node in (keeper, stand_in):
            await soon(lambda node=node: node.store.version("t").turn == 2, "all holders have it")  # type: ignore[misc]


async def test_what_is_forgotten_does_not_come_back_with_a_node_that_was_away(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as (one, two, three):
        await one.say("my boat is called Argo")
        await one.settled()
        part(one, three)
        part(two, three)
        version, elsewhere = await two.replicator.forget("t")
        assert elsewhere == [one.id]
        await soon(lambda: not one.blocks.topics() and not two.blocks.topics(), "KV is gone")
        assert texts(three)
        meet(one, two, three)
        await soon(lambda: three.store.version("t") == version, "the tombstone comes")
        for node in (one, two, three):
            with pytest.raises(NotFound):
                node.store.get("t")
            await soon(lambda node=node: not node.blocks.topics(), "KV is gone")  # type: ignore[misc]
        anew = await three.say("hello", append=False)
        assert anew.version.turn == version.turn + 1
        assert anew.usage.cached < 10


async def test_a_node_that_never_held_a_topic_finds_it(tmp_path: Path) -> None:
    """With one replica, the third node has neither log nor KV; asked to go on, it gets both."""
    async with nodes(tmp_path, 3, Options(replicas=1)) as made:
        one = made[0]
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
        stranger = next(n for n in made[1:] if n.store.version("t").turn == 0)
        stranger.engine._scheduler.slots.speeds = slow_prefill()  # type: ignore[union-attr]
        result = await stranger.say("what is my boat called?", append=True)
        assert "Argo" in result.text
        assert result.version.turn == 2
        assert result.usage.cached > 100


def slow_prefill() -> Speeds:
    return Speeds(prefill_s=0.01)


async def test_a_restart_brings_topics_and_kv_back(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as (one,):
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
    async with nodes(tmp_path, 1) as (one,):
        one.engine._scheduler.slots.speeds = slow_prefill()  # type: ignore[union-attr]
        result = await one.say("what is my boat called?")
        assert "Argo" in result.text
        assert result.usage.cached > 100


async def test_after_a_restart_a_node_knows_who_holds_its_topics(tmp_path: Path) -> None:
    """It does itself, from the first moment; of others it learns when they meet, or take turns from each other."""
    async with nodes(tmp_path, 3, Options(replicas=1)) as made:
        await made[0].say("hi")
        made = [n for n in made if n.store.version("t").turn]
        assert len(made) == 2
        both, said = {n.id for n in made}, made[0].store.list()[0].made_ms
        assert abs(said / 1e3 - time.time()) < 60
    async with nodes(tmp_path, 3, Options(replicas=1)) as again:
        one, other = (n for n in again if n.id in both)
        third = next(n for n in again if n.id not in both)
        for node in (one, other):
            assert node.store.replicas("t") == (node.id,)
            assert node.store.list()[0].made_ms == said, "when it was said, not when it was read"
        await one.replicator.turns.reconcile(one.mesh.peers_[other.id])
        assert set(one.store.replicas("t")) == both
        await third.replicator.turns.fetch(third.mesh.peers_[other.id], "t")
        assert {third.id, other.id} <= set(third.store.replicas("t"))
        assert third.store.list()[0].made_ms == said


async def test_a_peer_that_hangs_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        monkeypatch.setattr(turns, "ACKNOWLEDGE_S", 0.2)
        hold = asyncio.Event()
        real = two.store.add

        async def slow(name: str, entry: Entry) -> object:
            await hold.wait()
            return await real(name, entry)

        monkeypatch.setattr(two.store, "add", slow)
        result = await one.say("my boat is called Argo")
        assert any("no peer had this turn" in w for w in result.outcome.warnings)
        assert one.store.version("t").turn == 1
        hold.set()
        await soon(lambda: two.store.version("t").turn == 1, "it comes late")
        await soon(lambda: two.id in one.store.get("t").replicas, "and is known to be there")


async def test_local_durability_waits_for_nobody(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2, Options(waits_for_peer=False)) as (one, two):
        await one.say("hello")
        await soon(lambda: two.store.version("t").turn == 1, "it comes all the same")
    async with nodes(tmp_path / "off", 2, Options(replicas=0)) as (one, two):
        result = await one.say("hello")
        await one.settled()
        assert not durability(result)
        assert two.store.list() == []
        assert one.blocks.tokens("t") > 0


async def test_a_broken_push_goes_on_where_it_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        real, came = two.replicator.snapshots.put, []

        def breaks(each: object, data: bytes) -> None:
            if len(came) == 2:
                raise OSError(28, "No space left on device")
            real(each, data)  # type: ignore[arg-type]
            came.append(each)

        monkeypatch.setattr(two.replicator.snapshots, "put", breaks)
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
        assert len(came) == 2
        assert two.blocks.tokens("t") == 0
        assert any("No space" in p for p in two.store.problems)

        def counts(each: object, data: bytes) -> None:
            real(each, data)  # type: ignore[arg-type]
            came.append(each)

        monkeypatch.setattr(two.replicator.snapshots, "put", counts)
        one.replicator.changed("t")
        await one.settled()
        assert two.blocks.tokens("t") == one.blocks.tokens("t")
        assert len({e.key for e in came}) == len(came), "no block came twice"  # type: ignore[attr-defined]


async def test_a_snapshot_that_did_not_reach_a_peer_is_offered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicator_module, "AGAIN", 2)
    monkeypatch.setattr(replicator_module, "AGAIN_S", 0.01)
    async with nodes(tmp_path, 2) as (one, two):
        real, failed = one.replicator._transfer.push, []

        async def fails_twice(peer: Any, head: Any) -> bool:
            if len(failed) < 2:
                failed.append(peer)
                raise PeerUnavailable("it stood still")
            return await real(peer, head)

        monkeypatch.setattr(one.replicator._transfer, "push", fails_twice)
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
        assert len(failed) == 2
        assert two.blocks.tokens("t") == one.blocks.tokens("t") > 0


async def test_a_damaged_snapshot_costs_a_prefill_and_no_answer(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
        for path in (tmp_path / "n1" / "kv" / "blocks").iterdir():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        part(one, two)
        two.engine._scheduler.slots.speeds = slow_prefill()  # type: ignore[union-attr]
        result = await two.say("what is my boat called?")
        assert "Argo" in result.text
        assert result.usage.cached == 0
        assert two.blocks.tokens("t") == 0 or two.blocks.version("t") == result.version


async def test_kv_that_is_well_formed_and_wrong_is_found_out(tmp_path: Path) -> None:
    """Another conversation's KV under this one's header, checksums and all: only computing tells."""
    async with nodes(tmp_path, 2) as (one, two):
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
        head = await two.replicator.snapshots.header("t")
        ours = two.replicator.snapshots.ours
        assert head is not None
        assert ours is not None
        state = snapshot.assemble(head, ours, two.blocks.get)
        _, (rows,) = blob.read(state)
        moved = blob.Rows(0, tuple(plane[::-1].copy() for plane in rows.planes))  # every row at another's place
        bare = snapshot.header("t", head.version, head.tokens, ours)
        wrong, made = snapshot.encode(bare, {}, (moved,), block.Codec.NONE, 1)
        for key, data in made.items():
            two.blocks.put(key, data)
        two.blocks.save(wrong)
        part(one, two)
        two.engine._scheduler.slots.speeds = slow_prefill()  # type: ignore[union-attr]
        counted = metrics.SNAPSHOTS_REFUSED.labels("probe")._value.get()
        result = await two.say("what is my boat called?")
        assert two.engine.refuted == 1
        assert metrics.SNAPSHOTS_REFUSED.labels("probe")._value.get() == counted + 1
        assert "Argo" in result.text
        assert result.usage.cached == 0


async def test_another_models_kv_stays_away(tmp_path: Path) -> None:
    async with nodes(tmp_path / "a", 1) as (one,), nodes(tmp_path / "b", 1, fingerprint="other") as (two,):
        await one.say("hello")
        await one.settled()
        head = await one.replicator.snapshots.header("t")
        assert head is not None
        await two.replicator.turns.take("t", one.store.log("t").entries[0])
        answer = await two.replicator.offer(head.pack())
        assert (answer.reason, list(answer.missing)) == ("fingerprint", [])


async def test_versions_grow_over_what_others_know(tmp_path: Path) -> None:
    """A client that moved on to another node by itself: that node asks before it answers."""
    async with nodes(tmp_path, 3, Options(replicas=1)) as made:
        await made[0].say("my boat is called Argo")
        for turn in range(2, 6):
            node = made[turn % 3]
            result = await node.say("thank you", append=True)
            assert result.version.turn == turn
        heads = {n.store.log("t").head for n in made if n.store.version("t").turn == 5}
        assert len(heads) == 1


async def test_closing_in_the_middle_leaves_nothing_running(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (one, _):
        await one.say(f"hello {LONG}")
        one.replicator.changed("t")
        await one.replicator.stop()
        assert not one.replicator._tasks
        with contextlib.suppress(NotFound):
            await one.replicator.warm("t", [1, 2, 3])


async def test_the_link_is_measured_when_a_node_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "MEASURE_AFTER_S", 0.02)
    async with nodes(tmp_path, 2) as (one, two):
        assert one.replicator.links() == {}
        part(one, two)
        meet(one, two)
        await soon(lambda: one.replicator.links() and two.replicator.links(), "both know the link")
        [(node, seconds)] = one.replicator.links().items()
        assert node == two.id
        assert 1e-12 < seconds < 1e-3
        # The engine's own figure of restoring is what decides, not a second one.
        await one.say("hi")
        await one.replicator.snapshots.warm("t", [1, 2, 3])
        assert one.replicator._measured.rates(two.id).restore_s == one.engine.speeds.restore_s_per_byte
        assert one.replicator._measured.rates(two.id).link_s == seconds


async def test_a_link_is_not_measured_while_there_is_something_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "MEASURE_AFTER_S", 0.01)
    async with nodes(tmp_path, 2) as (one, two):
        one.engine._load = replace(one.engine.load, queued=1)
        part(one, two)
        meet(one)
        one.mesh.away.clear()
        one.replicator.on_change(Change(Kind.JOINED, NodeInfo(two.id, "", fingerprint="fp")))
        await asyncio.sleep(0.3)
        assert one.replicator.links() == {}


async def test_what_measures_a_link_is_capped(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2, Options(mbps=1)) as (one, two):
        peer = one.mesh.peers_[two.id]
        got = 0
        started = time.monotonic()
        async with contextlib.aclosing(
            peer.stream(peer.bulk.Measure, kvsync_pb2.MeasureRequest(bytes=128 << 10), 60)
        ) as parts:
            async for part_ in parts:
                got += len(part_.data)
        assert got == 128 << 10
        assert time.monotonic() - started > 0.8, "1 Mbit/s is 125 KB/s"
    assert transfer.MOST_MEASURING_BYTES <= 4 << 20
    total = 0
    async with nodes(tmp_path / "more", 1) as (one,):
        async for each in one.replicator.measure(1 << 40):
            total += len(each.data)
    assert total == transfer.MOST_MEASURING_BYTES


def test_reasons_are_counted() -> None:
    before = metrics.SNAPSHOTS_REFUSED.labels("checksum")._value.get()
    snapshots.count(refuse(Reason.CHECKSUM, "x"))
    assert metrics.SNAPSHOTS_REFUSED.labels("checksum")._value.get() == before + 1


async def test_a_cap_is_kept_and_holds_up_no_turn(tmp_path: Path) -> None:
    """--sync-mbps 2: what a first turn's KV has takes its time, and turns are said and kept meanwhile."""
    async with nodes(tmp_path, 2, Options(mbps=2)) as (one, two):
        await one.say(f"my boat is called Argo {LONG}")
        started = time.monotonic()
        await soon(lambda: one.blocks.tokens("t") > 0, "the snapshot is taken")
        size = one.blocks.bytes
        assert size * 8 / 2e6 > 0.5, "or there is nothing to see"
        result = await one.say("hello", topic="u")
        if time.monotonic() - started < 0.8 * size * 8 / 2e6:
            assert two.blocks.tokens("t") == 0, "it is still on its way"
        assert two.store.version("u") == result.version
        assert not durability(result)
        await soon(lambda: two.blocks.tokens("t") == one.blocks.tokens("t"), "it came")
        assert time.monotonic() - started > 0.8 * size * 8 / 2e6, "no faster than it may"


async def test_all_replicas_are_all_nodes(tmp_path: Path) -> None:
    count = Config(replicas="all").replica_count
    async with nodes(tmp_path, 4, Options(replicas=count)) as made:
        one = made[0]
        await one.say(f"my boat is called Argo {LONG}")
        for node in made[1:]:
            await soon(lambda node=node: node.store.version("t").turn == 1, "the turn is everywhere")  # type: ignore[misc]
        await one.settled()
        for node in made[1:]:
            assert node.blocks.tokens("t") == one.blocks.tokens("t") > 100
            assert texts(node) == texts(one)
        for node in made[:3]:  # and the last one left has it all
            part(node, made[3])
        assert "Argo" in (await made[3].say("what is my boat called?")).text


@pytest.mark.parametrize("what", ["a block deleted", "a header deleted", "a header of another topic", "all deleted"])
async def test_files_that_are_deleted_or_swapped_under_us_cost_time(tmp_path: Path, what: str) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        await one.say(f"my boat is called Argo {LONG}")
        await one.say(f"hello {LONG}", topic="u")
        await one.settled()
        kv = tmp_path / "n1" / "kv"
        mine = two.blocks._header_path("t")
        if what == "a block deleted":
            next(iter((kv / "blocks").iterdir())).unlink()
        elif what == "a header deleted":
            os.unlink(mine)
        elif what == "a header of another topic":
            os.rename(two.blocks._header_path("u"), mine)
        else:
            shutil.rmtree(kv / "blocks")
            shutil.rmtree(kv / "snapshots")
        part(one, two)
        two.engine._scheduler.slots.speeds = slow_prefill()  # type: ignore[union-attr]
        result = await two.say("what is my boat called?")
        assert "Argo" in result.text
        await two.settled()
        if what == "all deleted":  # folders and all: the next turn says so, and no answer is lost
            assert any("KV snapshots cannot be written" in p for p in two.store.problems)


async def test_a_disk_that_takes_nothing_is_said_until_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicator_module, "DISK_S", 0.05)
    async with nodes(tmp_path, 1) as (one,):

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr("node.store.blocks._write", full)
            broken.setattr("node.store.files._write", full)
            result = await one.say("my boat is called Argo")
            await one.settled()
            assert "durability: conversations cannot be written" in " ".join(durability(result))
            assert [p.split(" (")[0] for p in one.store.problems] == [
                "conversations cannot be written",
                "KV snapshots cannot be written",
            ]
            assert one.blocks.tokens("t") == 0
        # Nobody says anything: the disk is tried again by itself.
        await soon(lambda: one.store.problems == [], "what waited is written")
        await soon(lambda: one.blocks.tokens("t") > 0, "and its KV")
        result = await one.say("what is my boat called?")
        await one.settled()
        assert "Argo" in result.text
        assert not durability(result)


async def test_who_gets_a_turn_late_gets_the_next_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn is on its way to its keeper for so long that another node, which cannot know of that, makes the next."""
    made = nodes(tmp_path, 3, Options(replicas=1), make=lambda: FakeBackend(FakeSpec(), sequences=4, context=1024))
    async with made as (one, two, three):
        topic = next(t for t in map(str, range(100)) if one.replicator.turns.keepers(t)[0].id == two.id)
        arrives, append = asyncio.Event(), one.replicator.turns._append

        async def late(peer: Any, *what: Any) -> Any:
            if peer.id == two.id:
                await arrives.wait()
            return await append(peer, *what)

        monkeypatch.setattr(one.replicator.turns, "_append", late)
        monkeypatch.setattr(turns, "ACKNOWLEDGE_S", 0.05)
        part(two, three)
        await one.say("my boat is called Argo", topic=topic)
        assert (await three.say("what is my boat called?", topic=topic, append=True)).version.turn == 2
        assert one.store.version(topic).turn == 2
        assert two.store.version(topic).turn == 0
        arrives.set()
        async with asyncio.timeout(60):
            while two.store.version(topic).turn < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_keeper_of_ours_that_is_none_of_the_next_makers_is_not_left_behind(tmp_path: Path) -> None:
    """Each maker chooses keepers besides itself: with one replica the first chooses the second, the third the first."""
    make = {"make": lambda: FakeBackend(FakeSpec(), sequences=4, context=1024)}
    async with nodes(tmp_path, 4, Options(replicas=1), **make) as made:
        by_id = {node.id: node for node in made}
        first, second, third, _ = (by_id[id] for id in placement.replicas("t", by_id, 4))
        await third.say("hello")
        for turn, node in ((2, first), (3, third)):
            await node.say("and then?")
            async with asyncio.timeout(60):
                while second.store.version("t").turn < turn:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
