"""The topics that a node holds: their logs, in memory and, given a directory, on disk.

The greatest version wins (`node.types.Version`), wherever it comes from. What is in memory is a cache of the files; a
disk that fails costs durability, which is said (`problem`), and no answer: what could not be written waits in memory
(`unwritten`) and is written as soon as the disk takes it (`retry`). It waits within the limits of what is held in
memory: when the topics that wait are more than that, the longest unused of them is let go, which the log says, and
other nodes have it at best.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from node.core.log import Entry, Log, Taken
from node.errors import ConclaveError, NotFound, NotReady, Overloaded
from node.store.files import LogFiles
from node.types import Message, TopicInfo, Version

log = logging.getLogger(__name__)

# What is held in memory; the longest unused topic makes room. Without a directory it is gone then.
MAX_TOPICS = 4096
MAX_BYTES = 256 << 20
# Memory and disk must not fill with every name that somebody makes up.
MAX_LOGS = 65_536
REMEMBERED_REQUESTS = 4096
# A log is written anew without what no conversation needs when that is half of it, and it is at least so large: a
# client that sends the whole conversation each turn would otherwise fill the disk with the square of its length.
COMPACT_BYTES = 256 << 10
# A tombstone must outlive what a node could bring back that was away when its topic was forgotten. Laptops come out of
# drawers after a summer; after a year we take it that none does. A tombstone is a file of some hundred bytes.
TOMBSTONE_S = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Topic:
    """A conversation as it stands; `tokens` is the length of its prompt and last answer, `replicas` who has it."""

    name: str
    version: Version
    messages: tuple[Message, ...]
    tokens: int = 0
    replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of an entry, and whether the disk has it."""

    taken: Taken
    on_disk: bool


@dataclass(slots=True)
class _Known:
    """What is known of a topic without its log."""

    version: Version
    tokens: int
    bytes: int
    forgotten: bool
    replicas: tuple[str, ...] = ()
    since: float = 0.0  # of a tombstone, Unix time in seconds
    made_ms: int = 0
    branches: int = 0


