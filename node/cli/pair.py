"""`pair`: one machine shows six digits, the other types them, and has the mesh's token from then on."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from node import home
from node.address import is_loopback, join_address, split_address
from node.cli import render
from node.errors import ConclaveError, InvalidRequest, NotFound, PeerUnavailable
from node.mesh import identity, pairing, unshared
from node.mesh.interfaces import announced, likeliest_first

SERVICE = "_conclave-pair._tcp.local."
LOOK_S = 5.0
RESOLVE_MS = 2000
MAX_FOUND = 8


def run(options: Namespace) -> int:
    """Show a code, or type one. Raises ConclaveError."""
    if not options.code:
        return asyncio.run(_show())
    code = pairing.digits(" ".join(options.code))
    if not code:
        raise InvalidRequest(
            f"a code has {pairing.DIGITS} digits: type what `python -m node pair` shows on the other machine"
        )
    return asyncio.run(_type(code, options.at, sure=bool(options.yes)))


async def _show() -> int:
    token = identity.load_token(home.home().config)
    code = pairing.new_code()
    shown = pairing.Shown(code, token, render.note)
    port = await shown.listen()
    async with _announced(port):
        print(f"{code[:3]} {code[3:]}")
        sys.stdout.flush()
        at = join_address(announced()[0], port)
        render.note(f"Type it on the other machine: `python -m node pair {code[:3]} {code[3:]}`")
        if is_loopback((split_address(at) or ("", 0))[0]):
            render.note(f"No other machine can reach this one, which has no network but loopback. Here: --at {at}")
        else:
            render.note(f"If that does not find this machine: `python -m node pair {code[:3]} {code[3:]} --at {at}`")
        await shown.wait()
    unshared.met(home.home().config, token)
    render.note("paired: the other machine has this mesh's token now")
    return 0


async def _type(code: str, at: Sequence[str] | None, *, sure: bool) -> int:
    directory = home.home().config
    file = directory / "token"
    has_one, is_unshared = file.exists(), unshared.is_unshared(directory)
    if has_one and not is_unshared and not sure and not _may_replace():
        raise InvalidRequest(
            "this machine has a token already, which other machines may share: --yes puts the other machine's in its "
            "place, and this one leaves their mesh (its conversations stay)"
        )
    where = [split_address(a) or ("", 0) for a in at] if at else await _found()
    problem: ConclaveError | None = None
    for host, port in where:
        try:
            token = await pairing.type_code(host, port, code)
        except PeerUnavailable as e:
            problem = e  # of several addresses of one machine some may not lead there
            continue
        identity.store_token(directory, token)
        mesh = identity.Identity(token, "a234567bcd").mesh_id
        print(f"paired: this machine is of mesh {mesh} now")
        if is_unshared:
            render.note("Its own token, which no other machine had, is gone; its conversations stay.")
        render.note(
            "Start its node: `python -m node --join auto` (one that runs keeps its old token until it is started again)"
        )
        return 0
    assert problem is not None
    raise problem


def _may_replace() -> bool:
    if not sys.stdin.isatty():
        return False
    print(
        "This machine has a token already, which other machines may share; with another one it leaves their mesh.",
        file=sys.stderr,
    )
    print("Its conversations stay. Put the other machine's in its place? [y/N] ", end="", file=sys.stderr)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextlib.asynccontextmanager
async def _announced(port: int) -> AsyncIterator[None]:
    """Says by mDNS that a code is shown here. Without multicast the other machine needs the address."""
    zeroconf: AsyncZeroconf | None = None
    try:
        zeroconf = AsyncZeroconf(ip_version=IPVersion.V4Only)
        label = f"{secrets.token_hex(5)}.{SERVICE}"
        ips = [ipaddress.ip_address(ip).packed for ip in announced()]
        info = AsyncServiceInfo(SERVICE, label, port=port, server=f"{secrets.token_hex(5)}.local.", addresses=ips)
        await zeroconf.async_register_service(info, cooperating_responders=True)
    except Exception as e:  # zeroconf raises what the sockets do, without a common base
        render.note(
            f"this machine cannot be found by itself here ({e or type(e).__name__}): give --at to the other one"
        )
    try:
        yield
    finally:
        if zeroconf is not None:
            await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()


async def _found() -> list[tuple[str, int]]:
    """Addresses of the machine that shows a code. Raises NotFound; InvalidRequest if there are several machines."""
    names: set[str] = set()
    seen = asyncio.Event()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Added and len(names) < MAX_FOUND:
            names.add(name)
            seen.set()

    try:
        zeroconf = AsyncZeroconf(ip_version=IPVersion.V4Only)
    except OSError as e:
        raise NotFound(f"this network cannot be searched ({e}): give the other machine's address with --at") from None
    try:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[changed])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await seen.wait()
                await asyncio.sleep(0.5)  # there may be a second one
        await browser.async_cancel()
        if len(names) > 1:
            raise InvalidRequest("several machines show a code here: say which one with --at HOST:PORT, as it shows")
        for name in names:
            info = AsyncServiceInfo(SERVICE, name)
            if await info.async_request(zeroconf.zeroconf, RESOLVE_MS) and info.port:
                port = info.port
                return [(ip, port) for ip in likeliest_first(info.parsed_addresses(IPVersion.V4Only)[:MAX_FOUND])]
    finally:
        await zeroconf.async_close()
    raise NotFound(
        "no machine on this network shows a code: run `python -m node pair` there, or give its address with --at"
    )
