"""The KV of topics between their turns: in the context, parked in memory, parked on disk, or forgotten.

`node.core.slots` decides; this acts on the backend. A prompt begins from the longest prefix that is held anywhere, so a
topic's second turn computes its new tokens only and equal system prompts are computed once. Sharing is by equal tokens
alone: KV depends on nothing else, so no topic can see what another said.

In one unified KV, attention looks at every used cell, whoever's it is, so idle topics slow the active one. Therefore
they leave the context for memory once they take more than `IDLE_CELLS` cells; that costs a millisecond or two (at most,
11) and is done between two steps, after the tokens of the step are on their way. Ten topics of some 400 tokens
in turn, Qwen2.5-0.5B's shape, two threads: the first token of a turn of 42 tokens came after 209 and 203 ms with 2,048
idle cells, 186 ms with 512, 187 ms with none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from node.core import slots
from node.core.prefixes import Prefixes
from node.core.recent import Recent
from node.core.slots import Held, Match, Speeds
from node.engine.backend import Backend
from node.engine.shelf import Shelf, Shelved

IDLE_CELLS = 512
MOST_USES = 4096
UNNAMED = "~"  # the KV of a request without a topic is held under this and its id
SHARED = "\0"  # and this begins the names of what several topics begin with
# What leaves is found by a look at all that is held, which takes long where there are thousands. So a little more than
# must leaves with it, and the next ones need no look.
SLACK = 63 / 64
MEASURED_BYTES = 1 << 20  # the speed of restoring is learned from copies at least this large


def stem_of(topic: str) -> str:
    """The name under which a topic's stem is held (`node.engine.stems`)."""
    return f"{UNNAMED}{SHARED}{topic}"


class Pool:
    """Sequences and KV cells that nobody uses."""

    def __init__(self, sequences: int, cells: int) -> None:
        self.free = list(range(sequences - 1, -1, -1))
        self.cells = cells


@dataclass(slots=True)
class _Slot:
    """A topic's KV: on `sequence` if that is not -1, else in `state` or `copy`. `is_foreign`: it is another node's."""

    held: Held
    sequence: int = -1
    state: Any = None
    copy: Shelved | None = None
    is_foreign: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """KV of another node that a prompt began from: the last of its `tokens` is computed again with the prompt's rest,
    and must come out as it `was`."""

    tokens: Sequence[int]
    was: Any
    slot: _Slot


