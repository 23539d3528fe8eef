"""What `doctor` looks at: each check answers with a level, what was found, and what to do. None changes anything
(the speed of memory is kept, where nodes keep their data already, so that a plan says the same)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

import node
from node import home
from node.cli import render, surroundings
from node.cli.check import FAIL, GIB, OK, WARN, Check
from node.cli.machine import backend_on_gpu, hardware, planned
from node.cli.render import one_line
from node.config import DEFAULT_HTTP_PORT, DEFAULT_MESH_PORT, DEFAULT_PORT, Config, load
from node.errors import ConclaveError, InvalidRequest
from node.hardware.machine import Machine, detect

if TYPE_CHECKING:
    from node.v1 import mesh_pb2

MAX_NOTICES = 10
LOW_DISK, LEAST_DISK = 2 * GIB, GIB // 8
BACKEND_S = 60.0
# In a process of its own: a llama.cpp that was built for another processor ends with SIGILL, and not with an error.
_BACKEND = """
import json, os, sys
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
import llama_cpp
found = {"version": llama_cpp.__version__, "gpu": bool(llama_cpp.llama_supports_gpu_offload())}
if sys.argv[1:]:
    model = llama_cpp.Llama(sys.argv[1], n_ctx=64, n_batch=16, n_threads=1, verbose=False)
    model.eval(model.tokenize(b"one")[:8])
    found["tokens"] = model.n_tokens
