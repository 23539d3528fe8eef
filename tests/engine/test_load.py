"""Many clients at once in virtual time, with steps that cost as measured: nobody stands still, little is lost."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from node.engine import batch, pace
from node.engine.backend import Row
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.scheduler import Ended, Prefilled, Scheduler, Text, job
from node.types import SamplingParams
from tests.engine.drive import assert_nothing_leaked

# Half a billion parameters on two cores (scripts/bench/RESULTS.md, kernels): a step, and a row of it, in seconds.
STEP_S, ROW_S = 0.021, 0.0014
# What a row takes for each token that it attends to; fewer rows of a sequence than a tile has take as long as a tile.
REACH_S, TILE = 0.8e-6, 8


@dataclass(frozen=True)
class Costs:
    """Of steps, in seconds."""

    step_s: float = STEP_S
    row_s: float = ROW_S
    reach_s: float = 0.0
    tile: int = TILE


LONG = Costs(reach_s=REACH_S)
# llama.cpp's own kernels, on the same machine: no tile, but rows and what they attend to take several times as long.
STOCK = Costs(0.030, 0.0052, 3.5e-6, 1)


class Machine(FakeBackend):
    """Each decode takes its time, of which the clock tells at once."""

    now = 0.0
    slow = 1.0
    costs = Costs()
    noise: random.Random | None = None

    def takes(self, rows: int, before: int = 0) -> float:
        """Seconds of so many rows, with so many tokens before them in all."""
        costs = self.costs
        return self.slow * (costs.step_s + costs.row_s * rows + costs.reach_s * before)

    def decode(self, rows: Sequence[Row]) -> None:
        super().decode(rows)
        of = Counter(row.sequence for row in rows)
        tile = self.costs.tile
        before = sum(row.position * max(tile / of[row.sequence], 1) for row in rows if of[row.sequence] > 1)
        took = self.takes(len(rows), int(before))
        if self.noise is not None:  # now and then another program has one of the cores for a while
            took *= self.noise.lognormvariate(0, 0.05)
            took += 0.5 * took if self.noise.random() < 0.02 else 0.0
        self.now += took


@dataclass
class Seen:
    """Seconds until the first text, by request; between texts of one; of these, while only the last client's prompt was
    not computed; and until all had ended."""

    waits: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    seconds: float = 0.0


def play(
    clients: Sequence[Sequence[tuple[int, int]]],
    sequences: int = 16,
    slow: float = 1.0,
    *,
    costs: Costs = Costs(),
    noise: random.Random | None = None,
) -> Seen:
    """Clients that each send requests of (prompt, answer) tokens one after the other; on a machine so many times as
    slow."""
    machine = Machine(FakeSpec(), sequences=sequences, context=5000, cells=20_000)
    machine.slow, machine.costs, machine.noise = slow, costs, noise
    scheduler = Scheduler(machine, lambda: machine.now, queue_limit=1000)
    for rows in (1, 4, 16):  # as a node has seen that runs for a while
        scheduler.pace.saw(rows, 0, machine.takes(rows))
    scheduler.pace.saw(0, 512, machine.takes(512, 512 * 256), 256)
    todo = [list(requests) for requests in clients]
    unread = set(range(len(todo)))
    seen, last, began, of = Seen(), dict[str, float](), dict[str, float](), dict[str, int]()

    def ask(client: int) -> None:
        if todo[client]:
            prompt, answer = todo[client].pop(0)
            id = f"{client}-{len(todo[client])}"
            tokens = machine.tokenize("".join(f" {id}-{i}" for i in range(prompt)))
            scheduler.submit(job(id, tokens, [1], SamplingParams(max_tokens=answer, ignore_eos=True), 1))
            began[id], of[id] = machine.now, client

    for client in range(len(todo)):
        ask(client)
    while not scheduler.idle:
        for event in scheduler.step():
            if isinstance(event, Prefilled):
                unread.discard(of[event.job])
            elif isinstance(event, Text):
                first = event.job not in last
                if not first and unread == {len(clients) - 1}:
                    seen.beside.append(machine.now - last[event.job])
                (seen.waits if first else seen.gaps).append(machine.now - (began if first else last)[event.job])
                last[event.job] = machine.now
            elif isinstance(event, Ended):
                scheduler.commit(event.job)
                ask(of[event.job])
    seen.seconds = machine.now
    assert_nothing_leaked(machine, scheduler)
    return seen


def mixed(clients: int, requests: int, seed: int) -> list[list[tuple[int, int]]]:
    rng = random.Random(seed)
    return [[(rng.randint(32, 512), rng.randint(16, 96)) for _ in range(requests)] for _ in range(clients)]


@pytest.mark.parametrize(("clients", "requests"), [(12, 1), (32, 2)])
def test_many_clients_lose_little_against_whole_prompts_first(
    clients: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = [mixed(clients, requests, seed) for seed in range(3)]
    ours = [play(each) for each in work]
    monkeypatch.setattr(pace.Pace, "room", lambda self, writing, waiting, rows: pace.Room(rows))
    first = [play(each) for each in work]
    assert statistics.mean(a.seconds / b.seconds for a, b in zip(ours, first, strict=True)) < 1.04
    assert max(max(seen.gaps) for seen in ours) < 0.4 < max(max(seen.gaps) for seen in first)
    for seen in ours:
        assert max(seen.waits) < 4 * statistics.median(seen.waits)


def test_the_shortest_first_makes_most_wait_less_and_nobody_much_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the oldest first: longest over median is greater, since the median is less."""
    work = [mixed(12, 1, seed) for seed in range(4)]
    ours = [play(each).waits for each in work]
    monkeypatch.setattr(batch, "sorted", lambda requests, key: list(requests), raising=False)
    oldest = [play(each).waits for each in work]
    pairs = list(zip(ours, oldest, strict=True))
    assert statistics.mean(statistics.median(a) / statistics.median(b) for a, b in pairs) < 0.85
    assert statistics.mean(max(a) / max(b) for a, b in pairs) < 1.1