class Slots:
    """What is held for topics. `memory` is the limit for parked copies in bytes; 0 parks nothing. What it has no room
    for goes to the `shelf`, if there is one."""

    def __init__(
        self,
        backend: Backend,
        pool: Pool,
        *,
        memory: int,
        shelf: Shelf | None = None,
        speeds: Speeds | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._pool = pool
        self._memory = memory
        self._shelf = shelf
        self._slots: dict[str, _Slot] = {}
        self._prefixes = Prefixes()
        self._resident: set[str] = set()  # those in the context: few, where there may be thousands in memory
        self._uses: dict[str, tuple[float, int]] = {}
        self._turn = 0
        self.speeds = speeds or Speeds()
        self._restores, self._usual_s = Recent(), self.speeds.restore_s_per_byte
        self.parked_bytes = 0
        self.disk_bytes = 0
        self.refuted = 0  # states from elsewhere that were not what they were said to be

    @property
    def topics(self) -> int:
        """Topics that are held, in the context or in memory."""
        return len(self._slots)

    @property
    def resident(self) -> int:
        """Topics in the context."""
        return len(self._resident)

    @property
    def parked(self) -> int:
        """Topics in memory or on disk."""
        return self.topics - self.resident

    @property
    def idle_cells(self) -> int:
        """KV cells of topics in the context."""
        return sum(len(self._slots[topic].held.tokens) for topic in self._resident)

    def match(self, topic: str, prompt: Sequence[int]) -> Match | None:
        """Where a prompt should begin."""
        self._look_at_speeds()
        return self._prefixes.match(topic, prompt, self.speeds, whole=self._backend.info.is_recurrent)

    def branch(self, topic: str, prompt: Sequence[int]) -> int:
        """Tokens that a new topic's prompt has in common with others; 0 for topics that are held."""
        return 0 if topic in self._slots else self._prefixes.shared(prompt)

    def gain(self, match: Match | None) -> tuple[int, int]:
        """Sequences and cells that taking a match over makes free for its request."""
        if match is None or not match.take or not match.held.is_resident:
            return 0, 0
        return 1, len(match.held.tokens)

    def begin(self, match: Match | None) -> tuple[int, int, Trial | None]:
        """A sequence for a prompt, how many of its tokens it holds, and what is to be tried once the next are computed
        (`settle`). There must be a free sequence, or one to take."""
        self._turn += 1
        slot = self._slots.get(match.held.topic) if match is not None else None
        if match is None or slot is None:  # a parked one may have had to go since it was matched
            return self._pool.free.pop(), 0, None
        if match.take:
            self._forget(stem_of(match.held.topic))  # what comes has its own
        if slot.held.is_resident:
            return *self._begin_resident(slot, match), None
        return self._begin_parked(slot, match)

    def settle(self, trial: Trial, sequence: int) -> bool:
        """Whether KV of another node that a sequence began from is right, now that the last of its tokens is computed
        again. What turned out to be wrong is not tried again."""
        is_right = not self._backend.refutes(sequence, trial.tokens, trial.was)
        if not is_right:
            self.refuted += 1
            if self._slots.get(trial.slot.held.topic) is trial.slot:
                self.forget(trial.slot.held.topic)
        trial.slot.is_foreign = False
        return is_right

    def keep(self, topic: str, sequence: int, tokens: Sequence[int]) -> None:
        """Hold a sequence for a topic from now on, in the place of what was held for it."""
        self._forget(topic)
        interval, last = self._uses.get(topic, (0.0, self._turn))
        interval = slots.interval_after(interval, last, self._turn)
        self._pool.cells -= len(tokens)
        held = Held(topic, tokens, True, interval=interval, used=self._turn)
        self._slots[topic] = _Slot(held, sequence)
        self._prefixes.put(held)
        self._resident.add(topic)

    def forget(self, topic: str) -> None:
        """Let go of all that is held for a topic."""
        self._forget(topic)
        self._forget(stem_of(topic))

    def _forget(self, topic: str) -> None:
        slot = self._slots.get(topic)
        if slot is None:
            return
        self._remove(slot)
        if slot.held.is_resident:
            self._leave_context(slot)
        elif slot.copy is not None and self._shelf is not None:
            self._shelf.drop(slot.copy)
            self.disk_bytes -= slot.held.bytes
        else:
            self.parked_bytes -= slot.held.bytes

    def tokens(self, topic: str) -> Sequence[int]:
        """The tokens whose KV is held for a topic; empty: none is."""
        slot = self._slots.get(topic)
        return slot.held.tokens if slot is not None else ()

    def export(self, topic: str, start: int) -> tuple[Sequence[int], Any] | None:
        """A topic's tokens and a copy of its KV from position `start` on (or more of it); None if there is none."""
        slot = self._slots.get(topic)
        if slot is None or len(slot.held.tokens) <= start:
            return None
        state = self._backend.export(slot.sequence, start) if slot.held.is_resident else self._copy(slot)
        return (slot.held.tokens, state) if state is not None else None

    def adopt(self, topic: str, tokens: Sequence[int], state: Any) -> bool:
        """Hold KV that came from elsewhere for a topic, parked, in the place of what was held for it. It is restored at
        the next turn if that is quicker than prefilling. Says whether it is held."""
        if state.nbytes > self._memory:
            return False
        self.forget(topic)
        interval, _ = self._uses.get(topic, (0.0, 0))
        held = Held(topic, tokens, False, bytes=state.nbytes, interval=interval, used=self._turn)
        self._slots[topic] = _Slot(held, state=state, is_foreign=True)
        self._prefixes.put(held)
        self.parked_bytes += state.nbytes
        self._keep_within_memory()
        return topic in self._slots

    def make_room(self, sequences: int, cells: int, spare: str = "") -> bool:
        """Put idle topics (but `spare`) out of the context until so much is free. Says whether it is."""

        def enough() -> bool:
            return len(self._pool.free) >= sequences and self._pool.cells >= cells

        if not enough():
            for held in self._leaving():
                if held.topic != spare:
                    self._park(held.topic)
                if enough():
                    break
        return enough()

    def rest(self) -> bool:
        """Put one topic out of the context if idle ones take too many cells. Says whether it did."""
        if self.idle_cells <= IDLE_CELLS:
            return False
        order = self._leaving()
        # A single topic longer than the limit stays: it is most likely the one that goes on.
        if len(order) < 2:
            return False
        self._park(order[0].topic)
        return True

    # ---- acting -----------------------------------------------------------------------------------------------------

    def _begin_resident(self, slot: _Slot, match: Match) -> tuple[int, int]:
        if not match.take:
            self._touch(slot)
            target = self._pool.free.pop()
            return target, match.length if self._backend.fork(slot.sequence, target, match.length) else 0
        sequence = slot.sequence
        self._remove(slot)
        self._resident.discard(slot.held.topic)
        self._pool.cells += len(slot.held.tokens)
        if not self._backend.truncate(sequence, match.length):
            self._backend.drop(sequence)
            return sequence, 0
        return sequence, match.length

    def _begin_parked(self, slot: _Slot, match: Match) -> tuple[int, int, Trial | None]:
        target, length = self._pool.free.pop(), match.length
        self._touch(slot)
        state = self._copy(slot)
        fits = state is not None and self._restore(slot, state, target)
        trial = None
        if fits and slot.is_foreign:
            was = self._backend.reopen(target, length)
            trial = Trial(slot.held.tokens[:length], was, slot)
            fits = was is not None
        elif fits:
            fits = self._backend.truncate(target, length)
        if match.take:
            self.forget(slot.held.topic)
        if not fits:
            self._backend.drop(target)
            return target, 0, None
        return target, length, trial

    def _copy(self, slot: _Slot) -> Any:
        """The copy of a topic that is not in the context; None if it is lost."""
        return self._shelf.get(slot.copy) if self._shelf is not None and slot.copy is not None else slot.state

    def _restore(self, slot: _Slot, state: Any, target: int) -> bool:
        """Into the context."""
        started = self._clock()
        if not self._backend.restore(target, state):
            return False
        took = self._clock() - started
        if slot.held.bytes >= MEASURED_BYTES and took > 0:
            self._restores.add(took / slot.held.bytes, self._clock())
            self._look_at_speeds()
        return True

    def _look_at_speeds(self) -> None:
        """What restoring takes by the quickest of the last times: one that was held up by something must not be the
        last that was tried."""
        restore_s = self._restores.least(self._clock(), self._usual_s)
        disk_s = self._shelf.seconds_per_byte if self._shelf is not None else self.speeds.disk_s_per_byte
        if (restore_s, disk_s) != (self.speeds.restore_s_per_byte, self.speeds.disk_s_per_byte):
            self.speeds = replace(self.speeds, restore_s_per_byte=restore_s, disk_s_per_byte=disk_s)

    def _held(self) -> Iterable[Held]:
        return (slot.held for slot in self._slots.values())

    def _leaving(self) -> list[Held]:
        return slots.leave_context((self._slots[topic].held for topic in self._resident), self._turn, self.speeds)

    def _touch(self, slot: _Slot) -> None:
        interval = slots.interval_after(slot.held.interval, slot.held.used, self._turn)
        self._change(slot, replace(slot.held, interval=interval, used=self._turn))

    def _change(self, slot: _Slot, held: Held) -> None:
        slot.held = held
        self._prefixes.put(held)

    def _remove(self, slot: _Slot) -> None:
        self._prefixes.remove(slot.held.topic)
        self._remember(self._slots.pop(slot.held.topic))

    def _park(self, topic: str) -> None:
        """Out of the context: into memory if it fits there, else forgotten."""
        slot = self._slots[topic]
        state = self._backend.export(slot.sequence) if self._memory else None
        self._leave_context(slot)
        if state is None:
            self._remove(slot)
            return
        slot.state = state
        slot.sequence = -1
        self._change(slot, replace(slot.held, is_resident=False, bytes=state.nbytes))
        self.parked_bytes += state.nbytes
        if state.nbytes > self._memory:
            self._shelve(topic)  # rather than all others
        self._keep_within_memory()

    def _keep_within_memory(self) -> None:
        if self.parked_bytes > self._memory:
            for held in slots.leave_memory(self._held(), self._turn, self.speeds):
                self._shelve(held.topic)
                if self.parked_bytes <= self._memory * SLACK:
                    break

    def _shelve(self, topic: str) -> None:
        """Out of memory: to disk if it fits there, else forgotten."""
        slot = self._slots[topic]
        if self._shelf is None or slot.held.bytes > self._shelf.limit:
            self.forget(topic)
            return
        slot.copy, slot.state = self._shelf.put(slot.state), None
        self._change(slot, replace(slot.held, is_on_disk=True))
        self.parked_bytes -= slot.held.bytes
        self.disk_bytes += slot.held.bytes
        if self.disk_bytes > self._shelf.limit:
            for held in slots.leave_disk(self._held(), self._turn, self.speeds):
                self.forget(held.topic)
                if self.disk_bytes <= self._shelf.limit * SLACK:
                    break

    def _remember(self, slot: _Slot) -> None:
        """How often a topic was used outlives its KV, within limits; a request without one does not come back."""
        if slot.held.topic.startswith(UNNAMED):
            return
        self._uses.pop(slot.held.topic, None)
        self._uses[slot.held.topic] = slot.held.interval, slot.held.used
        if len(self._uses) > MOST_USES:
            del self._uses[next(iter(self._uses))]

    def _leave_context(self, slot: _Slot) -> None:
        self._resident.discard(slot.held.topic)
        self._backend.drop(slot.sequence)
        self._pool.free.append(slot.sequence)
        self._pool.cells += len(slot.held.tokens)