class Store:
    """Topics by name. Without a directory they end with the process. `node` is the id of the node that holds them: each
    has it among its replicas. Use it from one event loop."""

    def __init__(
        self, directory: Path | None = None, clock: Callable[[], float] = time.time, *, node: str = ""
    ) -> None:
        self._clock = clock
        self._here = (node,) if node else ()
        self._files = LogFiles(directory) if directory is not None else None
        self._writer = ThreadPoolExecutor(1, "log")
        self._logs: OrderedDict[str, Log] = OrderedDict()  # the most recently used last
        self._known: dict[str, _Known] = {}
        self._unwritten: dict[str, list[Entry]] = {}
        self._lock = threading.Lock()  # of what is unwritten, which the writer's thread takes from
        self._compacted: set[str] = set()  # in memory, and not yet on disk
        self._requests: OrderedDict[str, tuple[str, Version]] = OrderedDict()
        self._bytes = 0
        self.problem = ""
        self.kv_problem = ""  # said by who keeps snapshots

    @property
    def problems(self) -> list[str]:
        """What is wrong with the disk, one line each."""
        return [problem for problem in (self.problem, self.kv_problem) if problem]

    def load(self) -> None:
        """Read all files. It blocks; call it once, before anything else. Raises OSError."""
        if self._files is None:
            return
        for name, entries in self._files.read_all():
            found = Log(entries)
            if not len(found):
                continue
            self._hold(name, found)
            if found.is_forgotten:
                with contextlib.suppress(OSError):
                    self._known[name].since = self._files.written(name)
            elif self._compact(name, found):
                with contextlib.suppress(OSError):  # the old one stands
                    self._files.rewrite(name, found.entries)
                    self._compacted.discard(name)
            for entry in found.path()[-1:]:
                self._remember(name, entry)
        self._bury()

    def close(self) -> None:
        """Wait until what was given to the disk is there; what waited for it is tried once more."""
        if self.unwritten:
            self._writer.submit(self._flush)
        self._writer.shutdown()
        if lost := self.unwritten:
            log.error("%d turns were in memory only, and end with this process: %s", lost, self.problem)

    @property
    def unwritten(self) -> int:
        """Turns that are in memory and not on disk, where there is one."""
        with self._lock:
            return sum(map(len, self._unwritten.values()))

    async def retry(self) -> None:
        """Write what waits, if the disk takes it by now."""
        if self.unwritten:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._flush)

    # ---- reading ----

    def log(self, name: str) -> Log:
        """A topic's log, its tombstone included. Raises NotFound, or NotReady if the disk does not give it."""
        found = self._logs.get(name)
        if found is None and name in self._known and self._files is not None:
            try:
                entries = self._files.read(name)
            except OSError as e:  # it is not gone, and must not be begun anew
                raise NotReady(
                    f"topic {name!r} cannot be read from disk ({e.strerror or e}): look at it, or ask another node"
                ) from None
            if entries:
                found = Log(entries)
                self._hold(name, found)
        if found is None:
            raise NotFound(f"topic {name!r} is unknown here")
        self._logs.move_to_end(name)
        return found

    def get(self, name: str) -> Topic:
        """A conversation. Raises NotFound."""
        found = self.log(name)
        if found.is_forgotten:
            raise NotFound(f"topic {name!r} was forgotten: a first message to it begins a new one of this name")
        known = self._known[name]
        return Topic(name, known.version, found.conversation(), known.tokens, known.replicas)

    def version(self, name: str) -> Version:
        """The version held; the zero version if there is none."""
        known = self._known.get(name)
        return known.version if known else Version()

    def replicas(self, name: str) -> tuple[str, ...]:
        """The nodes that are known to hold a topic's version that is held here."""
        known = self._known.get(name)
        return known.replicas if known else ()

    def answered(self, request_id: str) -> tuple[str, Entry] | None:
        """The topic and the turn that a request made, if it is one of the last."""
        name, version = self._requests.get(request_id, ("", Version()))
        if name not in self._known:
            return None
        try:
            entry = self.log(name).get(version)
        except ConclaveError:
            return None
        return (name, entry) if entry is not None else None

    def list(self, *, forgotten: bool = False) -> list[TopicInfo]:
        """All topics, by name; with `forgotten` their tombstones too."""
        return [
            TopicInfo(name, k.version, k.tokens, k.bytes, k.replicas, k.forgotten, k.made_ms, k.branches)
            for name, k in sorted(self._known.items())
            if forgotten or not k.forgotten
        ]

    # ---- writing ----

    async def add(self, name: str, entry: Entry) -> Kept:
        """Offer an entry to a topic's log; returns when the disk has it, or cannot. Raises Overloaded if there are too
        many topics."""
        try:
            held = self.log(name)
        except NotFound:
            if len(self._known) >= MAX_LOGS:
                raise Overloaded(
                    f"{MAX_LOGS} topics are held, which is the limit: `python -m node topics forget` lets some go"
                ) from None
            held = Log()
        taken = held.add(entry)
        if taken in (Taken.ORPHAN, Taken.STALE):
            return Kept(taken, False)
        if taken is not Taken.KNOWN:
            self._hold(name, held)
            self._remember(name, entry)
            if entry.forgotten:
                self._known[name].since = self._clock()
                self._bury()
            else:
                self._compact(name, held)
            if self._files is not None:
                self._wait(name, held, entry)
        return Kept(taken, await self._on_disk(name, held))

    def _wait(self, name: str, held: Log, entry: Entry) -> None:
        """An entry waits for the disk. Of what waits, nothing is kept that the log in memory has let go of: so however
        long a disk fails, what waits has the limits of what is held, `MAX_TOPICS` and `MAX_BYTES`."""
        with self._lock:
            waiting = self._unwritten.setdefault(name, [])
            waiting.append(entry)
            if name in self._compacted or entry.forgotten:  # the file is written anew, from the log
                waiting[:] = [each for each in waiting if held.get(each.version) is not None]

    def add_replica(self, name: str, version: Version, node: str) -> None:
        """Note that a node holds this version of a topic too, if it is still the version held here."""
        known = self._known.get(name)
        if known is not None and known.version == version and node not in known.replicas:
            known.replicas = (*known.replicas, node)

    def _compact(self, name: str, held: Log) -> bool:
        """Let go of what no conversation of a log needs, if it is worth it. Says whether it was."""
        size = self._known[name].bytes
        if size < COMPACT_BYTES or 2 * sum(_bytes(entry.messages) for entry in held.useless()) < size:
            return False
        held.compact()
        self._hold(name, held)
        self._compacted.add(name)
        return True

    def _bury(self) -> None:
        """Let go of tombstones that have served their time."""
        now = self._clock()
        for name in [n for n, k in self._known.items() if k.forgotten and 0 < k.since < now - TOMBSTONE_S]:
            del self._known[name]
            self._logs.pop(name, None)
            if self._files is not None:
                with contextlib.suppress(OSError):
                    self._files.remove(name)

    async def _on_disk(self, name: str, held: Log) -> bool:
        if self._files is None:
            return False
        await asyncio.get_running_loop().run_in_executor(self._writer, self._flush, name, held)
        return name not in self._unwritten

    def _flush(self, name: str = "", held: Log | None = None) -> None:
        """On the writer's thread: what waits of this topic, and if that goes well, of all others."""
        try:
            self._write(name, held)
            for other in list(self._unwritten):
                self._write(other, self._logs.get(other))
        except OSError as e:
            if not self.problem:
                log.error(
                    "conversations are not written, and kept in memory until the disk takes them: %s", e.strerror or e
                )
            self.problem = f"conversations cannot be written ({e.strerror or e}): new turns are in memory only"
        else:
            if self.problem:
                log.warning("conversations are written again, with what had waited")
            self.problem = ""

    def _write(self, name: str, held: Log | None) -> None:
        with self._lock:
            batch = list(self._unwritten.get(name, ()))
        if not batch or held is None or self._files is None:
            return
        if name in self._compacted or any(entry.forgotten for entry in batch):
            self._files.rewrite(name, held.entries)  # what was forgotten leaves the disk too
            self._compacted.discard(name)
        else:
            self._files.append(name, batch, held.entries)
        with self._lock:
            written = {entry.version for entry in batch}
            waiting = self._unwritten.get(name, [])
            waiting[:] = [entry for entry in waiting if entry.version not in written]
            if not waiting:
                self._unwritten.pop(name, None)

    # ---- memory ----

    def _hold(self, name: str, held: Log) -> None:
        head = held.get(held.head)
        before = self._known.get(name)
        replicas = before.replicas if before is not None and before.version == held.head else self._here
        size = sum(_bytes(entry.messages) for entry in held.entries)
        self._bytes += size - (before.bytes if before is not None and name in self._logs else 0)
        since = before.since if before is not None else 0.0
        tokens, made_ms = (head.tokens, head.made_ms) if head else (0, 0)
        branches = len(held.branches())
        self._known[name] = _Known(held.head, tokens, size, held.is_forgotten, replicas, since, made_ms, branches)
        self._logs[name] = held
        self._logs.move_to_end(name)
        while len(self._logs) > 1 and (len(self._logs) > MAX_TOPICS or self._bytes > MAX_BYTES):
            other = self._longest_unused(name)
            del self._logs[other]
            with self._lock:
                lost = self._unwritten.pop(other, [])
            if lost:
                log.error("%d turns are lost here: the disk takes none, and memory is full of others", len(lost))
            self._bytes -= self._known[other].bytes
            if self._files is None:
                del self._known[other]

    def _longest_unused(self, spare: str) -> str:
        """Of the logs that are on disk too; where none is, of all."""
        return next((o for o in self._logs if o not in self._unwritten and o != spare), next(iter(self._logs)))

    def _remember(self, name: str, entry: Entry) -> None:
        if entry.request_id:
            self._requests[entry.request_id] = name, entry.version
            while len(self._requests) > REMEMBERED_REQUESTS:
                self._requests.popitem(last=False)


def _bytes(messages: Sequence[Message]) -> int:
    """Bytes of texts."""
    return sum(
        len(m.content.encode(errors="replace"))
        + sum(len(c.name.encode(errors="replace")) + len(c.arguments.encode(errors="replace")) for c in m.tool_calls)
        for m in messages
    )
