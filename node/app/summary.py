"""What is said of a node once it is up."""

from __future__ import annotations

from dataclasses import dataclass

from node.types import NodeInfo


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
