"""The topics a node holds: conversations and their versions, in memory.

They go when the process ends. The greatest version wins (`node.types.Version`), wherever it comes from.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from node.errors import NotFound
from node.types import Message, TopicInfo, Version

# The longest unused topic makes room: memory must not grow with every name or text that somebody makes up.
MAX_TOPICS = 4096
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Topic:
    """A conversation as it stands; `tokens` is the length of its prompt and last answer, `replicas` who has it."""

    name: str
    version: Version
    messages: tuple[Message, ...]
    tokens: int = 0
    replicas: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of its texts."""
        return sum(
            len(m.content.encode()) + sum(len(c.name.encode()) + len(c.arguments.encode()) for c in m.tool_calls)
            for m in self.messages
        )


class Store:
    """Topics by name, the most recently used last."""

    def __init__(self) -> None:
        self._topics: OrderedDict[str, Topic] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._bytes = 0

    def get(self, name: str) -> Topic:
        """A topic. Raises NotFound."""
        topic = self._topics.get(name)
        if topic is None:
            raise NotFound(f"topic {name!r} is unknown here: start it without append, or ask a node that holds it")
        self._topics.move_to_end(name)
        return topic

    def version(self, name: str) -> Version:
        """The version held; the zero version if there is none."""
        topic = self._topics.get(name)
        return topic.version if topic else Version()

    def commit(self, topic: Topic) -> bool:
        """Hold a topic unless a newer version is held. Says whether this version is held now."""
        held = self._topics.get(topic.name)
        if held is not None and held.version > topic.version:
            return False
        self._topics[topic.name] = topic
        self._topics.move_to_end(topic.name)
        size = topic.bytes
        self._bytes += size - self._sizes.get(topic.name, 0)
        self._sizes[topic.name] = size
        while len(self._topics) > 1 and (len(self._topics) > MAX_TOPICS or self._bytes > MAX_BYTES):
            name, _ = self._topics.popitem(last=False)
            self._bytes -= self._sizes.pop(name)
        return True

    def add_replica(self, name: str, version: Version, node: str) -> None:
        """Note that a node holds this version of a topic too, if it is still the version held here."""
        topic = self._topics.get(name)
        if topic is not None and topic.version == version and node not in topic.replicas:
            self._topics[name] = replace(topic, replicas=(*topic.replicas, node))

    def list(self) -> list[TopicInfo]:
        """All topics, by name."""
        return [
            TopicInfo(t.name, t.version, t.tokens, self._sizes[t.name], t.replicas)
            for t in sorted(self._topics.values(), key=lambda t: t.name)
        ]
