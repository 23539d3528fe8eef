"""Who takes part in a vote, with how many candidates of which model, and what these weigh.

Nodes of the model that is asked share its candidates. Nodes with other models are guests: each renders the messages
with its own template (token ids never leave a model), its texts are judged here by their answer keys or by this node's
embedder, and they weigh what this node's record of their model makes of them. A node says itself which model it has;
who has the mesh's token is trusted that far.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from node.coordinator.place import Place
from node.core import placement, record
from node.core.consensus import Vote
from node.core.record import Standing
from node.errors import NotFound
from node.mesh.peer import Peer
from node.types import GenerateRequest, ModelVote, Outcome, Scope, Strategy

VOTE = "conclave"  # the model that another node's HTTP listener calls a vote over its mesh


@dataclass(frozen=True, slots=True)
class Member:
    """A node of a vote: its model as it was when the vote was planned, and its candidates' ids. `peer` None is us."""

    id: str
    fingerprint: str
    model: str
    candidates: tuple[int, ...]
    peer: Peer | None = None


@dataclass(frozen=True, slots=True)
class Lineup:
    """The members of a vote by node id, this node first if it takes part; standings by candidate id."""

    members: Mapping[str, Member]
    standings: Mapping[int, Standing]

    @property
    def shares(self) -> dict[str, tuple[int, ...]]:
        """Candidate ids by node."""
        return {member.id: member.candidates for member in self.members.values()}

    @property
    def models(self) -> tuple[ModelVote, ...]:
        """The models that take part, the one asked first; none if it is alone."""
        found: dict[str, ModelVote] = {}
        for m in self.members.values():
            before = found.get(m.fingerprint)
            ids = (before.candidates if before else ()) + m.candidates
            found[m.fingerprint] = ModelVote(m.model, m.fingerprint, self.standings[ids[0]].weight, ids)
        return tuple(found.values()) if len(found) > 1 else ()


def lineup(place: Place, request: GenerateRequest) -> Lineup:
    """Plan a prepared request. Raises NotFound where no node has the model that it names."""
    info = place.local.engine.info
    peers = [] if request.scope is Scope.LOCAL or request.is_raw else list(place.mesh.peers())
    found = {p.id: Member(p.id, p.info.fingerprint, p.info.model, (), p) for p in peers}
    if request.model in ("", info.name):
        home = info.fingerprint
        able = {p.id for p in peers if p.info.fingerprint == home or _is_guest(place, request, p)}
        members = {place.id: Member(place.id, home, info.name, ()), **{i: m for i, m in found.items() if i in able}}
    else:
        members = {i: m for i, m in found.items() if m.model == request.model}
        if not members:
            others = sorted({m.model for m in found.values() if m.model} - {info.name})
            listed = f", its peers {', '.join(map(repr, others[:8]))}" if others else ""
            raise NotFound(f"model {request.model!r} is not loaded here; this node has {info.name!r}{listed}")
        speed = {p.id: p.info.decode_tokens_per_s for p in peers}
        home = max(members.values(), key=lambda m: speed[m.id]).fingerprint
    standing = _standings(place, members)
    own = sum(m.fingerprint == home for m in members.values())
    count = request.candidates or placement.default_candidates(own, len(members) - own)
    engine = place.local.engine
    speeds = {p.id: (p.info.decode_tokens_per_s, p.info.free_sequences) for p in peers}
    speeds[place.id] = (engine.decode_tokens_per_s, engine.free_sequences)
    able_nodes = [
        placement.Participant(m.id, *speeds[m.id], m.fingerprint != home, standing[m.fingerprint].weight)
        for m in sorted(members.values(), key=lambda m: (m.peer is not None, m.fingerprint != home))
    ]
    ids = iter(range(1, count + 1))
    shared: dict[str, Member] = {}
    for node, n in placement.share(count, able_nodes).items():
        m = members[node]
        shared[node] = Member(m.id, m.fingerprint, m.model, tuple(next(ids) for _ in range(n)), m.peer)
    standing = _standings(place, shared)  # without those that got no share, one model may be left
    return Lineup(shared, {c: standing[m.fingerprint] for m in shared.values() for c in m.candidates})


def learn(place: Place, members: Lineup, vote: Vote, outcome: Outcome) -> None:
    """Take the outcome of a vote into the record of the models that took part; it is written in the background."""
    models = {c: m.fingerprint for m in members.members.values() for c in m.candidates}
    names = {m.fingerprint: m.model for m in members.members.values()}
    new = record.learn(place.standings.get(names), vote.ballots, outcome, models)
    if not new:
        return
    place.standings.put(new, names)
    task = asyncio.create_task(asyncio.to_thread(place.standings.save))
    place.background.add(task)
    task.add_done_callback(place.background.discard)


def _standings(place: Place, members: Mapping[str, Member]) -> dict[str, Standing]:
    return record.standings(place.standings.get({m.fingerprint for m in members.values()}))


def _is_guest(place: Place, request: GenerateRequest, peer: Peer) -> bool:
    """Whether a node of another model may take part."""
    params, info = request.params, peer.info
    if request.model:
        if info.model != request.model:  # another file of the model that is named may
            return False
    elif not place.ensemble:
        return False
    if not info.fingerprint or params.logit_bias:  # token ids mean something in one vocabulary only
        return False
    if info.backend == "mlx" and (params.grammar or params.json_schema):  # it has none and would refuse
        return False
    if info.backend == "openai" and info.model.partition(":")[0] == VOTE:  # a vote itself, which could ask us again
        return False
    # The first to finish would be the smallest model's.
    return request.strategy is not Strategy.FASTEST
