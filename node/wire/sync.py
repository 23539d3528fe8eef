"""Turns of a topic's log to the wire and back."""

from __future__ import annotations

import math

from node.core.log import MAX_MS, NOTHING, Entry, Reply
from node.errors import InvalidRequest
from node.types import FinishReason, Version
from node.v1 import kvsync_pb2, types_pb2
from node.wire import read, write

MAX_LENGTH = 1 << 31


def entry_pb(topic: str, entry: Entry) -> kvsync_pb2.AppendRequest:
    """A turn for the wire."""
    r = entry.reply
    return kvsync_pb2.AppendRequest(
        topic=topic,
        version=write.version_pb(entry.version),
        parent=write.version_pb(entry.parent) if entry.parent != NOTHING else None,
        messages=[write.message_pb(m) for m in entry.messages],
        request_id=entry.request_id,
        anew=entry.anew,
        length=entry.tokens,
        made_ms=entry.made_ms,
        forgotten=entry.forgotten,
        reply=kvsync_pb2.Reply(
            finish_reason=r.finish_reason,
            strategy=r.strategy,
            winner=r.winner,
            confidence=r.confidence,
            margin=r.margin,
            planned=r.planned,
            finished=r.finished,
            prompt_tokens=r.prompt_tokens,
            completion_tokens=r.completion_tokens,
        ),
    )


def entry(pb: kvsync_pb2.AppendRequest) -> tuple[str, Entry]:
    """A topic and a turn of it, checked. Raises InvalidRequest."""
    topic = read.name("topic", pb.topic)
    if not topic:
        raise InvalidRequest("topic is empty: a turn belongs to one")
    version = read.version(pb.version)
    parent = read.version(pb.parent) if pb.HasField("parent") else NOTHING
    if version.turn < 1 or not version.node_id or parent >= version:
        raise InvalidRequest(f"version {version.epoch}.{version.turn} of {version.node_id!r} is no turn's")
    if pb.forgotten:
        return topic, Entry(version, parent, forgotten=True)
    return topic, Entry(
        version,
        parent,
        read.answered(pb.messages),
        pb.anew,
        min(pb.length, MAX_LENGTH),
        read.name("request_id", pb.request_id),
        reply=_reply(pb.reply),
        made_ms=min(pb.made_ms, MAX_MS),
    )


def _reply(pb: kvsync_pb2.Reply) -> Reply:
    def share(value: float) -> float:
        return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0

    try:
        reason = FinishReason(pb.finish_reason or "stop").value
        strategy = read.strategy(pb.strategy).value
    except (ValueError, InvalidRequest):
        reason, strategy = FinishReason.STOP.value, "auto"
    return Reply(
        reason,
        strategy,
        pb.winner,
        share(pb.confidence),
        share(pb.margin),
        pb.planned,
        pb.finished,
        pb.prompt_tokens,
        pb.completion_tokens,
    )


def held_pb(version: Version) -> types_pb2.Version | None:
    """A version for the wire; None where there is none."""
    return write.version_pb(version) if version != NOTHING else None
