"""Would a vote be over sooner if peers knew how many ballots it still needs? Two nodes in virtual time.

    python scripts/bench/decided.py [--seeds 4] [--quick] [--json]

A node gives the candidates of votes that are nearly decided their sequences first (`Scheduler.expect`). A peer that
computes candidates of that vote is not told. Here two nodes, each a real scheduler over a backend whose steps cost what
was measured, hold votes with each other: shares, waves, counting and early stopping are the real ones, the answers'
keys and lengths are drawn, and a message takes 5 ms. Half of the questions are easy (nine of ten candidates agree), the
others are not. Each client asks its next question when it has the answer to the one before.

Mean time from question to decision over that of today's rule, where a node knows of its own votes only:

    nobody      not even that (the control: what knowing is worth at all)
    peers       peers are told, too
    queue       as today, and what is nearly decided also passes those that wait in the queue
    both        peers are told, and what is nearly decided passes those in their queue too
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.core import placement
from node.core.consensus import Vote, VoteState
from node.engine.backend import Row
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.job import Done, Ended, Event, Job
from node.engine.request import Request
from node.engine.scheduler import Scheduler
from node.types import Ballot, Candidate, EarlyStop, FinishReason, SamplingParams, Strategy
from scripts.bench import running

STEP_S, ROW_S = 0.021, 0.0014  # tests/engine/test_load.py
LINK_S = 0.005
CONTEXT = 2000
FINISHED = (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True)
class Setting:
    """Two nodes of so many sequences, with clients at each that ask votes of `n` candidates."""

    n: int
    sequences: int
    clients: tuple[int, int]
    early: EarlyStop = EarlyStop.ADAPTIVE

    def __str__(self) -> str:
        return f"{self.n} candidates, {self.sequences} sequences, {self.clients[0]} and {self.clients[1]} clients" + (
            "" if self.early is EarlyStop.ADAPTIVE else f", {self.early}"
        )


ADAPTIVE = [
    Setting(8, 16, (2, 2)), Setting(8, 16, (4, 4)), Setting(8, 16, (8, 8)), Setting(8, 16, (6, 1)),
    Setting(12, 16, (6, 6)), Setting(16, 16, (4, 4)), Setting(16, 16, (8, 2)), Setting(8, 8, (4, 4)),
    Setting(16, 8, (4, 1)),
]  # fmt: skip
SETTINGS = [*ADAPTIVE, Setting(8, 16, (4, 4), EarlyStop.EXACT), Setting(16, 16, (8, 8), EarlyStop.EXACT)]
RULES = ("own", "nobody", "peers", "queue", "both")


@dataclass(frozen=True)
class Question:
    """Tokens of its prompt, and of each candidate its answer and how many tokens that has."""

    prompt: int
    keys: tuple[str, ...]
    lengths: tuple[int, ...]


def question(rng: random.Random, n: int) -> Question:
    agree = rng.choice([0.9, 0.45])
    mean = rng.choice([30, 80, 160])
    keys = tuple("a" if rng.random() < agree else rng.choice("bcd") for _ in range(n))
    return Question(rng.randint(60, 300), keys, tuple(max(3, int(rng.lognormvariate(0, 0.4) * mean)) for _ in keys))


class Machine(FakeBackend):
    """Each decode takes its time. A candidate's seed is the length of its answer."""

    now = 0.0

    def decode(self, rows: Sequence[Row]) -> None:
        super().decode(rows)
        self.now += STEP_S + ROW_S * len(rows)

    def _plan(self, prompt: list[int], seed: int) -> list[int]:
        return [1] * seed


class Node:
    """A scheduler, and what is to happen there and when."""

    def __init__(self, id: str, sequences: int, knows_queue: bool) -> None:
        self.id = id
        self.machine = machine = Machine(FakeSpec(), sequences=sequences, context=CONTEXT)
        machine.tokenize("x")
        self.scheduler = Scheduler(machine, lambda: machine.now, queue_limit=10_000)
        for rows in (1, 4, 16):
            self.scheduler.pace.saw(rows, 0, STEP_S + ROW_S * rows)
        self.scheduler.pace.saw(0, 512, STEP_S + ROW_S * 512)
        self.inbox: list[tuple[float, int, Callable[[], None]]] = []
        self.queue = self.scheduler._queue
        self.knows_queue = knows_queue
        if knows_queue:
            self.queue.first = self._first  # type: ignore[method-assign]

    def _first(self, _: Iterable[Request]) -> Request | None:
        return min(self.queue, key=lambda r: r.ballots if r.ballots is not None else 1 << 30, default=None)

    def expect(self, job: str, ballots: int) -> None:
        self.scheduler.expect(job, ballots)
        if self.knows_queue and (waiting := self.queue._requests.get(job)) is not None:
            waiting.ballots = ballots

    @property
    def next(self) -> float | None:
        """When something happens here."""
        if not self.scheduler.idle:
            return self.machine.now
        return max(self.inbox[0][0], self.machine.now) if self.inbox else None


@dataclass
class Turn:
    """A vote that is on its way."""

    home: Node
    question: Question
    vote: Vote
    began: float
    jobs: dict[str, str] = field(default_factory=dict)  # by node
    over: Callable[[], None] = lambda: None


