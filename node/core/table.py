"""The table of members: what is held of each, and which of them are suspects or dead, in that order of time."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator
from dataclasses import dataclass, field, replace

from node.types import NodeInfo, NodeState


@dataclass(slots=True)
class Member:
    """A node that is remembered. `state` is alive, suspect or dead, since `since`; `witnesses` could not reach it. It
    `is_behind` if it says less of itself than what is held, so that it must be told."""

    info: NodeInfo
    state: NodeState = NodeState.ALIVE
    since: float = 0.0
    left: bool = False
    is_behind: bool = False
    witnesses: set[str] = field(default_factory=set)

    def told(self) -> NodeInfo:
        """It as others are told of it: its own state (draining) counts only while it lives."""
        return self.info if self.state is NodeState.ALIVE else replace(self.info, state=self.state)


class Table:
    """Members by id. A look at suspects and at the dead takes as long as there are such, not as there are members."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._suspects: dict[str, None] = {}
        self._dead: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, id: str) -> bool:
        return id in self._members

    def __getitem__(self, id: str) -> Member:
        return self._members[id]

    def get(self, id: str) -> Member | None:
        """A member, if it is held."""
        return self._members.get(id)

    def items(self) -> ItemsView[str, Member]:
        """All of them."""
        return self._members.items()

    def by_id(self) -> Iterator[Member]:
        """All of them in the order of their ids."""
        return (member for _, member in sorted(self._members.items()))

    def add(self, info: NodeInfo, now: float) -> None:
        """Hold a node that is alive."""
        self._members[info.id] = Member(info, NodeState.ALIVE, now)

    def enter(self, id: str, state: NodeState, now: float) -> None:
        """A member is in another state from now on."""
        member = self._members[id]
        member.state, member.since = state, now
        self._suspects.pop(id, None)
        self._dead.pop(id, None)
        if state is NodeState.SUSPECT:
            self._suspects[id] = None
        elif state is NodeState.DEAD:
            self._dead[id] = None

    def remove(self, id: str) -> None:
        """Forget a member."""
        del self._members[id]
        self._suspects.pop(id, None)
        self._dead.pop(id, None)

    @property
    def suspects(self) -> list[str]:
        """Ids of suspects, the longest suspected first."""
        return list(self._suspects)

    @property
    def dead(self) -> list[str]:
        """Ids of the dead, the longest dead first."""
        return list(self._dead)

    @property
    def living(self) -> int:
        """How many are not dead."""
        return len(self._members) - len(self._dead)