@pytest.mark.parametrize(("clients", "requests", "lost"), [(12, 1, 0.07), (32, 2, 0.03)])
def test_a_large_model_loses_little_too(
    clients: int, requests: int, lost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose steps take as long by themselves as others may be made to wait on a faster machine."""
    work = mixed(clients, requests, 1)
    ours = play(work, slow=10)
    monkeypatch.setattr(pace.Pace, "room", lambda self, writing, waiting, rows: pace.Room(rows))
    first = play(work, slow=10)
    assert ours.seconds < (1 + lost) * first.seconds
    assert max(ours.waits) < 1.25 * max(first.waits)
    assert max(ours.gaps) < 0.35 * max(first.gaps)


def p99(gaps: Sequence[float]) -> float:
    return sorted(gaps)[int(0.99 * len(gaps))]


@pytest.mark.parametrize("noise", [None, 1, 2, 3])
@pytest.mark.parametrize("costs", [Costs(), LONG])
def test_one_long_prompt_makes_nobody_wait_three_times_as_long(costs: Costs, noise: int | None) -> None:
    """The more it holds, the longer each of its rows takes, which the node learns with the first one."""
    for writers in (1, 4, 12):
        rng = random.Random(noise) if noise else None
        work = [[(32, 300)]] * writers
        alone = play(work, costs=costs, noise=rng).gaps
        beside = play([*work, [(4000, 4)]], costs=costs, noise=rng).beside
        assert len(beside) > 50 * writers
        assert p99(beside) < 3 * p99(alone)


@pytest.mark.parametrize("noise", [None, 1])
def test_nor_does_it_with_kernels_that_save_by_fewer_rows(noise: int | None) -> None:
    """Not even at the prompt's end; and it does come to that, with two of its tokens a step at the least."""
    rng = random.Random(noise) if noise else None
    alone = play([[(32, 100)]], costs=STOCK, noise=rng).gaps
    beside = play([[(32, 1800)], [(4000, 4)]], costs=STOCK, noise=rng).beside
    assert len(beside) < 1700
    assert p99(beside) < 3 * p99(alone)


def test_what_waits_for_a_sequence_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told = set()
    fill = batch.fill

    def spy(*args: object) -> batch.Batch:
        told.add(args[-1])
        return fill(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "fill", spy)
    play([[(40, 5)]] * 6, sequences=2)
    assert {4, 2, 0} <= told
