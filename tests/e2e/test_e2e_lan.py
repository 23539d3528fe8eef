"""Five hosts on a switch, each a network namespace with one node: what a person with five machines would see.

The hosts are shared; every test leaves all five running and on one switch.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.lan import Lan, unavailable
from chaos.swarm import ROOT, SOON_S, Machine, Swarm, until

from node.mesh.identity import new_token
from node.v1 import generate_pb2, kvsync_pb2, types_pb2

FLAGS = ("--backend", "fake")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    if reason := unavailable():
        pytest.skip(reason)
    lan = Lan(5)
    made = Swarm(lan, tmp_path_factory.mktemp("lan"), new_token())
    try:
        # One after the other is told of the first, by address alone: nobody announces anything.
        first, *others = made.machines
        made.start(first, *FLAGS, "--join", "none")
        made.ready([first])
        for machine in others:
            made.start(machine, *FLAGS, "--join", f"{first.host.ip}:7421")
        made.ready()
        until(lambda: made.see_each_other(), "--join of one address finds all five")
        yield made
    finally:
        made.close()
        lan.close()


@pytest.fixture
def five(swarm: Swarm) -> Iterator[list[Machine]]:
    yield swarm.machines
    until(lambda: swarm.see_each_other(), "all five are together at the end", instead=swarm.views)


def held(machines: list[Machine], whom: Machine, *states: str) -> bool:
    """Whether each holds a node for one of these; "" is left or unknown."""
    return all(m.state_of(whom.id) in states for m in machines)


def test_join_of_one_address_found_all_five(five: list[Machine]) -> None:
    for machine in five:
        assert {n.address for n in machine.nodes()} == {f"{m.host.ip}:7421" for m in five}


def test_a_killed_node_is_out_and_comes_back(five: list[Machine], swarm: Swarm) -> None:
    victim, *others = five[::-1]
    victim.signal(signal.SIGKILL)
    until(lambda: held(others, victim, "dead"), "it is held for dead")
    assert victim.process is not None
    victim.process.wait()
    swarm.start(victim, *FLAGS, "--join", f"{others[0].host.ip}:7421")
    swarm.ready([victim])


def test_a_short_stop_is_refuted_and_nobody_flaps(five: list[Machine]) -> None:
    """A stop that this machine made long, by standing still itself, proves nothing: then it is tried again."""
    victim, *others = five[::-1]
    for left in reversed(range(5)):
        victim.signal(signal.SIGSTOP)
        try:
            until(lambda: any(m.state_of(victim.id) == "suspect" for m in others), "it is suspected")
        finally:
            victim.signal(signal.SIGCONT)
        seen = set()
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            seen |= {m.state_of(v.id) for m in others for v in five if v is not m}
            time.sleep(0.05)
        until(lambda: held(others, victim, "alive"), "nobody suspects it any more")
        if seen <= {"alive", "suspect"}:
            break
        assert left, seen
        until(lambda: all(held([m], v, "alive") for m in five for v in five if v is not m), "all are together again")


def test_a_pulled_cable_and_a_split(five: list[Machine], swarm: Swarm) -> None:
    one, two, *rest = five
    swarm.lan.link(one.host, up=False)
    until(lambda: held([two, *rest], one, "dead"), "who is unplugged is held for dead")
    swarm.lan.link(one.host, up=True)
    until(lambda: swarm.see_each_other(), "plugged in again, it is back")
    swarm.lan.split([one.host, two.host])
    until(lambda: swarm.see_each_other([one, two]) and swarm.see_each_other(rest), "two halves")
    swarm.lan.split([])
    until(lambda: swarm.see_each_other(), "healed")


def said(machine: Machine, topic: str, text: str, *, append: bool) -> generate_pb2.GenerateResponse:
    """A turn of a topic, by one node alone."""
    wish = generate_pb2.GenerateRequest(
        messages=[types_pb2.Message(role="user", content=text)],
        topic=topic,
        append=append,
        candidates=1,
        scope=generate_pb2.SCOPE_LOCAL,
    )
    return machine.generate.Generate(wish, timeout=60)


def test_two_halves_go_on_with_one_topic(five: list[Machine], swarm: Swarm) -> None:
    """Both answer; healed, all that hold it agree within 5 s, and what lost is a branch on each."""
    one, two, *rest = five
    said(one, "boat", "the boat is called Argo", append=False)
    until(lambda: sum(m.version("boat") is not None for m in five) >= 3, "two others have it")
    swarm.lan.split([one.host, two.host])
    until(lambda: swarm.see_each_other([one, two]) and swarm.see_each_other(rest), "two halves")
    said(one, "boat", "said on the left", append=True)
    said(one, "boat", "and once more", append=True)
    right = said(rest[0], "boat", "said on the right", append=True)
    wins = right.version.epoch, right.version.turn, right.version.node_id
    assert wins[0] == 1, "who takes over from a node that is away begins an epoch: it wins, though it said less"
    swarm.lan.split([])

    def agreed() -> bool:
        return {m.version("boat") for m in five} - {None} == {wins}

    until(agreed, "one version everywhere", SOON_S, lambda: str([m.version("boat") for m in five]))
    shown = one.kvsync.Show(kvsync_pb2.ShowRequest(topic="boat"), timeout=60)
    assert [m.content for m in shown.messages if m.role == "user"] == ["the boat is called Argo", "said on the right"]
    (branch,) = shown.branches
    left = [m.content for m in branch.messages if m.role == "user"]
    assert left == ["the boat is called Argo", "said on the left", "and once more"]
    until(lambda: swarm.see_each_other(), "healed")


def test_a_clean_leave_is_seen_at_once(five: list[Machine], swarm: Swarm) -> None:
    """And the node that starts again finds the others by mDNS, over IPv4 and IPv6."""
    victim, *others = five[::-1]
    for _ in range(3):  # on a machine that stands still for half a second a goodbye comes to nobody
        until(lambda: all(n.round_trip_ms > 0 for n in victim.nodes()[1:]), "it has called all others")
        victim.signal(signal.SIGTERM)
        assert victim.process is not None
        assert victim.process.wait(SOON_S) == 0
        if any(m.has_left(victim.id) for m in others):
            break
        swarm.start(victim, *FLAGS, "--join", f"{others[0].host.ip}:7421")
        swarm.ready([victim])
        until(lambda: swarm.see_each_other(), "it is back")
    else:
        raise AssertionError("nobody heard a goodbye in three")
    # Who was cut off a moment ago may miss the goodbye, and then finds out by itself.
    until(lambda: held(others, victim, "", "dead"), "all know", instead=swarm.views)
    # The others do not announce themselves; for mDNS two sides are needed.
    other = others[0]
    assert other.end() == 0
    swarm.start(victim, *FLAGS, "--join", "auto")
    swarm.start(other, *FLAGS, "--join", f"auto,{others[1].host.ip}:7421")  # and by it the rest
    swarm.ready([victim, other])
    until(lambda: other.id in victim.peers(), "they found each other by mDNS")


def test_pair_finds_the_other_machine_by_mdns(five: list[Machine], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"

    def command(home: Path, *words: str) -> dict[str, Any]:
        machine = five[0] if home == here else five[1]
        env = {k: v for k, v in os.environ.items() if not k.startswith("CONCLAVE_")} | {"CONCLAVE_HOME": str(home)}
        argv = machine.host.command(sys.executable, "-m", "node", *words)
        return {
            "args": argv,
            "env": env,
            "cwd": ROOT,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    def run(home: Path, *words: str) -> str:
        done = subprocess.run(**command(home, *words), timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip()

    token = run(here, "token", "new")
    with subprocess.Popen(**command(here, "pair")) as showing:
        try:
            assert showing.stdout is not None
            code = showing.stdout.readline().strip()
            assert token not in run(there, "pair", *code.split())
            assert showing.wait(60) == 0
        finally:
            showing.kill()
    assert run(there, "token", "show") == token


def test_a_node_whose_address_changes(five: list[Machine], swarm: Swarm) -> None:
    *others, mover = five
    swarm.lan.readdress(mover.host, "10.77.0.77")
    there = "10.77.0.77:7421"
    try:
        until(lambda: all(there in {n.address for n in m.nodes() if n.state == "alive"} for m in others), "it moved")
        line = "address changed: other machines join now with --join 10.77.0.77:7421"
        until(lambda: line in mover.said(), "and it says so")
    finally:
        swarm.lan.readdress(swarm.lan.hosts[mover.host.index], mover.host.ip)
    back = f"{mover.host.ip}:7421"
    until(lambda: all(back in {n.address for n in m.nodes() if n.state == "alive"} for m in others), "it moved back")


def test_the_same_node_id_twice_is_refused(five: list[Machine], swarm: Swarm) -> None:
    *others, cloned = five
    original = others[0]
    assert cloned.end() == 0
    data = cloned.home / "data" / "node-0" / "node_id"
    own = data.read_text()
    shutil.copy(original.home / "data" / "node-0" / "node_id", data)
    try:
        swarm.start(cloned, *FLAGS, "--join", f"{others[1].host.ip}:7421")
        line = (
            rf"another node, at {re.escape(original.host.ip)}:7421, has this node's id {original.id}.*Remove the file"
        )
        until(lambda: re.search(line, cloned.said()) or "was the data directory copied" in cloned.said(), "it is told")
        assert all(original.id in m.peers() for m in others[1:])
        assert {n.address for m in others for n in m.nodes() if n.id == original.id} == {f"{original.host.ip}:7421"}
    finally:
        assert cloned.end() == 0
        data.write_text(own)
        swarm.start(cloned, *FLAGS, "--join", f"{others[1].host.ip}:7421")
        swarm.ready([cloned])


def test_ipv6_alone_is_enough(five: list[Machine], swarm: Swarm) -> None:
    one, two, *_ = five[::-1]
    assert (one.end(), two.end()) == (0, 0)
    for machine in (one, two):
        machine.host.do("ip", "-4", "addr", "flush", "dev", "eth0")
        swarm.start(machine, *FLAGS, "--join", "auto")
    swarm.ready([one, two])
    until(lambda: one.id in two.peers() and two.id in one.peers(), "they found each other over IPv6")
    assert one.nodes()[0].address == f"[{one.host.ip6}]:7421"
    for machine in (one, two):
        assert machine.end() == 0
        machine.host.do("ip", "addr", "add", f"{machine.host.ip}/24", "dev", "eth0")
        swarm.start(machine, *FLAGS, "--join", f"{five[0].host.ip}:7421")
    swarm.ready([one, two])


def test_no_multicast_is_said_in_the_banner_and_join_works(five: list[Machine], swarm: Swarm) -> None:
    first, *_, deaf = five
    assert deaf.end() == 0
    deaf.log.write_bytes(b"")
    deaf.host.do("nft", "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; }")
    deaf.host.do("nft", "add rule inet deaf in udp dport 5353 drop")
    try:
        swarm.start(deaf, *FLAGS, "--join", f"auto,{first.host.ip}:7421")
        swarm.ready([deaf])
        until(lambda: first.id in deaf.peers(), "--join works")
        until(lambda: "Ask it something" in deaf.said(), "the banner is out")
        assert "no discovery on this network (multicast does not come back)" in deaf.said().split("Ask it")[0]
        assert "--join HOST:PORT" in deaf.said()
    finally:
        deaf.host.do("nft", "delete table inet deaf")


def test_hosts_that_have_link_local_addresses_only_meet(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    lan = Lan(2)
    made = Swarm(lan, tmp_path, new_token())
    try:
        for host in lan.hosts:
            host.do(*"ip -4 addr flush dev eth0".split())
            host.do(*"ip -6 addr flush dev eth0 scope global".split())
        for machine in made.machines:
            # As slow as the other, whatever else the machine does: a node that seems far slower gets no candidates.
            made.start(machine, *FLAGS, "--model", "fake:answers=answer: 42,tokens_per_s=60", "--http-port", "0")
        made.ready()
        until(made.see_each_other, "they meet over mDNS", instead=made.views)
        one = made.machines[0]
        assert all(n.address.startswith("[fe80:") for n in one.nodes())
        wish = generate_pb2.GenerateRequest(
            messages=[types_pb2.Message(role="user", content="hi")], candidates=4, strategy="quality"
        )
        voted = lambda: {c.node for c in one.generate.Generate(wish, timeout=SOON_S).candidates}  # noqa: E731
        until(lambda: len(voted()) == 2, "both vote")
    finally:
        made.close()
        lan.close()
