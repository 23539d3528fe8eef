"""mDNS on loopback, and what of a stranger's record is believed."""

import asyncio
import ipaddress
import random
import socket
from typing import Any

import ifaddr
import pytest
from meshnode import HOST, until
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from node.mesh import discovery, interfaces
from node.mesh.discovery import SERVICE, Discovery, Found
from node.mesh.interfaces import announced


def node_id() -> str:
    """Random, for everybody who runs these tests on this machine at the same time hears everybody."""
    return "".join(random.choices("abcdefghijklmnopqrstuvwxyz234567", k=10))


A, B = node_id(), node_id()
MESH, OTHER = random.randbytes(8).hex(), random.randbytes(8).hex()


@pytest.fixture
async def announce() -> Any:
    running: list[Discovery] = []

    async def one(node_id: str, mesh_id: str, port: int) -> tuple[Discovery, list[Found]]:
        found: list[Found] = []
        d = Discovery(node_id, mesh_id, port, found.append, interfaces=[HOST])
        running.append(d)
        assert await d.start() == ""
        return d, found

    yield one
    await asyncio.gather(*(d.stop() for d in running))


async def test_each_finds_the_other_whoever_was_first(announce: Any) -> None:
    _, by_a = await announce(A, MESH, 1001)
    _, by_b = await announce(B, OTHER, 1002)
    a, b = Found(A, MESH, (f"{HOST}:1001",)), Found(B, OTHER, (f"{HOST}:1002",))
    await until(lambda: b in by_a and a in by_b)


async def test_stopping_and_starting_again_is_news(announce: Any) -> None:
    _, by_a = await announce(A, MESH, 1001)
    b, _ = await announce(B, MESH, 1002)
    await until(lambda: [f.node_id for f in by_a if f.node_id == B] == [B])
    await b.stop()
    await announce(B, MESH, 1003)
    await until(lambda: Found(B, MESH, (f"{HOST}:1003",)) in by_a)


async def test_no_multicast_is_said_and_nothing_fails() -> None:
    d = Discovery(A, MESH, 1001, lambda _: None, interfaces=["192.0.2.254"])  # An address that nobody has.
    problem = await d.start()
    assert "--join HOST:PORT" in problem
    assert "\n" not in problem
    await d.stop()


async def test_who_is_seen_while_it_stops_is_not_asked(announce: Any) -> None:
    d, found = await announce(A, MESH, 1001)
    zc, browser = d._zeroconf, d._browser
    assert zc is not None
    assert browser is not None

    async def asks() -> None:
        try:
            await asyncio.Event().wait()
        finally:  # a record comes in the moment in which the questions are called off
            if not browser.done:
                d._seen(zc.zeroconf, SERVICE, f"{B}.{SERVICE}", ServiceStateChange.Added)

    d._resolving["x"] = asyncio.create_task(asks())
    await asyncio.sleep(0)
    await d.stop()
    assert not d._resolving
    assert not [t for t in asyncio.all_tasks() if "_resolve" in repr(t.get_coro())]
    assert B not in [f.node_id for f in found]


async def test_strange_records_are_ignored(announce: Any) -> None:
    _, found = await announce(A, MESH, 1001)
    good = node_id()
    zc = AsyncZeroconf(interfaces=[HOST])
    for name, properties, port, addresses in (
        ("../../etc/passwd", {"id": "../../etc/passwd", "mesh": MESH}, 1, 1),
        ("x" * 60, {"id": "x" * 60, "mesh": MESH}, 1, 1),
        ("b" * 9, {"id": A, "mesh": MESH}, 1, 1),
        ("c" * 9, {"id": "c" * 9, "mesh": "not hex at all!!"}, 1, 1),
        ("d" * 9, {"id": "d" * 9, "mesh": MESH * 12}, 1, 1),
        ("e" * 9, {"id": "e" * 9}, 1, 1),
        ("f" * 9, {"id": "f" * 9, "mesh": MESH}, 0, 1),
        ("g" * 9, {}, 1, 1),
        (good, {"id": good, "mesh": MESH}, 5, 20),
    ):
        info = AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=port,
            properties=properties,
            server=f"{name[:9]}.local.",
            addresses=[socket.inet_aton(f"10.0.0.{i}") for i in range(addresses)],
        )
        await zc.async_register_service(info, cooperating_responders=True, strict=False)
    await until(lambda: any(f.node_id == good for f in found))
    await asyncio.sleep(0.2)
    assert {f.node_id for f in found if f.mesh_id == MESH} <= {A, good}
    assert all(len(f.addresses) <= discovery.MAX_ADDRESSES for f in found)
    await zc.async_close()


