"""A token is replaced while nodes run: those with the old one, the new one and both are one mesh until it is over."""

from __future__ import annotations

import time
from typing import Any

import pytest
from meshnode import Node, until

from node.mesh import overlap
from node.mesh.authority import Authority
from node.mesh.identity import Identity, OldToken, new_token, parse_token
from node.v1 import mesh_pb2

A, B, C, D = ("a" * 10, "b" * 10, "c" * 10, "d" * 10)


def authority(token: str) -> Authority:
    return Authority(parse_token(token))


@pytest.mark.asyncio(loop_scope="session")
class TestNodes:
    async def one_mesh(self, *nodes: Node) -> None:
        ids = {n.id for n in nodes}
        for node in nodes:
            await until(lambda node=node: node.sees() >= ids - {node.id})

    async def test_whoever_has_the_old_the_new_or_both_meets_everyone(self, start: Any, token: str) -> None:
        second, ends = new_token(), time.time() + 3600
        old = await start("a")
        both = await start("b", identity=Identity(second, B, old=OldToken(token, ends)), join=old.address)
        await self.one_mesh(old, both)
        new = await start("c", token=second, join=both.address)
        await self.one_mesh(old, both, new)
        assert old.mesh.notices == new.mesh.notices == []
        await both.stop()  # who told them is not needed any more
        later = await start("d", token=second, join=new.address)
        late = await start("e", join=new.address)  # with the old one
        await self.one_mesh(old, new, later, late)
        assert new.identity.mesh_ids() == later.identity.mesh_ids() == {new.mesh.mesh_id, old.mesh.mesh_id}
        assert old.identity.mesh_ids() == {old.mesh.mesh_id}, "who has the old one learns nothing"

    async def test_it_ends_for_those_too_that_were_told(self, start: Any, token: str) -> None:
        second, now = new_token(), time.time()
        clock = [now]
        both = await start("b", identity=Identity(second, B, old=OldToken(token, now + 60)))
        new = await start("c", identity=Identity(second, C, clock=lambda: clock[0]), join=both.address)
        await self.one_mesh(both, new)
        clock[0] = now + 61
        old = await start("a", join=new.address)
        await until(lambda: any("mesh" in n or "token" in n for n in old.mesh.notices))
        assert new.sees() == {B}
        assert old.sees() == set()


def test_what_is_told_is_checked() -> None:
    first, second, other = (authority(new_token()) for _ in range(3))
    now = time.time()
    good = overlap.told(overlap.of(first, second, now + 60))
    assert good is not None
    found = overlap.heard(good, second, now)
    assert found is not None
    assert (found.mesh_id, found.root, found.word) == (first.mesh_id, good.root, good.word)
    assert overlap.heard(good, other, now) is None, "the word is for another mesh"
    assert overlap.heard(good, first, now) is None, "it is the mesh itself"
    assert overlap.heard(good, second, now + 61) is None, "it is over"

    def changed(**fields: Any) -> mesh_pb2.Overlap:
        made = mesh_pb2.Overlap()
        made.CopyFrom(good)
        made.MergeFrom(mesh_pb2.Overlap(**fields))
        return made

    for bad in (
        changed(until_ms=int((now + 400 * 86400) * 1000)),
        changed(root=other.certificate),
        changed(word=other.vouch_for(second)),
        changed(word=first.vouch_for(other)),
        changed(word=good.root),
        changed(root=b"x" * 5000),
        changed(root=b"-----BEGIN CERTIFICATE-----"),
        changed(root=good.word, word=good.word),
        mesh_pb2.Overlap(),
    ):
        assert overlap.heard(bad, second, now) is None


def test_one_at_a_time_and_none_after_its_end() -> None:
    first, second, other, now = new_token(), new_token(), new_token(), time.time()
    clock = [now]
    node = Identity(second, C, clock=lambda: clock[0])
    before = node.leaf()
    for old, ends in ((first, now + 60), (other, now + 120)):
        said = overlap.told(overlap.of(authority(old), authority(second), ends))
        assert said is not None
        node.learn(said)
        assert node.mesh_ids() == {node.mesh_id, authority(first).mesh_id}
    assert node.leaf().certificate != before.certificate
    assert node.leaf().certificate.count(b"BEGIN") == node.roots().count(b"BEGIN") == 2
    clock[0] = now + 61
    assert node.mesh_ids() == {node.mesh_id}
    assert node.roots().count(b"BEGIN") == 1
