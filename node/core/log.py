"""The log of a topic: its turns, each after the one that it follows, and which of them count.

The greatest version is the head; its ancestors are the conversation. Turns that lead elsewhere (both sides of a
partition went on) are branches: kept and shown, no part of the conversation. A tombstone, once it is the head, leaves
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from node.types import Message, Version

NOTHING = Version()
RECENT = 16
MAX_MS = 1 << 48  # Unix time in milliseconds, in the year 10889: what a peer says is cut there


@dataclass(frozen=True, slots=True)
class Reply:
    """How a turn's answer came about: enough to give the same answer to the same request again."""

    finish_reason: str = "stop"
    strategy: str = "auto"
    winner: int = 0
    confidence: float = 0.0
    margin: float = 0.0
    planned: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A turn: the messages that it adds, the answer last. With `anew` they are the whole conversation.

    `tokens` is the length of the conversation after it, `request_id` the request that made it, `made_ms` when that was,
    Unix time in milliseconds by the clock of its node (0: not known; for people only). A tombstone (`forgotten`) has no
    messages.
    """

    version: Version
    parent: Version = NOTHING
    messages: tuple[Message, ...] = ()
    anew: bool = False
    tokens: int = 0
    request_id: str = ""
    forgotten: bool = False
    reply: Reply = field(default_factory=Reply)
    made_ms: int = 0

    @property
    def begins(self) -> bool:
        """Whether the conversation can be read from this entry on, without what it follows."""
        return self.anew or self.forgotten or self.parent == NOTHING


class Taken(StrEnum):
    """What became of an entry that was offered to a log."""

    HEAD = "head"  # it is the head now
    BRANCH = "branch"  # it is kept, and another is the head
    KNOWN = "known"  # it was there
    ORPHAN = "orphan"  # what it follows is not there, so it was not taken
    STALE = "stale"  # the topic was forgotten after it, so it was not taken


class Log:
    """The entries of one topic, in the order in which they came."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[Version, Entry] = {}
        self.head = NOTHING
        for entry in entries:
            self.add(entry)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, in the order in which they came."""
        return tuple(self._entries.values())

    @property
    def is_forgotten(self) -> bool:
        """Whether the head is a tombstone."""
        return self.head in self._entries and self._entries[self.head].forgotten

    def get(self, version: Version) -> Entry | None:
        """An entry by its version."""
        return self._entries.get(version)

    def add(self, entry: Entry) -> Taken:
        """Offer an entry."""
        if entry.version in self._entries:
            return Taken.KNOWN
        if self.is_forgotten and entry.version < self.head:
            return Taken.STALE
        if not entry.begins and entry.parent not in self._entries:
            return Taken.ORPHAN
        if entry.forgotten:
            if entry.version < self.head:
                return Taken.STALE  # the topic went on after it was forgotten elsewhere
            self._entries.clear()
        self._entries[entry.version] = entry
        if entry.version < self.head:
            return Taken.BRANCH
        self.head = entry.version
        return Taken.HEAD

    def path(self, version: Version | None = None) -> list[Entry]:
        """The entries that lead to a version (the head), the oldest first."""
        out: list[Entry] = []
        entry = self._entries.get(self.head if version is None else version)
        while entry is not None:
            out.append(entry)
            entry = self._entries.get(entry.parent) if entry.parent < entry.version else None
        return out[::-1]

    def conversation(self, version: Version | None = None) -> tuple[Message, ...]:
        """The messages that lead to a version (the head)."""
        out: list[Message] = []
        for entry in self.path(version):
            if entry.begins:
                out = []
            out += entry.messages
        return tuple(out)

    def after(self, version: Version) -> list[Entry]:
        """What leads to the head for someone who holds `version`, the oldest first; all of it if that is a branch."""
        path = self.path()
        for i, entry in enumerate(path):
            if entry.version == version:
                return path[i + 1 :]
        begins = max((i for i, entry in enumerate(path) if entry.begins), default=0)
        return path[begins:]

    def useless(self) -> list[Entry]:
        """Entries that no conversation needs: what a client's whole conversation replaced, but for the last
        `RECENT` turns, whose requests may be asked again, and what branches go back to."""
        path = self.path()
        begins = max((i for i, entry in enumerate(path) if entry.begins), default=0)
        begins = min(begins, max(len(path) - RECENT, 0))
        while begins and not path[begins].begins:
            begins -= 1
        needed = {entry.version for entry in path[begins:]}
        for branch in self.branches():
            for entry in reversed(self.path(branch)):
                needed.add(entry.version)
                if entry.begins:
                    break
        return [entry for entry in self.entries if entry.version not in needed]

    def compact(self) -> None:
        """Let go of what is useless."""
        for entry in self.useless():
            del self._entries[entry.version]

    def branches(self) -> list[Version]:
        """The last entries of what leads elsewhere than to the head, by version."""
        followed = {entry.parent for entry in self._entries.values()}
        main = {entry.version for entry in self.path()}
        return sorted(v for v in self._entries if v not in followed and v not in main)
