"""The only place where objects are made, and the order in which they start and stop.

Start: data directory (locked), identity, model file, ports, model, the listener for peers, the mesh, the listener for
clients. Stop, the other way round: say NOT_SERVING, drain clients, leave the mesh, stop, free the model, unlock. What
fails at start undoes what was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health

from node import __version__, backends, download, logs, tracing, wire
from node.address import join_address
from node.api import http, rpc
from node.api.http.here import Here
from node.api.kvsync import KVSyncServicer
from node.api.models import ModelsServicer
from node.api.pool import PoolServicer
from node.api.seam import Seam
from node.config import DEFAULT_HTTP_PORT, DEFAULT_MESH_PORT, DEFAULT_PORT, Config
from node.coordinator import Coordinator
from node.core import meaning
from node.core.block import Codec
from node.core.members import Change
from node.core.placement import default_candidates
from node.core.plan import SLOTS
from node.engine.engine import Engine
from node.engine.face import EngineFace
from node.engine.shelf import Shelf
from node.errors import ConclaveError, InvalidRequest, NotReady
from node.home import DataDir, home
from node.mesh.identity import Identity, load_node_id, load_old_token, load_token
from node.mesh.interfaces import announced
from node.mesh.mesh import Mesh
from node.models.shared import Shared
from node.pool.borrower import Borrower
from node.pool.lender import Lender
from node.replicator import Options, Replicator
from node.store import Blocks, Standings, Store
from node.types import EarlyStop, NodeInfo, NodeState, SamplingParams, Strategy
from node.v1 import (
    generate_pb2_grpc,
    kvsync_pb2_grpc,
    mesh_pb2_grpc,
    models_pb2_grpc,
    pool_pb2_grpc,
    vote_pb2_grpc,
)

log = logging.getLogger(__name__)

_PORT_TRIES = 64
_PORT_STEP = 10  # a second node on the machine takes 7430 and 7431, and so on
_GRACE_S = 2.0
_FIRST_PEER_S = 1.5  # how long the banner waits for a peer that is already there


@dataclass(frozen=True, slots=True)
class Summary:
    """What the banner says. `topics` is what the measured speeds mean for them, `memory_mb` what the process uses now;
    `join_line` holds the mesh's token."""

    node_id: str
    name: str
    model: str
    is_demo: bool
    backend: str
    fingerprint: str
    sequences: int
    ctx: int
    candidates: int
    memory_mb: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    topics: str
    local_address: str
    mesh_address: str
    mesh_id: str
    peers: tuple[NodeInfo, ...]
    join_line: str
    http_address: str
    notices: tuple[str, ...]
    spread: tuple[str, ...]
    lends_bytes: int


