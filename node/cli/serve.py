"""`serve`: run a node until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import math
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from node import __version__, config, home
from node.address import is_loopback, split_address
from node.cli import again, render
from node.cli.parser import misspelt
from node.cli.progress import Progress
from node.cli.wrap import fitted
from node.config import Config
from node.errors import ConclaveError
from node.logs import JsonLines
from node.types import NodeInfo

if TYPE_CHECKING:
    from node.app import Node, Summary

FAILED = 1
HURRIED = 130  # the exit code after a second ^C
STOP_S = 15.0
EVERY_S = 1.0
GONE_AFTER = 4  # looks; a suspected peer has about as many seconds to refute it


def run(options: Namespace) -> int:
    """Run a node; 0 after a clean stop. Raises ConclaveError if it cannot start."""
    flags = {f.name: getattr(options, f.name) for f in fields(Config)}
    chosen = config.load(flags, os.environ, home.home().config / "conclave.toml")
    # gRPC reads this when it is first imported, and has no other way to refuse TLS 1.2 (`node.mesh.identity`): the only
    # cipher that is left for it needs an RSA certificate, which no node has.
    os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")
    _log(verbose=bool(options.verbose), as_json=chosen.log == "json")
    if chosen.log != "json" and sys.stdout.isatty():
        print("starting …", end="\r", flush=True)  # what comes next is longer, and stands in its place
    with _ends_at_once():
        importlib.import_module("node.app")
    return asyncio.run(_serve(chosen, [*_kept(options.token), *misspelt(os.environ)]))


@contextlib.contextmanager
def _ends_at_once() -> Iterator[None]:
    """^C ends the process where it stands: native code that is being loaded lets no handler run, and nothing is begun
    that wants an end in order."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _kept(token: str | None) -> list[str]:
    """Notices about a token that was given by hand: whoever types it once does not want to type it again."""
    from node.mesh.identity import keep_token

    line = keep_token(home.home().config, token) if token else ""
    return [line] if line else []


async def _serve(chosen: Config, early: list[str]) -> int:
    gc.disable()  # modules are no garbage
    from node.app import Node

    gc.enable()
    stop = asyncio.Event()
    _on_signals(stop)
    before = again.losses(os.environ)
    node = Node(chosen, after_loss=before > 0)
    serving_since = math.inf
    node.on_notice = early.append
    say = _log_line if chosen.log == "json" else _say
    node.on_line = say
    progress = Progress(sys.stdout)
    if chosen.log != "json":
        node.on_progress = progress
    start = asyncio.create_task(node.start())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((start, stopped, node.failed), return_when=asyncio.FIRST_COMPLETED)
        progress.end()
        if start.done() and not node.failed.done():
            await start  # raises what went wrong
            node.on_notice = say
            serving_since = time.monotonic()
            summary = node.summary()
            # What is there now stays: full collections need not go through it, so they come sooner and are shorter.
            gc.collect()
            gc.freeze()
            (_log_banner if chosen.log == "json" else _banner)(summary, early)
            peers = asyncio.create_task(_follow(node, Peers(summary.peers), say))
            await asyncio.wait((stopped, node.failed), return_when=asyncio.FIRST_COMPLETED)
            peers.cancel()
        if not node.failed.done():
            say("stopping (^C again to stop at once)")
        start.cancel()
        await asyncio.wait((start,), timeout=STOP_S)
        return 0
    finally:
        gc.unfreeze()
        served = max(time.monotonic() - serving_since, 0.0)
        await _end(node)
        if node.failed.done():
            await _start_again(node.failed.result(), again.counted(before, served), stopped)
        stopped.cancel()


async def _start_again(error: ConclaveError, count: int, stopped: asyncio.Task[bool]) -> None:
    """A part of the model is gone: begin anew without it, unless that keeps happening or somebody wants the end. Does
    not return: native code waits for what is gone, and would abort() if it were let go in order."""
    what = f"error: {render.one_line(error.message, 300)}"
    if count > again.MOST:
        _complain(
            f"{what}; that was the {count}th loss in a row, so this node ends: see to the lenders, start it again"
        )
        os._exit(FAILED)
    pause = again.pause_s(count)
    after = f" in {pause:g} s" if pause else ""
    _complain(f"{what}; this node starts again{after}, with who lends memory then. Conversations are kept.")
    await asyncio.wait((stopped,), timeout=pause)
    if not stopped.done():
        try:
            again.start(count)
        except OSError as e:
            _complain(f"error: this node cannot be started again ({e.strerror or e}): start it yourself")
    os._exit(FAILED)