def test_what_is_announced() -> None:
    assert announced([HOST]) == [HOST]
    own = announced()
    assert own
    assert own == [HOST] or not any(ip.startswith("127.") for ip in own)


def test_what_shares_a_network_with_us_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "own", lambda: [ipaddress.ip_interface("192.168.7.3/24")])
    ips = ["172.17.0.1", "192.168.7.9", "fd00::1", "10.8.0.2"]
    assert interfaces.likeliest_first(ips) == ["192.168.7.9", "172.17.0.1", "fd00::1", "10.8.0.2"]


def adapters(**ips: list[str]) -> list[ifaddr.Adapter]:
    def one(text: str) -> ifaddr.IP:
        i = ipaddress.ip_interface(text)
        return ifaddr.IP(str(i.ip) if i.version == 4 else (str(i.ip), 0, 0), i.network.prefixlen, "")

    return [ifaddr.Adapter(name, name, [one(i) for i in found]) for name, found in ips.items()]


def test_bridges_of_containers_are_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    found = adapters(
        lo=["127.0.0.1/8", "::1/128"],
        docker0=["172.17.0.1/16"],
        **{"br-0123456789ab": ["172.18.0.1/16"], "veth12ab": ["169.254.7.7/16"], "virbr0": ["192.168.122.1/24"]},
        br0=["192.168.1.5/24"],  # a bridge that a person made is a network like any other
        wlan0=["10.0.0.7/24", "fe80::7/64", "fd00::7/64"],
    )
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: found)
    monkeypatch.setattr(interfaces, "_primary", lambda *_: "10.0.0.7")
    assert announced() == ["10.0.0.7", "192.168.1.5", "fd00::7"]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: found[:3])
    assert announced() == ["127.0.0.1"]


def test_link_local_addresses_are_for_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lo, eth0 = ["127.0.0.1/8", "::1/128"], ["fe80::7/64"]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters(lo=lo, eth0=eth0, wlan0=["fe80::8/64"]))
    monkeypatch.setattr(interfaces, "_primary", lambda *_: "")
    assert announced() == ["fe80::7", "fe80::8"]
    assert interfaces.is_ours("[fe80::7]:1")
    assert not interfaces.is_ours("[fe80::9]:1")
    # Who dials knows by which interface, or tries them all.
    assert interfaces.dialled("[fe80::9]:1") == "ipv6:[fe80::9%25eth0]:1,[fe80::9%25wlan0]:1"
    for text in ("[fe80::9%wlan0]:1", "[fd00::9]:1", "10.0.0.1:1", "host:1"):
        assert interfaces.dialled(text) == f"dns:///{text}"
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters(lo=lo, eth0=[*eth0, "10.0.0.7/24"]))
    assert announced() == ["10.0.0.7"]
    assert interfaces.still("[fe80::7]:1") == "10.0.0.7:1", "a better one came"
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters(lo=lo, eth0=eth0))
    assert interfaces.still("10.0.0.7:1") == "10.0.0.7:1", "a lease that is over for a moment"


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        ("ipv4:10.0.0.7:4242", "10.0.0.7:7421"),
        ("ipv6:%5Bfd00::7%5D:4242", "[fd00::7]:7421"),
        ("ipv6:[fd00::7]:4242", "[fd00::7]:7421"),
        ("ipv6:%5Bfe80::7%25eth0%5D:4242", "[fe80::7]:7421"),
        ("unix:/tmp/x", ""),
        ("ipv4:", ""),
        ("", ""),
    ],
)
def test_where_a_call_came_from_with_the_port_that_its_node_says(peer: str, seen: str) -> None:
    assert interfaces.came_from(peer, "192.168.1.1:7421") == seen
    assert interfaces.came_from(peer, "nonsense") == ""


def test_an_address_stays_while_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "_primary", lambda *_: "")

    def now(**ips: list[str]) -> str:
        monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters(lo=["127.0.0.1/8"], **ips))
        return interfaces.still("10.0.0.7:7421")

    assert now(eth0=["10.0.0.7/24"]) == now(wlan0=["10.9.0.1/24"], eth0=["10.0.0.7/24"]) == "10.0.0.7:7421"
    assert now() == "10.0.0.7:7421"
    assert now(eth0=["10.0.0.9/24"]) == "10.0.0.9:7421"
    assert now(eth0=["fd00::9/64"]) == "[fd00::9]:7421"