class World:
    """Nodes that vote with each other under one of `RULES`."""

    def __init__(self, setting: Setting, questions: int, seed: int, rule: str) -> None:
        self.setting, self.rule = setting, rule
        self.nodes = [Node(f"n{i}", setting.sequences, rule in ("queue", "both")) for i in range(len(setting.clients))]
        self.took: list[float] = []
        self._turns: dict[str, Turn] = {}
        self._number = count(1)
        rng = random.Random(seed)
        for node, clients in zip(self.nodes, setting.clients, strict=True):
            for _ in range(clients):
                todo = [question(rng, setting.n) for _ in range(questions)]
                self._at(node, rng.uniform(0, 2), lambda node=node, todo=todo: self._ask(node, todo))  # type: ignore[misc]

    def run(self) -> None:
        while True:
            moments = [(moment, i) for i, node in enumerate(self.nodes) if (moment := node.next) is not None]
            if not moments:
                return
            moment, i = min(moments)
            node = self.nodes[i]
            node.machine.now = max(node.machine.now, moment)
            while node.inbox and node.inbox[0][0] <= node.machine.now:
                heapq.heappop(node.inbox)[2]()
            if not node.scheduler.idle:
                self._tell(node, node.scheduler.step())

    def _at(self, node: Node, moment: float, what: Callable[[], None]) -> None:
        heapq.heappush(node.inbox, (moment, next(self._number), what))

    def _send(self, source: Node, target: Node, what: Callable[[], None]) -> None:
        self._at(target, source.machine.now + (0 if source is target else LINK_S), what)

    def _tell(self, node: Node, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Done) and event.candidate.finish_reason in FINISHED:
                turn, candidate = self._turns[event.job], event.candidate
                if turn.home is node:
                    self._count(turn, candidate)
                else:
                    self._send(node, turn.home, lambda t=turn, c=candidate: self._count(t, c))  # type: ignore[misc]
            elif isinstance(event, Ended):
                node.scheduler.commit(event.job)

    def _ask(self, home: Node, todo: list[Question]) -> None:
        if not todo:
            return
        asked, n, number = todo.pop(0), self.setting.n, next(self._number)
        adaptive = self.setting.early is EarlyStop.ADAPTIVE
        vote = Vote(Strategy.MAJORITY, range(1, n + 1), adaptive=adaptive)
        turn = Turn(home, asked, vote, home.machine.now, over=lambda: self._ask(home, todo))
        members = [home, *(node for node in self.nodes if node is not home)]
        free = [placement.Participant(m.id, 20.0, m.scheduler.free_sequences) for m in members]
        ids = iter(range(1, n + 1))
        shares = placement.share(n, free)
        for member in members:
            if (share := shares.get(member.id, 0)) == 0:
                continue
            id = turn.jobs[member.id] = f"{number}-{member.id}"
            self._turns[id] = turn
            candidates = tuple((each, asked.lengths[each - 1]) for each in islice(ids, share))
            job = Job(
                id, tuple(number * 1000 + i for i in range(asked.prompt)), candidates, SamplingParams(max_tokens=600),
                wave=placement.wave(share, n, Strategy.MAJORITY, self.setting.early), is_polled=member is not home,
            )  # fmt: skip
            self._send(home, member, lambda member=member, job=job: member.scheduler.submit(job))  # type: ignore[misc]

    def _count(self, turn: Turn, candidate: Candidate) -> None:
        if turn.vote.state() is not VoteState.PENDING:
            return
        turn.vote.add(Ballot(candidate, turn.question.keys[candidate.id - 1], 1.0, 1.0))
        home, members = turn.home, [node for node in self.nodes if node.id in turn.jobs]
        if turn.vote.state() is VoteState.PENDING:
            missing = turn.vote.missing
            for each in members:
                if self.rule != "nobody" and (each is home or self.rule in ("peers", "both")):
                    self._send(home, each, lambda each=each: each.expect(turn.jobs[each.id], missing))  # type: ignore[misc]
            return
        self.took.append(home.machine.now - turn.began)
        for each in members:
            self._send(home, each, lambda each=each: self._tell(each, each.scheduler.cancel(turn.jobs[each.id])))  # type: ignore[misc]
        self._send(home, home, turn.over)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="two seeds, adaptive votes only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    seeds, settings = (2, ADAPTIVE) if args.quick else (args.seeds, SETTINGS)
    running.expect(seeds * len(settings) * 4)
    rows: list[list[object]] = [
        ["what", "votes", "mean time to decision, s", *(f"{rule}, over it" for rule in RULES[1:])]
    ]
    best = 1.0
    for setting in settings:
        means: dict[str, list[float]] = {rule: [] for rule in RULES}
        votes = 0
        for seed in range(seeds):
            for rule in RULES:
                world = World(setting, max(3, 24 // max(setting.clients)), seed, rule)
                world.run()
                means[rule].append(statistics.mean(world.took))
            votes += len(world.took)
        over = {r: statistics.mean(a / b for a, b in zip(means[r], means["own"], strict=True)) for r in RULES[1:]}
        best = min(best, over["peers"], over["both"] / over["queue"])
        rows.append(
            [setting, votes, f"{statistics.mean(means['own']):.2f}", *(f"{each:.3f}" for each in over.values())]
        )
    running.table(rows)
    running.finish({"best_mean_time_when_peers_know_over_not": best}, as_json=args.json)


if __name__ == "__main__":
    main()
