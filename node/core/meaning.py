"""What a machine's measured speeds mean for its topics, in words."""

from __future__ import annotations

from node.core.slots import Speeds, worth_from

TOPIC = 2048  # tokens of a topic that counts as a usual one, where a sequence holds as many


def topics(speeds: Speeds, kv_bytes: float, memory: int, disk: int, context: int) -> str:
    """How many idle topics fit into so many bytes of memory and disk, and from which length on it pays to bring one
    back; empty if that is not known. `kv_bytes` a token, `context` tokens a sequence."""
    if not kv_bytes or not speeds.is_measured:
        return ""
    tokens = min(TOPIC, context // 2)
    each = kv_bytes * tokens
    in_memory, on_disk = int(memory / each), int(disk / each) if memory else 0
    room = f"room for {in_memory:,} topics of {tokens:,} tokens in memory" if memory else "no room for idle ones"
    if on_disk:
        room += f", {on_disk:,} more on disk"
    least = worth_from(speeds, kv_bytes)
    if not least:
        return f"{room}; computing one again is quicker than bringing it back"
    longer = f" of {least:,} tokens or more" if least > 1 else ""
    return f"{room}; bringing one{longer} back is quicker than computing it again"
