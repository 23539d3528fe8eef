"""Bringing a model here from several peers at once: each piece from one of them, checked as it comes.

A source that breaks off is called again a few times and then left out; one that sends anything but what its description
says is left out at once, and named. Its pieces come from the others, or from the next attempt: what is here stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from node import wire
from node.core.manifest import Manifest, check
from node.core.pieces import Pieces
from node.download.offers import Choice
from node.errors import BackendError, ConclaveError, CorruptSnapshot, Overloaded, PeerUnavailable
from node.mesh.peer import Peer
from node.models import split
from node.models.partial import Partial
from node.models.shared import remember
from node.v1 import models_pb2

log = logging.getLogger(__name__)

MOST_SOURCES = 8
AT_ONCE = 3  # pieces of one source: the next are on their way while one is checked and written
SETTLE = 128 << 20  # bytes: so often the disk is asked to take what came
SETTLE_S = 0.2  # between looks whether that is due
HASHING_BYTES_PER_S = 30e6  # a node that describes a model reads it: slower than this is a hang
DESCRIBE_S = 20.0
LATE_S = 5.0  # when one has described it, the others have so much longer
STALL_S = 20.0  # without a byte
RETRIES_S = (0.5, 1.0, 2.0, 4.0)
BUSY_S = 1.0
MOST_BUSY = 60


@dataclass
class Arrived:
    """How far a download is. `tell` is called when something changes, `say` with a line for a person."""

    total: int = 0
    done: int = 0
    resumed: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    tell: Callable[[Arrived], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None

    @property
    def share(self) -> float:
        """How much of it is here, 0..1."""
        return self.done / self.total if self.total else 0.0


async def fetch(
    choice: Choice, peers: Mapping[str, Peer], folder: Path, arrived: Arrived | None = None, data: Path | None = None
) -> Path:
    """Bring a model into a folder; its first file. Raises ConclaveError with one line that names who failed and why.

    What came before an end of any kind stays for the next call. With `data` (`node.home.Home.data`) its hashes are kept
    for when this node gives it to others.
    """
    arrived = arrived or Arrived()
    manifest, sources = await _describe(choice, peers, arrived)
    path = await _Download(manifest, sources, folder, arrived).run()
    if data is not None:
        await asyncio.to_thread(remember, data, [folder / file.name for file in manifest.files], manifest)
    return path


async def _describe(choice: Choice, peers: Mapping[str, Peer], arrived: Arrived) -> tuple[Manifest, dict[str, Peer]]:
    """The description that most sources give, and who gives it. Raises PeerUnavailable or BackendError."""
    asked = {
        asyncio.create_task(_described(choice, peers[id])): id for id in choice.nodes[:MOST_SOURCES] if id in peers
    }
    told: dict[str, Manifest] = {}
    problems: list[str] = []
    within: float | None = None
    waiting = set(asked)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in done:
                try:
                    told[asked[task]] = task.result()
                    within = LATE_S
                except ConclaveError as e:
                    problems.append(e.message)
                    arrived.say(f"node {asked[task]} is left out: {e.message}")
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    if not told:
        raise PeerUnavailable(f"{choice.name} cannot be had from any node: {'; '.join(problems) or 'none is left'}")
    counts = Counter(m.digest for m in told.values())
    digest = max(counts, key=lambda d: (counts[d], d))
    for id, manifest in told.items():
        if manifest.digest != digest:
            arrived.say(
                f"node {id} is left out: its {choice.name} is another file than that of {counts[digest]} others"
            )
    sources = {id: peers[id] for id, manifest in told.items() if manifest.digest == digest}
    return told[next(iter(sources))], sources


async def _described(choice: Choice, peer: Peer) -> Manifest:
    request = models_pb2.ModelsDescribeRequest(name=choice.name)
    answer = await peer.call(peer.models.Describe, request, DESCRIBE_S + choice.size / HASHING_BYTES_PER_S)
    found = Manifest(wire.model_files(answer.files))
    problem = check(found)
    if not problem and [(f.name, f.size) for f in found.files] != [(f.name, f.size) for f in choice.files]:
        problem = "it describes other files than it listed"
    if problem:
        raise _lies(peer.id, problem)
    return found


class _Download:
    """One model on its way."""

    def __init__(self, manifest: Manifest, sources: dict[str, Peer], folder: Path, arrived: Arrived) -> None:
        self._manifest = manifest
        self._sources = sources
        self._folder = folder
        self._arrived = arrived
        self._changed = asyncio.Event()  # a new one each time that a piece is free again
        self._problems: dict[str, str] = {}
        self._pieces = Pieces(0)

    async def run(self) -> Path:
        arrived, manifest = self._arrived, self._manifest
        with Partial(self._folder, manifest) as partial:
            held = await asyncio.to_thread(partial.held)
            arrived.total = manifest.size
            arrived.done = arrived.resumed = sum(manifest.piece(i).size for i in held)
            arrived.tell(arrived)
            self._pieces = Pieces(manifest.count, held)
            await self._bring_all(partial)
            if self._pieces.left:
                reasons = "; ".join(f"node {id}: {why}" for id, why in self._problems.items())
                raise PeerUnavailable(
                    f"{manifest.files[0].name} is here to {100 * arrived.done // manifest.size} %, and no node gives "
                    f"the rest ({reasons}): pull again, it resumes"
                )
            return await asyncio.to_thread(partial.finish, self._check)

    def _check(self, path: Path) -> None:
        """What came is what was described; it should be a model too."""
        try:
            split.read(path)
        except ConclaveError as e:
            raise BackendError(
                f"what {', '.join(self._sources)} gave is no model: {e.message}; it was removed"
            ) from None

    async def _bring_all(self, partial: Partial) -> None:
        """Until all is here, or no source is left. Raises NotReady where the disk takes no more."""
        bringing = [
            asyncio.create_task(self._bring(id, peer, partial))
            for id, peer in self._sources.items()
            for _ in range(AT_ONCE)
        ]
        pending = set(bringing)
        is_over = asyncio.Event()
        settling = asyncio.create_task(self._settle(partial, is_over))
        try:
            while pending and self._pieces.left:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            is_over.set()
            for task in pending:  # what they bring has come from another source
                task.cancel()
            # Those that have ended too: several that fail together say the same, and asyncio complains of what nobody
            # took from them.
            await asyncio.gather(*bringing, settling, return_exceptions=True)

    async def _settle(self, partial: Partial, is_over: asyncio.Event) -> None:
        """The disk writes while the network reads: all at once in the end would be a wait for both."""
        settled = self._arrived.done
        while not is_over.is_set():
            if self._arrived.done - settled >= SETTLE:
                settled = self._arrived.done
                await asyncio.to_thread(partial.settle)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), SETTLE_S)

    async def _bring(self, id: str, peer: Peer, partial: Partial) -> None:
        """Bring pieces from one source, until there are none or it fails for good."""
        failures = busy = 0
        while id not in self._problems and self._pieces.left:
            index = self._pieces.take(id)
            if index is None:
                await self._changed.wait()
                continue
            try:
                parts = await self._piece(peer, index)
            except ConclaveError as e:
                pause = 0.0
                if isinstance(e, Overloaded) and busy < MOST_BUSY:
                    busy, pause = busy + 1, BUSY_S
                elif isinstance(e, PeerUnavailable) and failures < len(RETRIES_S):
                    failures, pause = failures + 1, RETRIES_S[failures]
                self._give_back(id, index, "" if pause else e.message)
                await asyncio.sleep(pause)
                continue
            if not await asyncio.to_thread(partial.put, index, parts):
                self._give_back(id, index, _lies(id, "a piece has other bytes than it described").message)
                continue
            failures = busy = 0
            if self._pieces.done(index):
                size = self._manifest.piece(index).size
                self._arrived.done += size
                self._arrived.by_source[id] += size
                self._arrived.tell(self._arrived)

    def _give_back(self, id: str, index: int, why: str) -> None:
        """A piece did not come from a source, which is out of it if there is a reason."""
        if why and id not in self._problems:
            self._problems[id] = why
            self._arrived.say(f"node {id} is left out: {why}")
        self._pieces.failed(index, id)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _piece(self, peer: Peer, index: int) -> list[bytes]:
        """The bytes of a piece as they come, not checked but for their number. Raises ConclaveError."""
        size, got = self._manifest.piece(index).size, 0
        parts: list[bytes] = []
        request = models_pb2.ModelsFetchRequest(digest=self._manifest.digest, piece=index)
        async with contextlib.aclosing(peer.stream(peer.models.Fetch, request, STALL_S + size / 1e4)) as answers:
            while True:
                try:
                    async with asyncio.timeout(STALL_S):
                        part = await anext(answers, None)
                except TimeoutError:
                    raise PeerUnavailable(f"node {peer.id} sent nothing for {STALL_S:g} s") from None
                if part is None:
                    break
                data = part.data  # a copy each time that it is looked at
                got += len(data)
                if got > size or not data:
                    raise _lies(peer.id, "a piece is longer than it described" if data else "it sends nothing")
                parts.append(data)
        if got != size:
            raise _lies(peer.id, "a piece is shorter than it described")
        return parts


def _lies(id: str, what: str) -> CorruptSnapshot:
    return CorruptSnapshot(f"node {id} does not send what it should: {what}")
