"""Hosts on a switch, made of network namespaces: real interfaces, multicast, links that break. Linux, as root.

A namespace lives as long as a process of ours holds it, so nothing is left behind, whatever happens to us.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SUBNET, SUBNET6 = "10.77.0", "fd77::"
CLONE_NEWNET = 0x40000000


def unavailable() -> str:
    """Why there can be no namespaces here; empty where there can be."""
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "x", "type", "veth"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else f"no network namespaces: {tried.stderr.decode(errors='replace').strip()}"


@dataclass(frozen=True)
class Host:
    """One namespace with an interface `eth0` on the switch; `pid` holds it. `ip` and `ip6` are its addresses."""

    index: int
    pid: int
    ip: str
    ip6: str

    def command(self, *argv: str) -> list[str]:
        """A command as it runs on this host."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def do(self, *argv: str) -> str:
        """Run a command on this host to its end."""
        return _run(self.command(*argv))

    def connect(self, port: int) -> socket.socket:
        """A connection to a port of this host's loopback, made from outside."""
        with _inside(self.pid):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.connect(("127.0.0.1", port))
        except BaseException:
            made.close()
            raise
        return made


class Lan:
    """`count` hosts on one switch, until `close`."""

    def __init__(self, count: int, *, ipv6: bool = True) -> None:
        self._holders: list[subprocess.Popen[bytes]] = []
        self._relays: list[_Relay] = []
        try:
            switch = self._hold()
            self._switch = ["nsenter", f"--net=/proc/{switch}/ns/net", "--"]
            for bridge in ("br0", "br1"):
                self._ip(f"link add {bridge} type bridge mcast_snooping 0")
                self._ip(f"link set {bridge} up")
            self.hosts = [self._plug(i, ipv6) for i in range(count)]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take everything down."""
        for relay in self._relays:
            relay.close()
        for holder in self._holders:
            holder.kill()
            holder.communicate()

    # ---- what can happen to a network ----

    def link(self, host: Host, *, up: bool) -> None:
        """Pull a host's cable, or plug it in again."""
        self._ip(f"link set v{host.index} {'up' if up else 'down'}")

    def split(self, away: Sequence[Host]) -> None:
        """Put some hosts on a switch of their own; none: all are together again."""
        for host in self.hosts:
            self._ip(f"link set v{host.index} master {'br1' if host in away else 'br0'}")

    def lose(self, percent: int) -> None:
        """Each host loses so many of the packets that come to it; 0 ends it. Needs nft."""
        for host in self.hosts:
            with contextlib.suppress(subprocess.CalledProcessError):
                host.do("nft", "delete", "table", "inet", "loss")
            if percent:
                rules = (
                    "add table inet loss; add chain inet loss in { type filter hook input priority 0; }; "
                    f'add rule inet loss in iifname "eth0" numgen random mod 100 < {percent} drop'
                )
                host.do("nft", rules)

    def limit(self, mbit: float) -> None:
        """Each host sends no faster than this, in Mbit/s; 0 ends it. Needs tc."""
        for host in self.hosts:
            with contextlib.suppress(subprocess.CalledProcessError):
                host.do(*"tc qdisc del dev eth0 root".split())
            if mbit:
                host.do(*f"tc qdisc add dev eth0 root tbf rate {mbit:g}mbit burst 16kb latency 400ms".split())

    def readdress(self, host: Host, ip: str) -> Host:
        """Another IPv4 address for a host, as after a new lease."""
        # In one go: a node that looks while there is no IPv4 address goes on with IPv6.
        addresses = f"addr del {host.ip}/24 dev eth0", f"addr add {ip}/24 dev eth0"
        lines = (*addresses, f"route replace default via {SUBNET}.254")
        host.do("sh", "-c", "printf '%s\\n' \"$@\" | ip -batch -", "ip", *lines)
        moved = Host(host.index, host.pid, ip, host.ip6)
        self.hosts[host.index] = moved
        return moved

    # ---- from outside ----

    def relay(self, host: Host, port: int) -> str:
        """An address of ours that leads to a port of a host's loopback, whatever its cable does."""
        relay = _Relay(host, port)
        self._relays.append(relay)
        return relay.address

    # ---- making it ----

    def _hold(self) -> int:
        # It ends with us even when we are killed: its standard input closes.
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        holder.stdout.readline()  # it is in its namespace now
        return holder.pid

    def _plug(self, i: int, ipv6: bool) -> Host:
        host = Host(i, self._hold(), f"{SUBNET}.{i + 1}", f"{SUBNET6}{i + 1}")
        self._ip(f"link add v{i} type veth peer name eth0 netns {host.pid}")
        self._ip(f"link set v{i} master br0 up")
        six = [f"addr add {host.ip6}/64 dev eth0 nodad"] if ipv6 else []
        off = "0" if ipv6 else "1"
        script = "; ".join(
            [
                "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad",
                f"echo {off} > /proc/sys/net/ipv6/conf/eth0/disable_ipv6",
                "ip link set lo up",
                "ip link set eth0 up",
                f"ip addr add {host.ip}/24 dev eth0",
                *(f"ip {line}" for line in six),
                f"ip route add default via {SUBNET}.254",
            ]
        )
        host.do("sh", "-c", script)
        return host

    def _ip(self, line: str) -> None:
        _run([*self._switch, "ip", *line.split()])


class _Relay:
    """Carries bytes between connections to an address of ours and a port on a host's loopback."""

    def __init__(self, host: Host, port: int) -> None:
        self._host, self._port = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            try:
                theirs = self._host.connect(self._port)
            except OSError:
                # As a refused connection is: with a reset.
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                ours.close()
                continue
            self._open |= {ours, theirs}
            for a, b in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                b.sendall(data)
        for each in (a, b):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            if b is each or each not in self._open:
                each.close()
            self._open.discard(each)


@contextlib.contextmanager
def _inside(pid: int) -> Iterator[None]:
    """This thread in another network namespace; sockets that it makes meanwhile stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(theirs, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        yield
        if libc.setns(ours, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(ours)
        os.close(theirs)


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
    return done.stdout.decode(errors="replace")