class Node:
    """A node of the mesh. `start` raises ConclaveError with one line for a person; `stop` may always be called.

    `on_notice` hears of what a person should know, `on_line` at once of what a long start is about. `failed` is set to
    why the node cannot go on, if that happens.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.on_notice: Callable[[str], None] = lambda _: None
        self.on_line: Callable[[str], None] = lambda _: None
        # What is being fetched or loaded, and how much of it is (0..1); from any thread.
        self.on_progress: Callable[[str, float], None] = lambda what, share: None
        self.failed: asyncio.Future[ConclaveError] = asyncio.get_running_loop().create_future()
        self._borrower: Borrower | None = None
        self._undo = contextlib.AsyncExitStack()
        self._started = False
        self._stopped = False

    async def start(self) -> None:
        """Bring everything up, in order."""
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise
        self._started = True

    async def stop(self) -> None:
        """Leave the mesh, finish what runs within the grace, free everything. Twice is fine."""
        if self._started and not self._stopped:
            self._stopped = True
            await rpc.set_serving(self._local_health, is_mesh=False, serving=False)
            await rpc.set_serving(self._mesh_health, is_mesh=True, serving=False)
            await self._undo.aclose()

    @property
    def peers(self) -> tuple[NodeInfo, ...]:
        """The other nodes of the mesh that are alive, as of now."""
        return tuple(p.info for p in self._mesh.peers())

    def summary(self) -> Summary:
        """What the banner says, as of now."""
        info, engine = self._engine.info, self._engine
        peers = self.peers
        same = sum(p.fingerprint == info.fingerprint for p in peers)
        guests = len(peers) - same if self._config.ensemble == "auto" else 0
        return Summary(
            node_id=self._identity.node_id,
            name=self._name,
            model=info.name,
            is_demo=info.is_demo,
            backend=info.backend,
            fingerprint=info.fingerprint,
            sequences=info.sequences,
            ctx=info.context,
            candidates=self._config.candidates or default_candidates(1 + same, guests),
            memory_mb=psutil.Process().memory_info().rss >> 20,
            decode_tokens_per_s=engine.decode_tokens_per_s,
            prefill_tokens_per_s=1 / engine.speeds.prefill_s if engine.speeds.is_measured else 0.0,
            topics=meaning.topics(
                engine.speeds, engine.kv_bytes, self._config.kv_memory << 20, self._config.kv_disk << 20, info.context
            ),
            local_address=self._local_address,
            mesh_address=self._mesh_address,
            mesh_id=self._identity.mesh_id,
            peers=peers,
            join_line=f"python -m node --join {self._mesh_address} --token {self._token}",
            http_address=self._http_address,
            notices=tuple(self._mesh.notices),
            spread=tuple(str(share) for share in self._borrower.shares) if self._borrower else (),
            lends_bytes=self._lender.bytes,
        )

    # ---- start ------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        config, places = self._config, home()
        data = DataDir(places, _directory(config.data_dir))
        self._undo.callback(data.release)
        self._token = load_token(places.config, config.token)
        old = None if config.token else load_old_token(places.config, time.time())
        self._identity = Identity(self._token, load_node_id(data.path), old=old)
        logs.always(node=self._identity.node_id)
        self._undo.push_async_callback(asyncio.to_thread, tracing.close)
        if problem := tracing.set_up(os.environ, self._identity.node_id, __version__):
            self.on_notice(problem)
        self._name = config.name or platform.node() or self._identity.node_id
        self._bind()
        await self._start_http()
        self._engine = await self._make_engine(data.path)
        self._undo.push_async_callback(self._engine.close)
        await self._engine.start()
        self._lender = await self._make_lender()
        self._store = await _store(data.path, self._identity.node_id)
        self._undo.callback(self._store.close)
        self._mesh = Mesh(
            self._identity,
            self._describe,
            runtime=places.runtime,
            interfaces=config.interfaces,
            notice=lambda line: self.on_notice(line),
            moved=self._move,
            http_address=self._http_address,
        )
        self._replicator = await self._replication(data.path)
        self._undo.push_async_callback(self._replicator.stop)
        self._mesh.on_change(self._replicator.on_change)
        self._mesh.on_change(self._on_change)
        self._coordinator = Coordinator(
            self._identity.node_id,
            self._engine,
            self._mesh,
            self._store,
            strict_quorum=config.quorum == "strict",
            early_stop=EarlyStop(config.early_stop),
            replicator=self._replicator,
            standings=await asyncio.to_thread(Standings, data.path / "standings.json"),
            ensemble=config.ensemble == "auto",
        )
        self._undo.push_async_callback(self._coordinator.stop)
        self._add_services()
        self._mesh_health = await self._open(self._mesh_server, is_mesh=True)
        await self._mesh.start(config.join)
        self._undo.push_async_callback(self._mesh.stop)
        await self._replicator.start()
        await self._wait_for_a_peer()
        # Clients last, so that whoever waits for this node finds it complete; and at the stop they are drained first.
        self._open_http()
        self._local_health = await self._open(self._local_server, is_mesh=False)

    async def _start_http(self) -> None:
        """Whoever asks while the model loads is told when to try again."""
        self._gateway: http.Gateway | None = None
        if self._http_listener is not None:
            files = (self._config.http_cert, self._config.http_key)
            self._gateway = http.Gateway(self._http_listener, self._config.api_keys, files)
            self._undo.push_async_callback(self._gateway.stop)
            await self._gateway.start()

    def _open_http(self) -> None:
        config = self._config
        if self._gateway is None:
            return
        defaults = wire.Defaults(config.candidates, Strategy(config.strategy), SamplingParams())
        here = Here(
            self._identity.node_id,
            self._coordinator,
            self._engine,
            self._mesh,
            self._store,
            defaults,
            __version__,
            travels=self._replicator.travels,
            links=self._replicator.links,
        )
        self._gateway.open(here)
        self._undo.push_async_callback(self._gateway.stop)

    def _bind_http(self) -> None:
        config, host = self._config, self._config.http_host
        self._http_listener: socket.socket | None = None
        self._http_address = ""
        if config.http_port == 0:
            return
        if config.http_key and not config.http_cert:
            raise InvalidRequest("--http-key is the key of a certificate: give that with --http-cert")

        def add(port: int) -> int:
            self._http_listener = http.bind(host, port)
            self._undo.callback(self._http_listener.close)
            return port

        port = _listen("--http-port", config.http_port, DEFAULT_HTTP_PORT, add)
        self._http_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _make_shelf(self, directory: Path) -> Shelf | None:
        """The folder for KV that memory has no room for. Without one that can be written, the node goes on."""
        if not self._config.kv_disk or not self._config.kv_memory:
            return None
        try:
            shelf = Shelf(directory / "parked", self._config.kv_disk << 20)
        except OSError as e:
            self.on_notice(f"idle topics cannot be kept on disk: {e}")
            return None
        self._undo.callback(shelf.close)
        return shelf

    async def _replication(self, directory: Path) -> Replicator:
        config = self._config
        try:
            blocks = await asyncio.to_thread(Blocks, directory / "kv", config.disk_budget << 20)
        except (OSError, InvalidRequest) as e:
            self.on_notice(f"KV is not kept over restarts, nor for other nodes: {e}")
            blocks = Blocks(directory, 0)
        options = Options(
            replicas=config.replica_count,
            waits_for_peer=config.durability == "peer",
            mbps=config.sync_mbps,
            codec=None if config.sync_codec == "auto" else Codec(config.sync_codec),
            secret=self._identity.kv_secret,
        )
        return Replicator(self._identity.node_id, self._engine, self._mesh, self._store, blocks, options)

    async def _make_engine(self, directory: Path) -> EngineFace:
        """The local engine, or the connection to a server. `directory` is this node's own."""
        config = self._config
        if config.backend == "openai" or (config.url and config.backend == "auto"):
            from node.engine import remote

            options = remote.options(config.url, config.model, config.slots or SLOTS, config.ctx, config.queue)
            return remote.RemoteEngine(options, node=self._identity.node_id)
        if config.borrow != "no" and config.backend in ("auto", "llama"):
            self._borrower = self._make_borrower()
            self._undo.push_async_callback(self._borrower.close)
        return Engine(
            await backends.make(
                config,
                directory,
                lambda line: self.on_notice(line),
                self.on_progress,
                self._from_peers,
                self._borrower,
            ),
            node=self._identity.node_id,
            queue_limit=config.queue,
            memory=config.kv_memory << 20,
            shelf=self._make_shelf(directory),
            drafts=config.draft,
        )

    async def _from_peers(self, name: str) -> Path | None:
        """A model that is not on this machine, from a node that has it; None if none has."""
        config, places = self._config, home()
        if config.join == "none":
            return None
        return await download.pull(
            name,
            self._identity,
            places.data,
            download.Arrived(
                tell=lambda a: self.on_progress(f"fetching {name}", a.share), say=lambda line: self.on_notice(line)
            ),
            runtime=places.runtime,
            interfaces=config.interfaces,
            join=config.join,
        )

    def _make_borrower(self) -> Borrower:
        config = self._config
        return Borrower(
            self._identity,
            backends.llama_version(),
            join=config.join,
            runtime=home().runtime,
            interfaces=config.interfaces,
            tell=lambda line: self.on_line(line),
            lost=self._on_lost,
        )

    def _on_lost(self, error: ConclaveError) -> None:
        """A part of the model is gone, and llama.cpp waits for it."""
        if isinstance(self._engine, Engine):
            self._engine.abandon(error)
        if not self.failed.done():
            self.failed.set_result(error)

    async def _make_lender(self) -> Lender:
        if not self._config.pool:
            return Lender(0, 0, "")
        most, threads, free = await asyncio.to_thread(backends.lendable, self._config, self.on_notice)
        return Lender(most, threads, backends.llama_version(), free)

    def _on_change(self, change: Change) -> None:
        if change.info.state in (NodeState.ALIVE, NodeState.DEAD):
            self._lender.heard(change.info.id, alive=change.info.state is NodeState.ALIVE)

    def _bind(self) -> None:
        """Take both ports before the model is loaded, so that a taken one is said at once."""
        self._local_server = grpc.aio.server(interceptors=[Seam()], options=wire.SERVER_OPTIONS)
        self._mesh_server = grpc.aio.server(interceptors=[Seam()], options=wire.SERVER_OPTIONS)
        port = _listen(
            "--port", self._config.port, DEFAULT_PORT, lambda p: self._local_server.add_insecure_port(f"127.0.0.1:{p}")
        )
        families = (socket.AF_INET, socket.AF_INET6)
        adapters = psutil.net_if_addrs().values()
        own = {a.address.split("%")[0] for addresses in adapters for a in addresses if a.family in families}
        for interface in self._config.interfaces:
            if interface not in own:
                raise InvalidRequest(
                    f"--interface {interface} is no address of this machine: it has {', '.join(sorted(own))}"
                )
        hosts = [f"[{i}]" if ":" in i else i for i in self._config.interfaces] or ["[::]"]

        def add(p: int) -> int:
            # Credentials serve one attempt: gRPC takes their first certificate away even where the port is taken.
            return min(
                self._mesh_server.add_secure_port(f"{host}:{p}", self._identity.server_credentials()) for host in hosts
            )

        mesh_port = _listen("--mesh-port", self._config.mesh_port, DEFAULT_MESH_PORT, add)
        self._bind_http()
        self._local_address = f"127.0.0.1:{port}"
        self._mesh_address = join_address(announced(self._config.interfaces)[0], mesh_port)

    def _move(self, address: str) -> None:
        self._mesh_address = address

    def _add_services(self) -> None:
        config, engine = self._config, self._engine
        params = SamplingParams()
        defaults = wire.Defaults(config.candidates, Strategy(config.strategy), params)
        generate = rpc.GenerateServicer(self._coordinator, engine, defaults)
        for server, is_mesh in ((self._local_server, False), (self._mesh_server, True)):
            generate_pb2_grpc.add_GenerateServicer_to_server(generate, server)
            mesh = rpc.MeshServicer(
                self._mesh,
                engine,
                self._store,
                __version__,
                is_mesh=is_mesh,
                standings=self._coordinator.standings,
                travels=self._replicator.travels,
                links=self._replicator.links,
            )
            mesh_pb2_grpc.add_MeshServicer_to_server(mesh, server)
            sync = KVSyncServicer(self._replicator, is_mesh=is_mesh, won=self._coordinator.won)
            kvsync_pb2_grpc.add_KVSyncServicer_to_server(sync, server)
        vote_pb2_grpc.add_VoteServicer_to_server(rpc.VoteServicer(self._coordinator), self._mesh_server)
        shared = Shared(os.environ, home().data)
        self._undo.callback(shared.close)
        models_pb2_grpc.add_ModelsServicer_to_server(ModelsServicer(shared), self._mesh_server)
        pool_pb2_grpc.add_PoolServicer_to_server(PoolServicer(self._lender), self._mesh_server)

    async def _open(self, server: grpc.aio.Server, *, is_mesh: bool) -> health.aio.HealthServicer:
        servicer = rpc.serve_health_and_reflection(server, is_mesh=is_mesh)
        await rpc.set_serving(servicer, is_mesh=is_mesh, serving=True)
        await server.start()
        self._undo.push_async_callback(server.stop, _GRACE_S)
        return servicer

    async def _wait_for_a_peer(self) -> None:
        """A banner that shows the peers that are already there is worth a moment; with nobody there it is short."""
        if self._config.join == "none":
            return
        met = asyncio.Event()
        self._mesh.on_change(lambda _: met.set())
        if not self._mesh.peers():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_PEER_S):
                    await met.wait()

    def _describe(self) -> NodeInfo:
        info, free = self._engine.info, self._engine.free_sequences
        return NodeInfo(
            id=self._identity.node_id,
            address=self._mesh_address,
            name=self._name,
            model=info.name,
            fingerprint=info.fingerprint,
            backend=info.backend,
            state=NodeState.DRAINING if self._stopped else NodeState.ALIVE,
            load=1.0 - free / info.sequences,
            sequences=info.sequences,
            free_sequences=free,
            decode_tokens_per_s=self._engine.decode_tokens_per_s,
            version=__version__,
            local_address=self._local_address,
            lends_bytes=self._lender.bytes,
            lent_to=self._lender.lent_to,
            borrows_from=tuple(s.node for s in self._borrower.shares if s.node) if self._borrower else (),
        )