print(json.dumps(found))
"""


def all_checks(environ: Mapping[str, str]) -> Iterator[Check]:
    """Every check, in the order in which a person would look."""
    here = home.home(environ)
    check, config = configuration(environ, here.config / "conclave.toml")
    yield check
    machine = detect()
    yield from hardware(machine)
    yield planned(machine, most=config.max_memory_bytes)
    yield from backend(config, machine)
    running = _running(here.runtime)
    yield port("port for clients", config.port, DEFAULT_PORT, ("127.0.0.1",), running)
    if config.http_port != 0:
        yield port("port for HTTP", config.http_port, DEFAULT_HTTP_PORT, (config.http_host,), running)
    yield port("port for peers", config.mesh_port, DEFAULT_MESH_PORT, config.interfaces or ("",), running)
    yield token(here.config / "token", config.token)
    yield from mdns(config.interfaces)
    yield from mesh(here.runtime)
    yield clock(time.time(), Path(node.__file__).stat().st_mtime)
    yield data(Path(config.data_dir) if config.data_dir else here.data)
    yield runtime(here.runtime)
    yield from surroundings.all_around(config, environ)


def configuration(environ: Mapping[str, str], file: Path) -> tuple[Check, Config]:
    """Whether environment and configuration file make sense together."""
    try:
        config = load({}, environ, file)
    except ConclaveError as e:
        return Check("configuration", FAIL, e.message, "correct it, or take it away"), Config()
    source = str(file) if file.exists() else f"no {file}, so the defaults hold"
    return Check("configuration", OK, source), config


def backend(config: Config, machine: Machine) -> Iterator[Check]:
    """Whether llama.cpp can be loaded, and a model with it."""
    answer, problem = _try_backend()
    if problem:
        again = "install it again: `make run` in a checkout, or `pip install --force-reinstall llama-cpp-python`"
        yield Check("backend", FAIL, f"llama_cpp does not work: {problem}", again)
        return
    yield Check("backend", OK, f"llama_cpp {answer.get('version')}{' with GPU' if answer.get('gpu') else ''}")
    yield from backend_on_gpu(machine, bool(answer.get("gpu")))
    model = Path(config.model).expanduser()
    if config.model.endswith(".gguf"):
        yield _gguf(model)
        return
    bundled = sorted((Path(node.__file__).parent / "models" / "bundled").glob("*.gguf"))
    if not bundled:
        yield Check("bundled model", WARN, "it is missing", "give a model: --model PATH.gguf")
        return
    _, problem = _try_backend(str(bundled[0]))
    if problem:
        yield Check("bundled model", FAIL, f"{bundled[0].name} does not load: {problem}", "install Conclave again")
    else:
        yield Check("bundled model", OK, f"{bundled[0].name} loads and computes")


def _try_backend(*arguments: str) -> tuple[dict[str, object], str]:
    """What llama.cpp says of itself, or what is wrong with it."""
    command = [sys.executable, "-c", _BACKEND, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=BACKEND_S, check=False)
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {BACKEND_S:g} s"
    except OSError as e:
        return {}, str(e)
    if done.returncode < 0:
        hint = ": it was built for another processor" if done.returncode == -4 else ""  # SIGILL
        return {}, f"ended by signal {-done.returncode}{hint}"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {}, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    try:
        answer = json.loads(lines[-1])
    except ValueError:
        return {}, "it gave no answer"
    return (answer, "") if isinstance(answer, dict) else ({}, "it gave no answer")


def _gguf(path: Path) -> Check:
    try:
        with path.open("rb") as f:
            magic = f.read(4)
    except OSError as e:
        return Check("model", FAIL, f"{path}: {e.strerror}", "give the path of a GGUF file with --model")
    if magic != b"GGUF":
        return Check("model", FAIL, f"{path} is not a GGUF file", "download it again, or convert it")
    return Check("model", OK, f"{path}, {path.stat().st_size / GIB:.1f} GiB")


def port(name: str, asked: int | None, default: int, hosts: tuple[str, ...], running: Mapping[int, str]) -> Check:
    """Whether a listener could be opened."""
    number = asked or default
    for host in hosts:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, number))
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                where = f"{host or 'all interfaces'}:{number}"
                return Check(name, FAIL, f"{where} cannot be used: {e.strerror}", "choose other values")
            if number in running:
                return Check(name, OK, f"{number} is used by the running node {running[number]}")
            if asked:
                return Check(name, FAIL, f"{number} was asked for and is taken", "end what uses it, or ask for another")
            return Check(name, WARN, f"{number} is taken by another program", "nothing: a node takes the next free one")
    return Check(name, OK, f"{number} is free")


def mesh(directory: Path) -> Iterator[Check]:
    """What the nodes that run here noticed of others: another mesh, a wrong clock, a port that is closed."""
    from node.mesh.local import running_nodes

    if not running_nodes(directory):
        return
    from node.cli import reach

    try:
        status = reach.status(None)
    except ConclaveError as e:
        yield Check("mesh", WARN, e.message, "look at what that node says, or start it again")
        return
    others, names = sum(n.state == "alive" for n in status.nodes) - 1, render.labels(status.nodes)
    yield Check("mesh", OK, f"{status.mesh_id}, with {others} other node{'' if others == 1 else 's'}")
    for problem in status.problems[:MAX_NOTICES]:
        advice = "free some space, or make its --data-dir writable; what waits is written then"
        yield Check("durability", WARN, render.called(one_line(problem, 400), names), advice)
    yield from speeds(status, names)
    for notice in status.notices[-MAX_NOTICES:]:
        found, _, advice = render.called(one_line(notice, 400), names).partition(": ")
        yield Check("mesh", WARN, found, advice)


def speeds(status: mesh_pb2.StatusResponse, names: Mapping[str, str]) -> Iterator[Check]:
    """What the running node measured of itself and of its links."""
    here = status.speeds
    if not here.prefill_tokens_per_s:
        return
    found = f"{status.nodes[0].decode_tokens_per_s:.0f} tokens/s written, {here.prefill_tokens_per_s:.0f} read"
    if here.restore_bytes_per_s:
        found += f", KV brought back at {here.restore_bytes_per_s / 1e6:.0f} MB/s: {_worth(here.worth_tokens)}"
    yield Check("speed", OK, found)
    for link in here.links[:MAX_NOTICES]:
        rate = f"{link.bytes_per_s / 1e6:.0f} MB/s"
        yield Check(
            f"link to {names.get(link.node, one_line(link.node, 16))}",
            OK,
            f"{rate} for KV: {_worth(link.worth_tokens)}",
        )


def _worth(count: int) -> str:
    """Whether bringing KV back beats computing it."""
    if count <= 1:
        return "that is quicker than computing it again" if count else "computing it again is quicker"
    return f"that is quicker than computing it again for topics of {render.count_of_tokens(count)} or more"


def _running(directory: Path) -> dict[int, str]:
    """The ports of this machine's nodes, and whose they are."""
    from node.mesh.local import running_nodes

    found, here = {}, running_nodes(directory)
    names = render.labels(here)
    for each in here:
        for address in (each.local_address, each.mesh_address, each.http_address):
            number = address.rpartition(":")[2]
            if number.isdigit():
                found[int(number)] = names[each.node_id]
    return found


