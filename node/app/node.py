"""A node, put together: `_start` is the order in which its parts come up.

Start: data directory (locked), identity, ports, model, the listener for peers, the mesh, the listener for clients.
Stop, the other way round: say NOT_SERVING, drain clients, leave the mesh, stop, free the model, unlock. What fails at
start undoes what was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health

from node import __version__, logs, tracing
from node.api import http, rpc
from node.api.http.here import Here
from node.app import disk, model, ports, services
from node.app.summary import Summary
from node.config import Config
from node.coordinator import Coordinator
from node.core import meaning
from node.core.block import Codec
from node.core.members import Change
from node.core.placement import default_candidates
from node.engine.engine import Engine
from node.engine.face import EngineFace
from node.errors import ConclaveError
from node.home import DataDir, home
from node.mesh import unshared
from node.mesh.identity import Identity, load_node_id, load_old_token, load_token
from node.mesh.local import Presence, RunningNode, network, running_nodes
from node.mesh.mesh import Mesh
from node.models import resolve
from node.models.shared import Shared
from node.pool.borrower import Borrower
from node.replicator import Options, Replicator
from node.store import Standings
from node.types import EarlyStop, NodeInfo, NodeState

_GRACE_S = 2.0
_FIRST_PEER_S = 1.5  # how long the banner waits for a peer that is already there


class Node:
    """A node of the mesh. `start` raises ConclaveError with one line for a person; `stop` may always be called.

    `on_notice` hears of what a person should know, `on_line` at once of what a long start is about. `failed` is set to
    why the node cannot go on, if that happens: a lender is gone. `after_loss` says that this happened to the process
    before, so that this one does what it can without it.
    """

    def __init__(self, config: Config, *, after_loss: bool = False) -> None:
        self._config = config
        self._after_loss = after_loss
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
            if self.failed.done():
                # Clients go on at another node when their connection ends, and not when they are told of an error.
                await self._ports.local.stop(None)
                self._abandon(self.failed.result())
            await rpc.set_serving(self._local_health, is_mesh=False, serving=False)
            await rpc.set_serving(self._mesh_health, is_mesh=True, serving=False)
            await self._undo.aclose()

    @property
    def peers(self) -> tuple[NodeInfo, ...]:
        """The other nodes of the mesh that are alive, as of now."""
        return tuple(p.info for p in self._mesh.peers())

    def summary(self) -> Summary:
        """What the banner says, as of now."""
        config, info, engine, peers = self._config, self._engine.info, self._engine, self.peers
        same = sum(p.fingerprint == info.fingerprint for p in peers)
        guests = len(peers) - same if config.ensemble == "auto" else 0
        kv_memory, kv_disk = config.kv_memory << 20, config.kv_disk << 20
        return Summary(
            node_id=self._identity.node_id,
            name=self._name,
            model=info.name,
            is_demo=info.is_demo,
            backend=info.backend,
            fingerprint=info.fingerprint,
            sequences=info.sequences,
            ctx=info.context,
            candidates=config.candidates or default_candidates(1 + same, guests),
            memory_mb=psutil.Process().memory_info().rss >> 20,
            decode_tokens_per_s=engine.decode_tokens_per_s,
            prefill_tokens_per_s=1 / engine.speeds.prefill_s if engine.speeds.is_measured else 0.0,
            topics=meaning.topics(engine.speeds, engine.kv_bytes, kv_memory, kv_disk, info.context),
            local_address=self._ports.local_address,
            mesh_address=self._mesh_address,
            mesh_id=self._identity.mesh_id,
            peers=peers,
            join_line=f"python -m node --join {self._mesh_address} --token {self._token}",
            http_address=self._ports.http_address,
            notices=tuple(self._mesh.notices),
            spread=tuple(str(share) for share in self._borrower.shares) if self._borrower else (),
            lends_bytes=self._lender.bytes,
        )

    # ---- start ------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        data = DataDir(home(), disk.directory(self._config.data_dir))
        self._undo.callback(data.release)
        self._introduce(data.path)
        started = self._show_start()
        self._take_ports()
        gateway = await self._open_gateway()
        self._engine = await self._make_engine(data.path)
        self._undo.push_async_callback(self._engine.close)
        await self._engine.start()
        self._lender = await model.lender(self._config, self.on_notice)
        await self._make_parts(data.path)
        self._add_services()
        self._mesh_health = await self._open(self._ports.mesh, is_mesh=True)
        self._undo.push_async_callback(self._lender.close)
        await self._mesh.start(self._config.join)
        self._undo.push_async_callback(self._mesh.stop)
        started()  # the mesh has said that it runs
        await self._replicator.start()
        await self._wait_for_a_peer()
        # Clients last, so that whoever waits for this node finds it complete; and at the stop they are drained first.
        self._serve_http(gateway)
        self._local_health = await self._open(self._ports.local, is_mesh=False)

    def _introduce(self, directory: Path) -> None:
        """Who this node is, to other nodes and in its logs and traces."""
        config, places = self._config, home()
        self._token = load_token(places.config, config.token)
        old = None if config.token else load_old_token(places.config, time.time())
        self._identity = Identity(self._token, load_node_id(directory), old=old)
        self._name = config.name or platform.node() or self._identity.node_id
        logs.always(node=self._identity.node_id)
        self._undo.push_async_callback(asyncio.to_thread, tracing.close)
        if problem := tracing.set_up(os.environ, self._identity.node_id, __version__):
            self.on_notice(problem)

    def _show_start(self) -> Callable[[], None]:
        """Commands on this machine see a node that loads its model, which may take a minute, and not none. Returns what
        ends that."""
        id, mesh = self._identity.node_id, self._identity.mesh_id
        node = RunningNode(id, os.getpid(), mesh, "", "", time.time(), "", network(), self._name, is_starting=True)
        with contextlib.suppress(OSError, ConclaveError):  # the mesh says so when it cannot write there
            presence = Presence(home().runtime)
            presence.publish(node)
            self._undo.callback(presence.withdraw)
            return presence.withdraw
        return lambda: None

    def _take_ports(self) -> None:
        self._ports = ports.take(self._config, self._identity)
        self._mesh_address = self._ports.mesh_address
        if self._ports.http is not None:
            self._undo.callback(self._ports.http.close)

    async def _open_gateway(self) -> http.Gateway | None:
        """Whoever asks while the model loads is told when to try again."""
        config = self._config
        if self._ports.http is None:
            return None
        gateway = http.Gateway(self._ports.http, config.api_keys, (config.http_cert, config.http_key))
        self._undo.push_async_callback(gateway.stop)
        await gateway.start()
        return gateway

    async def _make_engine(self, directory: Path) -> EngineFace:
        config, identity = self._config, self._identity
        if model.is_elsewhere(config):
            return model.elsewhere(config, identity.node_id)
        self._borrower = model.borrower(config, identity, lambda line: self.on_line(line), self._on_lost)
        if self._borrower is not None:
            self._undo.push_async_callback(self._borrower.close)
        shelf = disk.shelf(directory, config, self.on_notice)
        if shelf is not None:
            self._undo.callback(shelf.close)
        return await model.here(
            config,
            directory,
            identity,
            self._borrower,
            shelf,
            self._notice,
            self.on_progress,
            after_loss=self._after_loss,
        )

    async def _make_parts(self, directory: Path) -> None:
        """What votes, what remembers, and what knows the other nodes."""
        config, id = self._config, self._identity.node_id
        self._store = await disk.topics(directory, id)
        self._undo.callback(self._store.close)
        self._mesh = Mesh(
            self._identity,
            self._describe,
            runtime=home().runtime,
            interfaces=config.interfaces,
            notice=self._notice,
            moved=self._move,
            http_address=self._ports.http_address,
        )
        options = Options(
            replicas=config.replica_count,
            waits_for_peer=config.durability == "peer",
            mbps=config.sync_mbps,
            codec=None if config.sync_codec == "auto" else Codec(config.sync_codec),
            secret=self._identity.kv_secret,
        )
        blocks = await disk.blocks(directory, config, self.on_notice)
        self._replicator = Replicator(id, self._engine, self._mesh, self._store, blocks, options)
        self._undo.push_async_callback(self._replicator.stop)
        self._mesh.on_change(self._replicator.on_change)
        self._mesh.on_change(self._on_change)
        self._coordinator = Coordinator(
            id,
            self._engine,
            self._mesh,
            self._store,
            strict_quorum=config.quorum == "strict",
            early_stop=EarlyStop(config.early_stop),
            replicator=self._replicator,
            standings=await asyncio.to_thread(Standings, directory / "standings.json"),
            ensemble=config.ensemble == "auto",
        )
        self._undo.push_async_callback(self._coordinator.stop)

    def _add_services(self) -> None:
        shared = Shared(os.environ, home().data, resolve.given(self._config.model))
        self._undo.callback(shared.close)
        services.add(
            self._ports,
            self._config,
            self._engine,
            self._store,
            self._mesh,
            self._replicator,
            self._coordinator,
            self._lender,
            shared,
        )

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

    def _serve_http(self, gateway: http.Gateway | None) -> None:
        if gateway is None:
            return
        gateway.open(
            Here(
                self._identity.node_id,
                self._coordinator,
                self._engine,
                self._mesh,
                self._store,
                services.defaults(self._config),
                __version__,
                forget=self._replicator.forget,
                travels=self._replicator.travels,
                links=self._replicator.links,
            )
        )
        self._undo.push_async_callback(gateway.stop)

    # ---- while it runs ----------------------------------------------------------------------------------------------

    def _notice(self, line: str) -> None:
        """For parts that outlive the start, after which `on_notice` may be another."""
        self.on_notice(line)

    def _move(self, address: str) -> None:
        self._mesh_address = address

    def _on_lost(self, error: ConclaveError) -> None:
        """A part of the model is gone, and llama.cpp waits for it."""
        if not self._started or self._stopped:
            self._abandon(error)
        if not self.failed.done():
            self.failed.set_result(error)

    def _abandon(self, error: ConclaveError) -> None:
        engine = getattr(self, "_engine", None)  # there is none yet while a model is looked at before it is loaded
        if isinstance(engine, Engine):
            engine.abandon(error)

    def _on_change(self, change: Change) -> None:
        if change.info.state in (NodeState.ALIVE, NodeState.DEAD):
            self._lender.heard(change.info.id, alive=change.info.state is NodeState.ALIVE)
        if change.info.state is NodeState.ALIVE and unshared.is_unshared(home().config):
            self._share(change.info.id)

    def _share(self, peer: str) -> None:
        """The token is another machine's too; nodes of this one take a new token with it."""
        if peer not in {n.node_id for n in running_nodes(home().runtime)}:
            unshared.met(home().config, self._token)

    def _describe(self) -> NodeInfo:
        """What other nodes are told of this one."""
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
            local_address=self._ports.local_address,
            lends_bytes=self._lender.bytes,
            lent_to=self._lender.lent_to,
            borrows_from=tuple(s.node for s in self._borrower.shares if s.node) if self._borrower else (),
        )
