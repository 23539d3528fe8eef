"""Finding nodes on the local network by mDNS (`_conclave._tcp.local.`).

A record says that a node exists, never that it is alive: python-zeroconf keeps a killed node's record for up to 75
minutes. And it says so to anyone: node id, mesh id, port and protocol version, nothing else. What comes in is from
strangers, so everything is bounded; whoever is found must prove itself in the TLS handshake.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ifaddr
from zeroconf import InterfaceChoice, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from node.mesh.identity import NODE_ID

SERVICE = "_conclave._tcp.local."
PROTOCOL = 1
RESOLVE_MS = 3000
MAX_RESOLVING = 16  # A flood of names must not become a flood of questions.
MAX_NAMES = 512
MAX_ADDRESSES = 8
MESH_ID = re.compile(rb"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Found:
    """A node that was announced: HOST:PORT of its mesh listener, the likeliest first. Nothing of it is proved yet."""

    node_id: str
    mesh_id: str
    addresses: tuple[str, ...]


class Discovery:
    """Announces this node and looks for others.

    `port` is the mesh listener's, `addresses` the IPs to announce (default: those of the interfaces used), `interfaces`
    the local IPs to use (default: all, loopback included). IPv4 only: link-local IPv6 addresses need a zone to be
    dialled.
    """

    def __init__(
        self,
        node_id: str,
        mesh_id: str,
        port: int,
        on_found: Callable[[Found], None],
        *,
        interfaces: Sequence[str] = (),
        addresses: Sequence[str] = (),
    ) -> None:
        self._node_id = node_id
        self._mesh_id = mesh_id
        self._port = port
        self._on_found = on_found
        self._interfaces = [i for i in interfaces if ipaddress.ip_address(i).version == 4]
        self._addresses = list(addresses) or announced(self._interfaces)
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._names: dict[str, Found] = {}

    async def start(self) -> str:
        """Announces and looks from now on. Returns "" or one line that says why this network has no discovery."""
        try:
            if missing := set(self._interfaces) - {str(n.ip) for n in _networks()}:
                raise OSError(f"{', '.join(sorted(missing))} is no address of this machine")
            self._zeroconf = AsyncZeroconf(
                interfaces=self._interfaces or InterfaceChoice.All, ip_version=IPVersion.V4Only
            )
            self._info = AsyncServiceInfo(
                SERVICE,
                f"{self._node_id}.{SERVICE}",
                port=self._port,
                properties={"id": self._node_id, "mesh": self._mesh_id, "v": str(PROTOCOL)},
                server=f"{self._node_id}.local.",
                addresses=[socket.inet_aton(a) for a in self._addresses],
            )
            # Ids are random, so nobody else has our name: telling zeroconf so saves it 0.75 s of asking around.
            await self._zeroconf.async_register_service(self._info, cooperating_responders=True)
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._seen])
        except Exception as e:  # zeroconf raises what the sockets and its own parser raise, without a common base
            await self.stop()
            reason = str(e) or type(e).__name__
            return f"no discovery on this network ({reason}): join nodes of other machines with --join HOST:PORT"
        return ""

    async def stop(self) -> None:
        """Withdraws the announcement (peers see it at once) and ends; harmless when done twice."""
        for task in self._resolving.values():
            task.cancel()
        await asyncio.gather(*self._resolving.values(), return_exceptions=True)
        self._resolving.clear()
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is None:
            return
        try:
            if self._browser is not None:
                await self._browser.async_cancel()
            if self._info is not None:
                # The call sends the first goodbye; the second, a quarter of a second later, is for lossy networks.
                await (await zeroconf.async_unregister_service(self._info))
        finally:
            await zeroconf.async_close()

    def _seen(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            self._names.pop(name, None)  # Said again later, it is news again.
            return
        label = name.removesuffix("." + SERVICE)
        if not NODE_ID.fullmatch(label) or name in self._resolving or len(self._resolving) >= MAX_RESOLVING:
            return
        if name not in self._names and len(self._names) >= MAX_NAMES:
            return
        task = asyncio.get_running_loop().create_task(self._resolve(zeroconf, name, label))
        self._resolving[name] = task
        task.add_done_callback(lambda _: self._resolving.pop(name, None))

    async def _resolve(self, zeroconf: Zeroconf, name: str, label: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if not await info.async_request(zeroconf, RESOLVE_MS):
            return
        found = _checked(info, label)
        if found is not None and self._names.get(name) != found:
            self._names[name] = found
            self._on_found(found)


def _checked(info: AsyncServiceInfo, label: str) -> Found | None:
    """A stranger's record, if it is what a node would send."""
    properties = info.properties
    mesh = properties.get(b"mesh") or b""
    if properties.get(b"id") != label.encode() or not MESH_ID.fullmatch(mesh) or not info.port:
        return None
    ips = info.parsed_addresses(IPVersion.V4Only)[:MAX_ADDRESSES]
    return Found(label, mesh.decode(), tuple(f"{ip}:{info.port}" for ip in _likeliest_first(ips)))


def announced(interfaces: Sequence[str] = ()) -> list[str]:
    """The IPv4 addresses to announce: those of `interfaces`, else all of this machine that others can reach.

    The one that packets to elsewhere would leave from goes first. Loopback is announced only where there is nothing
    else; nodes on one machine meet by `node.mesh.local` as well.
    """
    if interfaces:
        return list(interfaces)[:MAX_ADDRESSES]
    primary = _primary()
    own = sorted((str(n.ip) for n in _networks()), key=lambda ip: ip != primary)
    return ([ip for ip in own if not ipaddress.ip_address(ip).is_loopback] or own or ["127.0.0.1"])[:MAX_ADDRESSES]


def _likeliest_first(ips: Sequence[str]) -> list[str]:
    # A machine with containers announces bridges that only it can reach; what shares a network with us goes first.
    networks = [n.network for n in _networks()]
    return sorted(ips, key=lambda ip: not any(ipaddress.ip_address(ip) in n for n in networks))


def _primary() -> str:
    # Connecting a datagram socket sends nothing; it only has the system choose a route (the address is a reserved one).
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("240.0.0.1", 9))
            address: str = s.getsockname()[0]
        except OSError:
            return ""
        return address


def _networks() -> list[ipaddress.IPv4Interface]:
    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if ip.is_IPv4:
                found.append(ipaddress.IPv4Interface(f"{ip.ip}/{ip.network_prefix}"))
    return found
