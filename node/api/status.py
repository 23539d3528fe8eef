"""What `status` shows, for every listener."""

from __future__ import annotations

from collections.abc import Mapping

from node import wire
from node.core import record
from node.core.slots import worth_from
from node.engine.face import EngineFace
from node.mesh.mesh import Mesh
from node.replicator import Travel, Travels
from node.store import Standings, Store
from node.v1 import mesh_pb2


def status_pb(
    mesh: Mesh,
    engine: EngineFace,
    store: Store,
    version: str,
    standings: Standings,
    travels: Travels | None,
    links: Mapping[str, float],
) -> mesh_pb2.StatusResponse:
    """The nodes known, the topics and the sequences of this one, what it holds of models, which snapshots went, and its
    speeds. `links` are seconds a byte, by node; those to nodes that are away tell nobody anything."""
    present = {mesh.nodes()[0].id, *(p.id for p in mesh.peers())}
    free, total = engine.free_sequences, engine.info.sequences
    return mesh_pb2.StatusResponse(
        nodes=[wire.node_info_pb(n) for n in mesh.nodes()],
        topics=[wire.topic_pb(t, present) for t in store.list()],
        slots=mesh_pb2.Slots(used=total - free, parked=engine.load.topics, free=free),
        mesh_id=mesh.mesh_id,
        version=version,
        problems=store.problems,
        notices=mesh.notices,
        models=_models(standings),
        travels=[_travel(t, travels) for t in travels.last] if travels is not None else [],
        speeds=_speeds(engine, {node: s for node, s in links.items() if node in present}),
    )


def _travel(t: Travel, travels: Travels) -> mesh_pb2.Travel:
    return mesh_pb2.Travel(
        number=t.number,
        topic=t.topic,
        source=t.source,
        target=t.target,
        bytes=t.bytes,
        tokens=t.tokens,
        age_ms=travels.age_ms(t),
    )


def _speeds(engine: EngineFace, links: Mapping[str, float]) -> mesh_pb2.Speeds:
    speeds, kv_bytes = engine.speeds, engine.kv_bytes
    if not speeds.is_measured:
        return mesh_pb2.Speeds()
    return mesh_pb2.Speeds(
        prefill_tokens_per_s=1 / speeds.prefill_s,
        restore_bytes_per_s=1 / speeds.restore_s_per_byte if kv_bytes else 0.0,
        kv_bytes_per_token=kv_bytes,
        worth_tokens=worth_from(speeds, kv_bytes),
        worth_tokens_disk=worth_from(speeds, kv_bytes, speeds.disk_s_per_byte),
        links=[
            mesh_pb2.Link(node=node, bytes_per_s=1 / s, worth_tokens=worth_from(speeds, kv_bytes, s))
            for node, s in sorted(links.items())
        ],
    )


def _models(standings: Standings) -> list[mesh_pb2.ModelRecord]:
    known = standings.list()
    mean = record.pooled(k.record for k in known)
    weights = record.standings({k.fingerprint: k.record for k in known})
    return [
        mesh_pb2.ModelRecord(
            model=k.name,
            fingerprint=k.fingerprint,
            votes=k.record.votes,
            agreement=record.accuracy(k.record, mean),
            weight=weights[k.fingerprint].weight,
        )
        for k in known
    ]
