"""Models of other nodes over HTTP: listed, asked by name, and heard as they are written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from web import asked, web

from node.api.http import names
from node.engine.fake import FakeSpec
from node.errors import NotFound

sys.path.insert(0, str(Path(__file__).parents[1] / "coordinator"))
from scripted import ScriptedPeer, ballot, says, sends, writes

CHAT = "/v1/chat/completions"


def test_a_name_of_another_node_is_its_model_alone() -> None:
    assert names.mode("big", "small", {"big"}) == names.Mode(False, model="big")
    assert names.mode("small", "small", {"big"}) == names.Mode(False), "of one that both have this node's counts"
    assert names.listed("small", {"big", "also"})[-3:] == ["also", "big", "small"]
    with pytest.raises(NotFound, match=r"'huge' does not exist here: .*big, small"):
        names.mode("huge", "small", {"big"})


async def test_models_of_the_mesh_are_listed() -> None:
    peers = (
        ScriptedPeer("b", says("42"), "fb", model="big"),
        ScriptedPeer("c", says("42"), "fb", model="big"),
        ScriptedPeer("d", says("42"), "fd", model="fake"),
        ScriptedPeer("e", says("42"), "fe", model="conclave:fast"),
        ScriptedPeer("f", says("42"), "ff", model=""),
    )
    async with web(peers=peers) as node:
        listed = (await node.get("/v1/models")).json["data"]
        named = [m["id"] for m in listed if not m["id"].startswith("conclave")]
        assert named == ["big", "fake"]
        one = (await node.get("/v1/models/big")).json
        assert one["conclave"]["node"] in "bc"
        assert "context_length" not in one
        assert "big:latest" in [m["name"] for m in (await node.get("/api/tags")).json["models"]]
        shown = (await node.post("/api/show", {"model": "big"})).json
        assert shown["model_info"]["general.basename"] == "big"
        assert (await node.get("/v1/models/huge")).status == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_of_another_node_answers(stream: bool) -> None:
    peer = ScriptedPeer(
        "b",
        sends(lambda w: writes(1, "It is "), lambda w: writes(1, "4"), lambda w: ballot(1, "It is 42.")),
        "fb",
        model="big",
    )
    async with web(FakeSpec(answers=("not I",)), peers=(peer,)) as node:
        answer = await node.post(CHAT, asked(model="big", stream=stream))
        assert answer.status == 200, answer.body
        (wish,) = peer.wishes
        assert (list(wish.candidates), wish.texts, wish.fingerprint) == ([1], True, "fb")
        assert node.engine.load.free == node.engine.info.sequences, "nothing is computed here"
        if not stream:
            (choice,) = answer.json["choices"]
            assert (choice["message"]["content"], answer.json["model"]) == ("It is 42.", "big")
            return
        texts = [c["delta"].get("content") for e in answer.events[:-1] for c in e["choices"]]
        assert [t for t in texts if t] == ["It is ", "4", "2."], "as it is written, and what was missing at the end"
        assert answer.events[-2]["choices"][0]["finish_reason"] == "stop"


async def test_what_only_this_node_can_do_is_refused_for_others() -> None:
    async with web(peers=(ScriptedPeer("b", says("42"), "fb", model="big"),)) as node:
        found = await node.post("/v1/completions", {"model": "big", "prompt": "go on"})
        assert found.status == 404
        assert "not loaded here" in found.error
        assert (await node.post("/v1/embeddings", {"model": "big", "input": "x"})).status == 404