def token(file: Path, override: str) -> Check:
    """Whether the mesh token is there, sound, and for this user only."""
    from node.mesh.identity import load_old_token, parse_token

    try:
        if override:
            parse_token(override, "the configuration")
            return Check("token", OK, "given by the environment or the configuration file")
        mode = file.stat().st_mode
        parse_token(file.read_text(errors="replace"), str(file))
    except FileNotFoundError:
        return Check("token", OK, "none yet: the first start makes one; or bring that of another machine with --token")
    except OSError as e:
        return Check("token", FAIL, f"{file}: {e.strerror}", "make it readable for you")
    except InvalidRequest as e:
        return Check("token", FAIL, e.message)
    if stat.S_IMODE(mode) & 0o077:
        return Check("token", WARN, f"{file} is readable for others", f"chmod 600 {file}")
    if (old := load_old_token(file.parent, time.time())) is not None:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(old.until))
        found = f"{file}, for you only; machines with the one before are taken until {until}"
        return Check("token", OK, f"{found}: start this machine's nodes again before the others get the new one")
    return Check("token", OK, f"{file}, for you only")


def mdns(interfaces: tuple[str, ...]) -> Iterator[Check]:
    """Whether nodes could find each other, on each interface."""
    from node.mesh.multicast import hears_itself

    found = [
        (name, ip) for name, ip in _interfaces() if (ip in interfaces if interfaces else not ip.startswith("127."))
    ]
    for missing in sorted(set(interfaces) - {ip for _, ip in found}):
        yield Check("mDNS", FAIL, f"no interface has the address {missing}", "correct --interface")
    if not found and not interfaces:
        only = "no interface but loopback is up: only nodes of this machine can be found"
        yield Check("mDNS", WARN, only, "connect to a network")
    for name, ip in found:
        problem = hears_itself(ip)
        if problem:
            advice = "allow UDP port 5353 (multicast) in the firewall, or name a peer: --join HOST:PORT"
            yield Check(f"mDNS on {name}", WARN, f"{ip}: {problem}", advice)
        else:
            yield Check(f"mDNS on {name}", OK, f"{ip} sends and receives")


def _interfaces() -> list[tuple[str, str]]:
    """Name and IPv4 address of what is up, but for the bridges of containers."""
    from node.mesh.interfaces import is_virtual

    try:
        up = {name for name, state in psutil.net_if_stats().items() if state.isup}
        addresses = psutil.net_if_addrs()
    except (OSError, psutil.Error):
        return []
    return [
        (name, str(a.address)) for name in sorted(addresses) if name in up and not is_virtual(name)
        for a in addresses[name] if a.family == socket.AF_INET
    ]  # fmt: skip


def clock(now: float, installed: float) -> Check:
    """Whether the clock can be right: certificates last a day, and machines must agree on which."""
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now < installed - 86400 or now > installed + 20 * 365 * 86400:
        return Check("clock", FAIL, f"{shown} cannot be right", "set the clock: peers would refuse our certificates")
    return Check("clock", OK, shown)


def data(directory: Path) -> Check:
    """Whether this node can keep its data, and has room for it."""
    existing = next((p for p in (directory, *directory.absolute().parents) if p.exists()), Path("/"))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            "data", FAIL, f"{existing} cannot be written", "correct its rights, or set CONCLAVE_HOME to another"
        )
    try:
        free = shutil.disk_usage(existing).free
    except OSError as e:
        return Check("data", FAIL, f"{existing}: {e.strerror}", "give another --data-dir")
    found = f"{directory}, {free / GIB:.1f} GiB free"
    if free < LEAST_DISK:
        return Check("data", FAIL, found, "free some space: conversations could not be kept")
    return Check("data", WARN, found, "free some space") if free < LOW_DISK else Check("data", OK, found)


def runtime(directory: Path) -> Check:
    """Whether the nodes of this machine can find each other, and commands find them."""
    from node.cli import reach
    from node.mesh.local import running_nodes, starting_nodes

    try:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return Check("running nodes", FAIL, f"{directory} belongs to another user or is a link", "remove it")
    except FileNotFoundError:
        return Check("running nodes", OK, "none")
    except OSError as e:
        return Check("running nodes", FAIL, f"{directory}: {e.strerror}", "correct its rights")
    here = running_nodes(directory)
    names = render.labels(here)
    nodes = [f"{names[n.node_id]} ({n.local_address})" for n in here]
    nodes += [reach.starts(n) for n in starting_nodes(directory)]
    return Check("running nodes", OK, ", ".join(nodes) or "none")