async def _store(directory: Path, node: str) -> Store:
    """The topics of this node's data directory. Raises NotReady if they cannot be read."""
    try:
        store = await asyncio.to_thread(Store, directory / "topics", node=node)
        await asyncio.to_thread(store.load)
    except OSError as e:
        raise NotReady(
            f"the conversations in {directory} cannot be read: {e.strerror or e}; give another --data-dir"
        ) from None
    return store


def _directory(text: str) -> Path | None:
    try:
        return Path(text).expanduser().absolute() if text else None
    except RuntimeError:
        raise InvalidRequest(f"--data-dir {text!r}: there is no such user's home directory") from None


def _refusal(port: int) -> str:
    """Why a port was not given; gRPC does not say."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except PermissionError:
        return "may not be used by this user"
    except OSError:
        return "is taken by another program"
    return "cannot be used"


def _listen(flag: str, asked: int | None, default: int, add: Callable[[int], int]) -> int:
    """Bind a port: the one that was asked for, or the default or the next free one. Raises NotReady."""
    if asked is not None:
        try:
            return add(asked)
        except (RuntimeError, OSError):
            raise NotReady(f"{flag} {asked} {_refusal(asked)}: choose another, or leave {flag} out") from None
    for attempt in range(_PORT_TRIES):
        with contextlib.suppress(RuntimeError, OSError):
            return add(default + attempt * _PORT_STEP)
    raise NotReady(f"no free port from {default} on in steps of {_PORT_STEP}: choose one with {flag}")
