"""This machine's IP addresses: which of them others can reach, and which networks it shares with others."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import unquote

import ifaddr

from node.address import join_address, split_address

MAX_ADDRESSES = 8
# Bridges and links of containers and virtual machines, by the names that their makers give: only this machine is there.
_VIRTUAL = re.compile(
    r"docker\d*|br-[0-9a-f]{12}|veth.*|virbr\d+(-nic)?|lxcbr\d+|lxdbr\d+|incusbr\d+|cni.*|podman\d+|cali.*|flannel.*"
)
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def is_virtual(name: str) -> bool:
    """Whether an interface is a bridge or link of containers, where no other machine is."""
    return _VIRTUAL.fullmatch(name) is not None


def own() -> list[Interface]:
    """All addresses of this machine with their networks, those of containers' bridges apart.

    IPv6 link-local ones only where there is nothing else to reach others by: who dials one must know by which of its
    own interfaces (`dialled`).
    """
    found = [interface for _, interface in _all()]
    usual = [i for i in found if i.version == 4 or not i.ip.is_link_local]
    return found if all(i.ip.is_loopback for i in usual) else usual


def dialled(address: str) -> str:
    """What gRPC calls for HOST:PORT. For an IPv6 link-local address that names no zone, by every interface that has
    such addresses."""
    host, port = split_address(address) or ("", 0)
    if host.lower().startswith("fe80:") and "%" not in host:
        zones = dict.fromkeys(name for name, i in _all() if i.version == 6 and i.ip.is_link_local)
        if zones:
            return "ipv6:" + ",".join(f"[{host}%25{name}]:{port}" for name in zones)
    return f"dns:///{address}"  # The scheme is said, or a hostile "unix:1" would be one.


def came_from(peer: str, address: str) -> str:
    """HOST:PORT of a node whose call came from `peer`, as gRPC names it, and that says it is at `address`: where it was
    seen, with the port that it says. Empty where gRPC names no IP address. A zone is left out: `dialled` knows better.

    A machine may say an address that is of a network which we do not share, and have another on one that we do.
    """
    seen = split_address(unquote(peer.partition(":")[2])) if peer.startswith(("ipv4:", "ipv6:")) else None
    said = split_address(address)
    return join_address(seen[0].partition("%")[0], said[1]) if seen and said else ""


def _all() -> list[tuple[str, Interface]]:
    found: list[tuple[str, Interface]] = []
    for adapter in ifaddr.get_adapters():
        if is_virtual(adapter.name):
            continue
        for ip in adapter.ips:
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            found.append((adapter.name, ipaddress.ip_interface(f"{address.partition('%')[0]}/{ip.network_prefix}")))
    return found


def announced(interfaces: Sequence[str] = ()) -> list[str]:
    """The addresses to announce: those of `interfaces`, else all of this machine that others can reach.

    The one that packets to elsewhere would leave from goes first, IPv4 before IPv6. Loopback is announced only where
    there is nothing else; nodes on one machine meet by `node.mesh.local` as well.
    """
    if interfaces:
        return list(interfaces)[:MAX_ADDRESSES]
    primary = _primary(socket.AF_INET, "240.0.0.1"), _primary(socket.AF_INET6, "2001:db8::1")
    ips = sorted((i.ip for i in own()), key=lambda ip: (ip.version, str(ip) not in primary))
    loopback = [ip for ip in ips if ip.is_loopback]
    return [str(ip) for ip in [ip for ip in ips if not ip.is_loopback] or loopback[:1]][:MAX_ADDRESSES] or ["127.0.0.1"]


def is_ours(address: str) -> bool:
    """Whether this machine has the IP address of HOST:PORT: only that can be bound. 20 µs, where `still` takes 500."""
    try:
        ip = ipaddress.ip_address((split_address(address) or ("", 0))[0])
        if ip.version == 6 and ip.is_link_local:  # to bind it takes the zone as well
            return ip in {i.ip for i in own()}
        with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as s:
            s.bind((str(ip), 0))
    except (OSError, ValueError):
        return False
    return True


def still(address: str, interfaces: Sequence[str] = ()) -> str:
    """The HOST:PORT that others should dial from now on, where it was `address` until now.

    It stays as long as this machine has it, and also while it has no other: a cable that is out comes in again, a lease
    that is over is renewed.
    """
    host, port = split_address(address) or ("", 0)
    now = announced(interfaces)
    first = ipaddress.ip_address(now[0])
    if host in {str(i.ip) for i in own()} or first.is_loopback or (first.version == 6 and first.is_link_local):
        return address
    return join_address(now[0], port)


def likeliest_first(ips: Sequence[str]) -> list[str]:
    """Addresses of another machine, in the order in which to try them: what shares a network with us goes first."""
    networks = [n.network for n in own()]
    return sorted(ips, key=lambda ip: not any(ipaddress.ip_address(ip) in n for n in networks))


def _primary(family: socket.AddressFamily, elsewhere: str) -> str:
    # Connecting a datagram socket sends nothing; it only has the system choose a route (the addresses are reserved).
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.connect((elsewhere, 9))
            address: str = s.getsockname()[0]
    except OSError:
        return ""
    return address
