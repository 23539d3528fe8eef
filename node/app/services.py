"""Which gRPC services are on which listener: clients' on loopback, peers' on the mesh's port."""

from __future__ import annotations

from node import __version__, wire
from node.api import rpc
from node.api.kvsync import KVSyncServicer
from node.api.models import ModelsServicer
from node.api.pool import PoolServicer
from node.api.seam import seam
from node.app.ports import Ports
from node.config import Config
from node.coordinator import Coordinator
from node.engine.face import EngineFace
from node.mesh.mesh import Mesh
from node.models.shared import Shared
from node.pool.lender import Lender
from node.replicator import Replicator
from node.store import Store
from node.types import SamplingParams, Strategy
from node.v1 import (
    generate_pb2_grpc,
    kvsync_pb2_grpc,
    mesh_pb2_grpc,
    models_pb2_grpc,
    pool_pb2_grpc,
    vote_pb2_grpc,
)


def defaults(config: Config) -> wire.Defaults:
    """What holds for requests that do not say it themselves."""
    return wire.Defaults(config.candidates, Strategy(config.strategy), SamplingParams())


def add(
    ports: Ports,
    config: Config,
    engine: EngineFace,
    store: Store,
    mesh: Mesh,
    replicator: Replicator,
    coordinator: Coordinator,
    lender: Lender,
    shared: Shared,
) -> None:
    """Add every service to the listeners, which are not started yet."""
    generate = rpc.GenerateServicer(coordinator, engine, defaults(config))
    for server, is_mesh in ((ports.local, False), (ports.mesh, True)):
        generate_pb2_grpc.add_GenerateServicer_to_server(generate, seam(server))
        meets = rpc.MeshServicer(
            mesh,
            engine,
            store,
            __version__,
            is_mesh=is_mesh,
            standings=coordinator.standings,
            travels=replicator.travels,
            links=replicator.links,
        )
        mesh_pb2_grpc.add_MeshServicer_to_server(meets, seam(server))
        sync = KVSyncServicer(replicator, is_mesh=is_mesh, won=coordinator.won, note=coordinator.claims.note)
        kvsync_pb2_grpc.add_KVSyncServicer_to_server(sync, seam(server))
    vote_pb2_grpc.add_VoteServicer_to_server(rpc.VoteServicer(coordinator), seam(ports.mesh))
    models_pb2_grpc.add_ModelsServicer_to_server(ModelsServicer(shared), seam(ports.mesh))
    pool_pb2_grpc.add_PoolServicer_to_server(PoolServicer(lender), seam(ports.mesh))
