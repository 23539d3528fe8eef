"""Finding nodes on the local network by mDNS (`_conclave._tcp.local.`).

A record says that a node exists, never that it is alive: python-zeroconf keeps a killed node's record for up to 75
minutes. And it says so to anyone: node id, mesh id, port and protocol version, nothing else. What comes in is from
strangers, so everything is bounded; whoever is found must prove itself in the TLS handshake.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from node.address import join_address
from node.mesh.identity import NODE_ID
from node.mesh.interfaces import MAX_ADDRESSES, announced, likeliest_first, own
from node.mesh.multicast import hears_itself

SERVICE = "_conclave._tcp.local."
PROTOCOL = 1
RESOLVE_MS = 3000
MAX_RESOLVING = 16  # A flood of names must not become a flood of questions.
MAX_NAMES = 512
MESH_ID = re.compile(rb"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Found:
    """A node that was announced: HOST:PORT of its mesh listener, the likeliest first. Nothing of it is proved yet."""

    node_id: str
    mesh_id: str
    addresses: tuple[str, ...]


class Discovery:
    """Announces this node and looks for others.

    `port` is the mesh listener's (0: nothing is announced), `addresses` the IPs to announce (default: those of the
    interfaces used), `interfaces` the local IPs to use (default: all but those of containers' bridges, loopback
    included).
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
        self._interfaces = list(interfaces)
        self._addresses = list(addresses) or announced(self._interfaces)
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._names: dict[str, Found] = {}

    async def start(self) -> str:
        """Announces and looks from now on. Returns "" or one line that says why this network has no discovery."""
        try:
            ours = [str(n.ip) for n in own()]
            if missing := set(self._interfaces) - set(ours):
                raise OSError(f"{', '.join(sorted(missing))} is no address of this machine")
            self._zeroconf = await _listening(self._interfaces or ours)
            self._info = AsyncServiceInfo(
                SERVICE,
                f"{self._node_id}.{SERVICE}",
                port=self._port,
                properties={"id": self._node_id, "mesh": self._mesh_id, "v": str(PROTOCOL)},
                server=f"{self._node_id}.local.",
                addresses=[ipaddress.ip_address(a).packed for a in self._addresses],
            )
            # Ids are random, so nobody else has our name: telling zeroconf so saves it 0.75 s of asking around.
            if self._port:
                await self._zeroconf.async_register_service(self._info, cooperating_responders=True)
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._seen])
        except Exception as e:  # zeroconf raises what the sockets and its own parser raise, without a common base
            await self.stop()
            reason = str(e) or type(e).__name__
            return f"no discovery on this network ({reason}): join nodes of other machines with --join HOST:PORT"
        return ""

    async def deaf(self) -> str:
        """One line that says why others cannot be found here although it started; "" if they can be.

        Sockets for multicast open in networks that do not carry it: what we ask must at least come back to us.
        """
        ips = [ip for ip in self._interfaces or [str(n.ip) for n in own()] if ipaddress.ip_address(ip).version == 4]
        tried = [ip for ip in ips if not ipaddress.ip_address(ip).is_loopback]
        problems = await asyncio.gather(*(asyncio.to_thread(hears_itself, ip) for ip in tried))
        if not problems or not all(problems):
            return ""
        return f"no discovery on this network ({problems[0]}): join nodes of other machines with --join HOST:PORT"

    async def stop(self) -> None:
        """Withdraws the announcement (peers see it at once) and ends; harmless when done twice."""
        zeroconf, self._zeroconf = self._zeroconf, None
        browser, self._browser = self._browser, None
        if browser is not None:  # first: who is seen meanwhile would be asked by sockets that are closed by then
            await browser.async_cancel()
        for task in self._resolving.values():
            task.cancel()
        await asyncio.gather(*self._resolving.values(), return_exceptions=True)
        self._resolving.clear()
        if zeroconf is None:
            return
        try:
            if self._info is not None and self._port:
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
    port = info.port
    ips = info.parsed_addresses(IPVersion.All)
    return Found(label, mesh.decode(), tuple(join_address(ip, port) for ip in likeliest_first(ips[:MAX_ADDRESSES])))


async def _listening(ips: Sequence[str]) -> AsyncZeroconf:
    """mDNS on the interfaces with these addresses. Where one family does not work, the other has to do."""
    four = [ip for ip in ips if ":" not in ip]
    six = [ip for ip in ips if ":" in ip and not ipaddress.ip_address(ip).is_loopback]
    problem: Exception = OSError("no interface is up")
    for some, version in ((four + six, IPVersion.All), (four, IPVersion.V4Only), (six, IPVersion.V6Only)):
        has = {":" in ip for ip in some}
        if has == {IPVersion.All: {False, True}, IPVersion.V4Only: {False}, IPVersion.V6Only: {True}}[version]:
            try:
                return AsyncZeroconf(interfaces=some, ip_version=version)
            except Exception as e:  # zeroconf raises what the sockets do, without a common base
                problem = e
    raise problem
