"""What is true now and what was told already are two things; and which other meshes are here."""

from __future__ import annotations

from node.mesh import foreign, notices
from node.mesh.discovery import Found
from node.mesh.foreign import Foreign
from node.mesh.notices import Notices


def test_a_line_is_told_once_and_stays() -> None:
    n = Notices()
    assert n.say("no mDNS", 0.0)
    assert not n.say("no mDNS", 1.0)
    assert not n.say("no mDNS", 10 * notices.AGAIN_S)
    assert n.lines(11 * notices.AGAIN_S) == ["no mDNS"]


def test_another_line_about_the_same_takes_its_place_and_is_the_newest() -> None:
    n = Notices()
    assert n.say("a: nobody answers", 0.0, "join a")
    n.say("b", 0.0)
    assert n.say("a: another mesh", 1.0, "join a")
    assert n.lines(1.0) == ["b", "a: another mesh"]


def test_what_is_withdrawn_is_gone_and_not_told_again_at_once() -> None:
    n = Notices()
    n.say("mesh 1 is here", 0.0, "mesh 1")
    n.withdraw("mesh 1")
    n.withdraw("mesh 2")
    assert n.lines(1.0) == []
    assert not n.say("mesh 1 is here", 2.0, "mesh 1")
    assert n.lines(2.0) == ["mesh 1 is here"]
    n.withdraw("mesh 1")
    assert n.say("mesh 1 is here", 2.0 + notices.AGAIN_S, "mesh 1")


def test_what_is_not_said_for_long_ends() -> None:
    n = Notices()
    n.say("c cannot be called", 0.0, "call c", lasts_s=10.0)
    n.say("c cannot be called", 5.0, "call c", lasts_s=10.0)
    assert n.lines(14.0) == ["c cannot be called"]
    assert n.lines(15.0) == []


def test_the_oldest_make_room_and_the_newest_is_always_told() -> None:
    n = Notices()
    assert all(n.say(f"line {i}", 0.0) for i in range(10 * notices.MAX))
    assert n.lines(0.0) == [f"line {i}" for i in range(9 * notices.MAX, 10 * notices.MAX)]


def found(node: str, mesh: str, *addresses: str) -> Found:
    return Found(node * 10, mesh * 16, addresses or (f"10.0.0.7:{ord(node)}",))


def test_a_mesh_is_here_as_long_as_one_of_its_nodes_is() -> None:
    f = Foreign()
    for node in "ab":
        f.see(found(node, "1"), 0.0)
    (shown,) = f.meshes().values()
    f.missed(shown.node_id, foreign.GONE_S - 1)
    assert list(f.meshes().values()) == [shown]
    f.answered(shown.node_id, foreign.GONE_S)
    f.missed(shown.node_id, foreign.GONE_S + 1)
    assert list(f.meshes().values()) == [shown]
    f.missed(shown.node_id, 2 * foreign.GONE_S)
    (other,) = f.meshes().values()
    assert other != shown
    f.missed(other.node_id, 2 * foreign.GONE_S)
    f.answered(other.node_id, 2 * foreign.GONE_S)
    assert f.meshes() == {}


def test_a_node_or_an_address_is_of_one_mesh_at_a_time() -> None:
    f = Foreign()
    f.see(found("a", "1"), 0.0)
    f.see(found("a", "2"), 1.0)
    assert set(f.meshes()) == {"2" * 16}
    f.see(found("b", "3", "10.0.0.7:97"), 2.0)
    assert set(f.meshes()) == {"3" * 16}
    f.met("c" * 10, "10.0.0.7:97")
    assert f.meshes() == {}


def test_strangers_are_heard_of_when_there_is_room() -> None:
    f = Foreign()
    for i in range(foreign.MAX + 1):
        f.see(Found(f"{i:010}", f"{i:016}", (f"10.0.0.{i}:7421",)), 0.0)
    assert len(f.meshes()) == foreign.MAX
    f.missed(f"{0:010}", foreign.GONE_S)
    f.see(Found("z" * 10, "e" * 16, ("10.0.1.1:7421",)), foreign.GONE_S)
    assert "e" * 16 in f.meshes()