def _complain(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


class Peers:
    """What to say of peers that come and go. Pure: `seen` is told who is there, about once a second."""

    def __init__(self, peers: Iterable[NodeInfo]) -> None:
        self._known = {p.id: p for p in peers}
        self._missed: dict[str, int] = {}

    def seen(self, peers: Iterable[NodeInfo]) -> list[str]:
        """Lines for a person. A peer that is suspected for a moment is not said to be gone."""
        now = {p.id: p for p in peers}
        lines = [f"peer {_name(p)} joined ({p.model})" for p in now.values() if p.id not in self._known]
        self._known |= now
        self._missed = {i: self._missed.get(i, 0) + 1 for i in self._known if i not in now}
        for gone in [i for i, count in self._missed.items() if count >= GONE_AFTER]:
            lines.append(f"peer {_name(self._known.pop(gone))} is gone")
        return lines


def _name(peer: NodeInfo) -> str:
    return f"{peer.name} ({peer.id})" if peer.name else peer.id


async def _follow(node: Node, peers: Peers, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(EVERY_S)
        for line in peers.seen(node.peers):
            say(line)


async def _end(node: Node) -> None:
    """A clean stop, within bounds: a person who asked for the end gets it."""
    try:
        await asyncio.wait_for(node.stop(), STOP_S)
    except TimeoutError:
        if node.failed.done():  # what it holds goes with the process
            return
        _say(f"the node did not stop within {STOP_S:g} s and is ended")
        os._exit(FAILED)


def _on_signals(stop: asyncio.Event) -> None:
    """The first signal asks for a clean stop, the second ends the process where it stands."""

    def asked() -> None:
        if stop.is_set():
            os._exit(HURRIED)
        stop.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, asked)
    loop.add_signal_handler(signal.SIGTERM, asked)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it stays ignored
        loop.add_signal_handler(signal.SIGHUP, asked)


def _say(line: str) -> None:
    """A line during the run. A node goes on when nobody reads its output any more."""
    with contextlib.suppress(OSError, ValueError):
        print(fitted(render.one_line(line, 400), sys.stdout, 2), flush=True)


def _log_line(line: str) -> None:
    """The same where a program reads: in its log, so that standard output stays empty."""
    logging.getLogger("node").info("%s", render.one_line(line, 400))


def _log_banner(s: Summary, early: list[str]) -> None:
    """The banner as one line of the log, without the token."""
    facts = {
        "version": __version__,
        "model": s.model,
        "backend": s.backend,
        "sequences": s.sequences,
        "context": s.ctx,
        "clients": s.local_address,
        "http": s.http_address,
        "mesh_address": s.mesh_address,
        "mesh": s.mesh_id,
        "peers": [p.id for p in s.peers],
    }
    logging.getLogger("node").info("ready", extra=facts)
    for notice in dict.fromkeys((*s.notices, *early)):
        _log_line(notice)


def _banner(s: Summary, early: list[str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        _print_banner(s, early)


def _speed(s: Summary) -> str:
    if s.is_demo:  # a step of 0.2 ms measures what else the machine does
        return ""
    written = f"{s.decode_tokens_per_s:.0f} tokens/s written" if s.decode_tokens_per_s else ""
    return ", ".join(filter(None, (written, f"{s.prefill_tokens_per_s:.0f} read" if s.prefill_tokens_per_s else "")))


def _print_banner(s: Summary, early: list[str]) -> None:
    to = render.console(sys.stdout)
    model = s.model
    if s.is_demo:
        model += " (a small demonstration model; for real answers: --model PATH.gguf)"
    memory = f", {s.memory_mb} MB" if s.memory_mb else ""
    names = render.labels([*s.peers, NodeInfo(s.node_id, s.mesh_address, name=s.name)])
    peers = ", ".join(f"{names[p.id]} ({render.one_line(p.model, 32)})" for p in s.peers)
    to.print(f"Conclave {__version__}, node {render.one_line(s.name)} ({s.node_id})")
    render.facts(
        to,
        [
            ("  model", model),
            (
                "  fit",
                f"{s.sequences} sequences x {s.ctx} tokens{memory}, {s.backend}, {s.candidates} candidates a prompt",
            ),
            ("  speed", _speed(s)),
            ("  topics", s.topics),
            ("  clients", s.local_address),
            ("  http", f"http://{s.http_address}  (the page; OpenAI's API under /v1)" if s.http_address else ""),
            ("  mesh", f"{s.mesh_address}, mesh {s.mesh_id}"),
            ("  peers", peers or "none yet"),
            ("  spread", "; ".join(s.spread)),
            ("  lends", f"{s.lends_bytes / (1 << 30):.1f} GiB to nodes of this mesh (--pool)" if s.lends_bytes else ""),
        ],
    )
    for notice in dict.fromkeys((*s.notices, *early)):
        render.prose(to, f"  {render.one_line(notice, 400)}")
    alone = "No other machine can join: this node is on loopback only (no network, or --interface says so)."
    joins = "Another machine joins with six digits: run `python -m node pair` here, then there. Or run there:"
    is_alone = is_loopback((split_address(s.mesh_address) or ("", 0))[0])
    render.prose(to, alone if is_alone else joins)
    if not is_alone:
        # The token is the key to the mesh: a terminal may show it, a log file should not keep it.
        hidden = re.sub(r"--token \S+", "--token TOKEN   (`python -m node token show` prints it)", s.join_line)
        to.print(f"  {s.join_line if sys.stdout.isatty() else hidden}")
    to.print('Ask it something: python -m node ask "…"   (^C stops the node)')
    sys.stdout.flush()


class _OneLine(logging.Formatter):
    """A log record as one line without its traceback: for a person, not for whoever looks for a bug."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        return f"{record.levelname.lower()}: {render.one_line(message, 400)}"


def _log(*, verbose: bool, as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    level = logging.INFO if verbose or as_json else logging.ERROR
    if as_json:
        handler.setFormatter(JsonLines())
    elif verbose:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    else:
        handler.setFormatter(_OneLine())  # what a person should know of comes as a notice, not as a warning
    if verbose:
        logging.getLogger("node").setLevel(logging.DEBUG)
    logging.basicConfig(level=level, handlers=[handler], force=True)
