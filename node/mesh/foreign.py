"""Nodes of other meshes that are near: which there are now. Pure: `now` is passed in, in seconds of any clock that does
not go back. Nothing of what they announce is proved."""

from __future__ import annotations

from dataclasses import dataclass

from node.mesh.discovery import Found

MAX = 16  # Strangers announce what they like: who comes then is heard of when one of these is gone.
GONE_S = 20.0  # So long without a sign, and it counts as gone: its announcement may outlive it by an hour.


@dataclass(frozen=True, slots=True)
class _Seen:
    found: Found
    at: float


class Foreign:
    """What was announced by nodes of other meshes, by node."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def see(self, found: Found, now: float) -> None:
        """A node announced itself. An address is one node's, the newest's."""
        self.met(found.node_id, found.addresses[0])
        if len(self._seen) < MAX:
            self._seen[found.node_id] = _Seen(found, now)

    def answered(self, node_id: str, now: float) -> None:
        """Something listens where a node was."""
        if node_id in self._seen:
            self._seen[node_id] = _Seen(self._seen[node_id].found, now)

    def met(self, node_id: str, address: str) -> None:
        """A node turned out to be one of ours, or one of ours has its address now."""
        self._seen = {i: s for i, s in self._seen.items() if i != node_id and s.found.addresses[0] != address}

    def missed(self, node_id: str, now: float) -> None:
        """Nothing listens where a node was."""
        if node_id in self._seen and now - self._seen[node_id].at >= GONE_S:
            del self._seen[node_id]

    def meshes(self) -> dict[str, Found]:
        """The other meshes, each with one of its nodes: the same as long as it is there."""
        return {s.found.mesh_id: s.found for s in sorted(self._seen.values(), key=lambda s: s.found.node_id)}
