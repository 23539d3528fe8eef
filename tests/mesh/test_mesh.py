"""Nodes that meet, lose and leave each other, over real connections on loopback."""

import asyncio
import random
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from meshnode import HOST, until

from node import wire
from node.core.members import Kind, Settings
from node.errors import InvalidRequest, NotFound, NotReady, PeerUnavailable, Unauthenticated
from node.mesh import caller, dials, foreign, mesh, roster
from node.mesh.discovery import Found
from node.mesh.identity import Identity, new_token
from node.mesh.local import running_nodes
from node.mesh.peer import Peer
from node.types import NodeInfo, NodeState
from node.v1 import mesh_pb2, types_pb2, vote_pb2
from tests import loopback

pytestmark = pytest.mark.asyncio(loop_scope="session")
A, B, C = "a" * 10, "b" * 10, "c" * 10


async def meet(*nodes: Any) -> None:
    ids = {n.id for n in nodes}
    await until(lambda: all(n.sees() == ids - {n.id} for n in nodes))


class TestMeeting:
    async def test_by_mdns(self, start: Any, token: str) -> None:
        # Their own ids: everybody who runs this test on this machine at the same time hears everybody.
        a, b = [
            await start("", join="auto", identity=Identity(token, "".join(random.choices("abcdefgh234567", k=10))))
            for _ in range(2)
        ]
        await meet(a, b)
        assert all("another mesh" in n for n in a.mesh.notices + b.mesh.notices)

    async def test_by_the_runtime_directory(self, start: Any, home: Path) -> None:
        a = await start("a", join="auto", mdns=False, runtime=home)
        b = await start("b", join="auto", mdns=False, runtime=home)
        await meet(a, b)
        assert [(n.node_id, n.mesh_address) for n in running_nodes(home)] == [(A, a.address), (B, b.address)]
        await b.stop()
        assert [n.node_id for n in running_nodes(home)] == [A]

    async def test_by_address_each_gets_to_know_the_other(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        peer = b.mesh.peer(A)
        assert (peer.info.address, peer.info.state) == (a.address, NodeState.ALIVE)
        await until(lambda: a.mesh.peer(B).round_trip_ms > 0)
        assert 0 < a.mesh.peer(B).info.round_trip_ms < 1000
        assert [n.id for n in a.mesh.nodes()] == [A, B]
        assert a.mesh.nodes()[1].round_trip_ms > 0
        with pytest.raises(NotFound):
            a.mesh.peer(C)

    async def test_knowing_one_finds_all(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=[a.address])
        await meet(a, b)
        c = await start("c", join=b.address)
        await meet(a, b, c)

    async def test_many_that_accept_and_say_nothing_hold_nobody_up(
        self, start: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(caller, "FIRST_S", 600.0)
        monkeypatch.setattr(caller, "HELLO_S", 600.0)
        a, b = await start("a"), await start("b")
        silent = socket.create_server((HOST, 0), backlog=64)  # the system accepts, nobody ever reads
        there, address = a.mesh._caller, f"{HOST}:{silent.getsockname()[1]}"
        for i in range(dials.MOST - 1):
            there.found(Found(f"stale{'abcdefghijklmnopqrstuvwxyz234567'[i]}aaaa", a.mesh.mesh_id, (address,)))
        await until(lambda: there._dials._busy == dials.MOST - 1)
        there.found(Found(B, a.mesh.mesh_id, (b.address,)))
        await meet(a, b)
        silent.close()

    async def test_a_flood_of_announcements_is_cut_and_who_calls_us_is_met(
        self, start: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(caller, "MAX_PURSUED", 3)
        monkeypatch.setattr(caller, "FIRST_S", 600.0)
        a = await start("a")
        silent = socket.create_server((HOST, 0), backlog=64)
        for i in range(9):
            address = f"{HOST}:{silent.getsockname()[1]}"
            a.mesh._caller.found(Found(f"flood{'abcdefghi'[i]}aaaa", a.mesh.mesh_id, (address,)))
        assert len(a.mesh._caller._pursued) == 3
        b = await start("b", join=a.address)
        await meet(a, b)
        silent.close()

    async def test_who_says_an_address_that_we_cannot_reach_is_called_where_it_came_from(self, start: Any) -> None:
        a, b = await start("a"), await start("b", join=None)
        says = NodeInfo(id=B, address=f"127.0.0.9:{b.port}")  # where nobody listens
        b.mesh._roster._self_info = lambda: says
        await b.mesh.start(a.address)
        await meet(a, b)
        assert a.mesh.peer(B).address == b.address
        assert a.mesh.peer(B).info.address == says.address

    async def test_a_partner_that_appears_later_is_joined(self, start: Any) -> None:
        port = loopback.spare()
        a = await start("a", join=f"{HOST}:{port}")
        await until(lambda: bool(a.mesh.notices))
        assert "trying again" in a.mesh.notices[0]
        await asyncio.sleep(0.5)
        b = await start("b", port=port)
        await meet(a, b)
        await until(lambda: a.mesh.notices == [])  # it is not true any more

    async def test_alone_is_fine(self, start: Any) -> None:
        a = await start("a", join="none")
        assert a.mesh.peers() == []
        assert [n.id for n in a.mesh.nodes()] == [A]

    @pytest.mark.parametrize("join", ["nonsense", "host", "1.2.3.4:99999", "unix:/x", "auto,nonsense"])
    async def test_a_malformed_address_is_refused(self, start: Any, join: str) -> None:
        a = await start("a", join=None)
        with pytest.raises(InvalidRequest, match="HOST:PORT"):
            await a.mesh.start(join)

    async def test_ourselves_is_said(self, start: Any) -> None:
        a = await start("a", join=None)
        await a.mesh.start(a.address)
        await until(lambda: bool(a.mesh.notices))
        assert "is this node itself" in a.mesh.notices[0]
        assert a.mesh.peers() == []


class TestStrangers:
    async def test_another_mesh_at_the_joined_address(self, start: Any) -> None:
        a = await start("a", token=new_token())
        b = await start("b", join=a.address)
        await until(lambda: bool(b.mesh.notices))
        await asyncio.sleep(0.7)
        assert len(b.mesh.notices) == 1
        assert "another mesh" in b.mesh.notices[0]
        assert "--token" in b.mesh.notices[0]
        assert a.mesh.peers() == b.mesh.peers() == []

    @pytest.mark.parametrize(
        "details",
        [
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.9:7421: Failed to connect to remote "
            "host: connect() timed out",
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.9:7421: tcp handshaker shutdown",
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.9:7421: No route to host",
        ],
    )
    async def test_a_machine_that_does_not_answer(self, token: str, details: str) -> None:
        peer = Peer(Identity(token, A), "10.0.0.9:7421")
        error = peer._error(
            grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details),
            own_timeout=False,
        )
        await peer.close()
        assert error.message.startswith("10.0.0.9:7421 does not answer: see that its machine is on")
        assert "UNKNOWN" not in error.message

    async def test_another_mesh_on_the_network_is_said_once(self, start: Any, home: Path) -> None:
        a = await start("a", join="auto", token=new_token(), mdns=False, runtime=home)
        b = await start("b", join="auto", mdns=False, runtime=home)
        await start("c", join="auto", token=new_token(), mdns=False, runtime=home)
        await until(lambda: len(b.mesh.notices) == 2)
        assert sum(a.mesh.mesh_id in n for n in b.mesh.notices) == 1
        assert all("--token" in n for n in b.mesh.notices)

    async def test_another_mesh_is_no_longer_said_when_its_node_is_ours_or_gone(
        self, start: Any, home: Path, token: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(caller, "LOOK_S", 0.1)
        monkeypatch.setattr(foreign, "GONE_S", 0.3)
        b = await start("b", join="auto", mdns=False, runtime=home)
        a = await start("a", join="auto", token=new_token(), mdns=False, runtime=home)
        c = await start("c", join="auto", token=new_token(), mdns=False, runtime=home)
        await until(lambda: len(b.mesh.notices) == 2)
        await c.kill()
        await until(lambda: all(a.mesh.mesh_id in n for n in b.mesh.notices))
        await a.stop()
        a = await start("a", port=a.port, join="auto", mdns=False, runtime=home, token=token)
        await meet(a, b)
        await until(lambda: b.mesh.notices == [])

    async def test_another_mesh_that_only_its_announcement_outlived_is_not_said(
        self, start: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(caller, "FOREIGN_S", 0.0)
        a = await start("a", token=new_token())
        b = await start("b", token=new_token())
        c = await start("c")
        gone, there = (Found(n.id, n.mesh.mesh_id, (n.address,)) for n in (a, b))
        await a.kill()
        for found in (gone, there):
            c.mesh._caller.found(found)
        await until(lambda: bool(c.mesh.notices))
        assert [b.mesh.mesh_id in n for n in c.mesh.notices] == [True]

    async def test_the_same_id_twice(self, start: Any, token: str) -> None:
        a = await start("a")
        copy = await start("a", join=a.address)
        await until(lambda: bool(copy.mesh.notices))
        assert "was the data directory copied?" in copy.mesh.notices[0]
        assert copy.mesh.peers() == []

    async def test_a_copy_of_a_third_node_is_refused(self, start: Any) -> None:
        a, b = await start("a"), await start("b")
        await a.mesh.start(b.address)
        await meet(a, b)
        copy = await start("a", join=b.address)
        await until(lambda: bool(copy.mesh.notices))
        assert "was the data directory copied?" in copy.mesh.notices[0]
        assert b.mesh.peer(A).info.address == a.address

    async def test_who_says_another_id_than_its_certificate(self, start: Any) -> None:
        a = await start("a")
        lie = types_pb2.NodeInfo(id=C, address=f"{HOST}:1")
        with pytest.raises(Unauthenticated, match="says it is node"):
            await a.mesh.hello(mesh_pb2.HelloRequest(node=lie, protocol=1), B)
        with pytest.raises(Unauthenticated):
            await a.mesh.probe(mesh_pb2.ProbeRequest(node=lie), B)
        with pytest.raises(Unauthenticated):
            await a.mesh.probe(mesh_pb2.ProbeRequest(node=types_pb2.NodeInfo(id=B, address="unix:/x")), B)

    async def test_another_protocol(self, start: Any) -> None:
        a = await start("a")
        node = types_pb2.NodeInfo(id=B, address=f"{HOST}:1")
        with pytest.raises(InvalidRequest, match="install the same version"):
            await a.mesh.hello(mesh_pb2.HelloRequest(node=node, protocol=2), B)

    async def test_a_caller_that_cannot_be_called_is_no_peer_and_said(self, start: Any, nobody: str) -> None:
        a = await start("a")
        node = types_pb2.NodeInfo(id=B, address=nobody, name="\x1b[31mred")
        await a.mesh.hello(mesh_pb2.HelloRequest(node=node, protocol=1), B)
        await asyncio.sleep(1.1)
        assert a.mesh.notices == []  # It may have been killed just after.
        await a.mesh.probe(mesh_pb2.ProbeRequest(node=node), B)
        await until(lambda: bool(a.mesh.notices))
        assert "firewall" in a.mesh.notices[0]
        assert a.mesh.peers() == []
        assert [n.id for n in a.mesh.nodes()] == [A]

    async def test_news_are_bounded_and_checked(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        flood = [types_pb2.NodeInfo(id=f"x{i}", address="x") for i in range(2000)]
        await a.mesh.probe(mesh_pb2.ProbeRequest(node=types_pb2.NodeInfo(id=B, address=b.address), news=flood), B)
        assert [n.id for n in a.mesh.nodes()] == [A, B]

    async def test_names_cannot_drive_a_terminal(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        evil = types_pb2.NodeInfo(
            id=B, address=b.address, name="\x1b[31mred\n", incarnation=b.mesh.nodes()[0].incarnation
        )
        await a.mesh.probe(mesh_pb2.ProbeRequest(node=evil), B)
        assert a.mesh.peer(B).info.name == "[31mred"


class TestLosing:
    async def test_a_defect_in_one_round_of_probes_does_not_end_them(
        self, start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(roster, "AFTER_DEFECT_S", 0.0)
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        members, failed = a.mesh._roster.members, asyncio.Event()
        due = members.due

        def defect(now: float) -> Any:
            monkeypatch.setattr(members, "due", due)
            failed.set()
            raise RuntimeError("a defect")

        monkeypatch.setattr(members, "due", defect)
        await failed.wait()
        await b.kill()
        await until(lambda: a.kinds(B)[-1] is Kind.DIED)
        assert "probes failed, and go on" in caplog.text

    async def test_a_killed_peer_is_out(self, start: Any) -> None:
        a, b, c = await start("a"), await start("b"), await start("c")
        await b.mesh.start(a.address)
        await c.mesh.start(a.address)
        await meet(a, b, c)
        await c.kill()
        await until(lambda: a.sees() == {B} and b.sees() == {A})  # Suspected: nothing is asked of it any more.
        for node in (a, b):
            await until(lambda node=node: node.kinds(C)[-1] is Kind.DIED)
        assert [n.state for n in a.mesh.nodes() if n.id == C] == [NodeState.DEAD]

    async def test_a_clean_leave_is_seen_at_once_and_stays(self, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mesh, "GOODBYE_S", 30.0)  # also where everything stands still for a moment
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        await b.mesh.stop()
        await until(lambda: a.kinds(B)[-1] is Kind.LEFT)  # and never: died
        assert a.mesh.peers() == []
        assert [n.id for n in a.mesh.nodes()] == [A]
        with pytest.raises(NotReady):
            await b.mesh.hello(mesh_pb2.HelloRequest(), A)

    async def test_who_left_does_not_refute_that_it_is_suspected(self, start: Any, token: str) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        held = b.mesh.nodes()[0]
        suspected = NodeInfo(id=B, address=b.address, incarnation=held.incarnation, state=NodeState.SUSPECT)
        request = mesh_pb2.ProbeRequest(node=a.mesh._roster.me(), news=[wire.node_info_pb(suspected)])
        assert (await b.mesh.probe(request, A)).node.incarnation > held.incarnation, "while it is there it does"
        await b.mesh.stop()
        last = b.mesh.nodes()[0].incarnation
        for incarnation in (held.incarnation, last, last + 1):
            request.news[0].incarnation = incarnation
            assert (await b.mesh.probe(request, A)).node.incarnation == last

    async def test_a_node_that_comes_back_is_a_peer_again(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        await b.kill()
        await until(lambda: not a.mesh.peers())
        again = await start("b", join=a.address)  # At another port, before anyone held it for dead.
        await meet(a, again)
        assert a.mesh.peer(B).info.address == again.address
        assert a.mesh.notices == again.mesh.notices == []

    async def test_a_dead_peer_is_called_again_until_it_answers(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        port = b.port
        await b.kill()
        await until(lambda: Kind.DIED in a.kinds(B))
        again = await start("b", port=port)  # It knows nobody.
        await meet(a, again)

    async def test_a_false_death_is_taken_back(self, start: Any) -> None:
        a, b = await start("a"), await start("b")
        await b.mesh.start(a.address)
        await meet(a, b)
        news = NodeInfo(id=B, address=b.address, incarnation=b.mesh.nodes()[0].incarnation, state=NodeState.DEAD)
        a.mesh._roster.hear([wire.node_info_pb(news)], C, inbound=True)
        assert a.mesh.peers() == []
        await meet(a, b)
        assert set(b.kinds(B)) == {Kind.REFUTED}

    async def test_who_can_call_but_not_be_called_is_out_and_told(
        self, start: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(roster, "UNREACHED_S", 0.5)
        a = await start("a", settings=Settings(suspicion_max_s=0.3))
        b = await start("b", join=a.address)
        await meet(a, b)
        await b.server.stop(None)
        await until(lambda: Kind.DIED in a.kinds(B))
        await until(lambda: any("open that port in the firewall" in n for n in b.mesh.notices))
        assert Kind.REFUTED not in b.kinds(B)
        assert a.mesh.peers() == []

    async def test_what_a_peer_has_free_after_a_poll_is_believed_before_the_next_probe(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        before = len([c for _, c in a.changes if c.info.id == B])
        a.mesh._roster.freed(B, 10_000)
        most = a.mesh.peer(B).info.sequences
        assert a.mesh.peer(B).info.free_sequences == most
        assert len([c for _, c in a.changes if c.info.id == B]) == before, "nobody is told of it"

    async def test_a_broken_stream_is_told_at_once(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        poll = a.mesh.peer(B).poll(vote_pb2.PollRequest(request_id="r"))
        assert (await anext(poll)).ballot.key == "42"
        await b.kill()
        with pytest.raises(PeerUnavailable, match=B):
            await anext(poll)
        await until(lambda: Kind.SUSPECTED in a.kinds(B))

    async def test_a_node_that_cannot_cast_is_polled(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)  # which serves Poll only
        await meet(a, b)
        for _ in range(2):
            poll = a.mesh.peer(B).poll(vote_pb2.PollRequest(request_id="r", candidates=[1]))
            assert (await anext(poll)).ballot.key == "42"
            await poll.aclose()

    async def test_a_stream_fails_when_its_peer_is_given_up(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        peer = a.mesh.peer(B)
        poll = peer.poll(vote_pb2.PollRequest())
        await anext(poll)
        waiting = asyncio.ensure_future(anext(poll))
        await asyncio.sleep(0.05)
        await peer.close()
        with pytest.raises(PeerUnavailable, match="connection was closed"):
            await waiting
        with pytest.raises(PeerUnavailable):
            await peer.decide(vote_pb2.DecideRequest())

    async def test_who_leaves_finishes_what_it_was_asked_for(self, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mesh, "GOODBYE_S", 30.0)  # also where everything stands still for a moment
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        poll = a.mesh.peer(B).poll(vote_pb2.PollRequest())
        await anext(poll)
        waiting = asyncio.ensure_future(anext(poll))
        await b.mesh.stop()
        await until(lambda: Kind.LEFT in a.kinds(B), 25)  # before the poll ends by itself
        assert a.sees() == set()
        await asyncio.sleep(0.1)
        assert not waiting.done(), "its listener serves on"
        await b.server.stop(None)
        with pytest.raises(PeerUnavailable):
            await waiting

    async def test_a_cancelled_task_is_cancelled(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        poll = a.mesh.peer(B).poll(vote_pb2.PollRequest())
        await anext(poll)
        waiting = asyncio.ensure_future(anext(poll))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert a.sees() == {B}

    async def test_an_indirect_probe_says_what_the_helper_found(self, start: Any, token: str, nobody: str) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        peer = Peer(Identity(token, C), a.address, A)
        me = types_pb2.NodeInfo(id=C, address=nobody)
        found = await peer.probe(mesh_pb2.ProbeRequest(node=me, target=B), 30)
        assert (found.alive, found.node.id) == (True, B)
        await b.kill()
        found = await peer.probe(mesh_pb2.ProbeRequest(node=me, target=B), 30)
        assert not found.alive
        found = await peer.probe(mesh_pb2.ProbeRequest(node=me, target="z" * 10), 2)
        assert not found.alive
        await peer.close()

    async def test_a_connection_is_made_anew_before_its_certificate_ends(self, start: Any) -> None:
        a = await start("a")
        b = await start("b", join=a.address)
        await meet(a, b)
        old = a.mesh.peer(B)
        old.expires = time.time() + 60

        def renewed() -> bool:
            a.mesh._caller.renew()  # who is being called at the moment is passed over, until the next time
            return a.mesh.peer(B) is not old

        await until(renewed)
        assert a.kinds(B).count(Kind.JOINED) == 1

    async def test_a_failing_callback_harms_nobody(self, start: Any) -> None:
        a = await start("a")
        a.mesh.on_change(lambda _: 1 / 0)
        b = await start("b", join=a.address)
        await meet(a, b)
        assert a.kinds(B)[0] is Kind.JOINED
