"""Many clients at once in virtual time, with steps that cost as measured: nobody stands still, little is lost."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from node.engine import batch, pace
from node.engine.backend import Row
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.scheduler import Ended, Scheduler, Text, job
from node.types import SamplingParams
from tests.engine.drive import assert_nothing_leaked

# Half a billion parameters on two cores (scripts/bench/RESULTS.md, kernels): a step, and a row of it, in seconds.
STEP_S, ROW_S = 0.021, 0.0014


class Machine(FakeBackend):
    """Each decode takes its time, of which the clock tells at once."""

    now = 0.0
    slow = 1.0

    def decode(self, rows: Sequence[Row]) -> None:
        super().decode(rows)
        self.now += self.slow * (STEP_S + ROW_S * len(rows))


@dataclass
class Seen:
    """Seconds until the first text, by request; between texts of one; and until all had ended."""

    waits: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0


def play(clients: Sequence[Sequence[tuple[int, int]]], sequences: int = 16, slow: float = 1.0) -> Seen:
    """Clients that each send requests of (prompt, answer) tokens one after the other; on a machine so many times as
    slow."""
    machine = Machine(FakeSpec(), sequences=sequences, context=5000, cells=20_000)
    machine.slow = slow
    scheduler = Scheduler(machine, lambda: machine.now, queue_limit=1000)
    for rows in (1, 4, 16):  # as a node has seen that runs for a while
        scheduler.pace.saw(rows, 0, slow * (STEP_S + rows * ROW_S))
    scheduler.pace.saw(0, 512, slow * (STEP_S + 512 * ROW_S))
    todo = [list(requests) for requests in clients]
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
            if isinstance(event, Text):
                first = event.job not in last
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
    monkeypatch.setattr(pace.Pace, "room", lambda *_: 1 << 20)
    first = [play(each) for each in work]
    assert statistics.mean(a.seconds / b.seconds for a, b in zip(ours, first, strict=True)) < 1.04
    assert max(max(seen.gaps) for seen in ours) < 0.4 < max(max(seen.gaps) for seen in first)
    for seen in ours:
        assert max(seen.waits) < 4 * statistics.median(seen.waits)


@pytest.mark.parametrize(("clients", "requests", "lost"), [(12, 1, 0.07), (32, 2, 0.03)])
def test_a_large_model_loses_little_too(
    clients: int, requests: int, lost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose steps take as long by themselves as others may be made to wait on a faster machine."""
    work = mixed(clients, requests, 1)
    ours = play(work, slow=10)
    monkeypatch.setattr(pace.Pace, "room", lambda *_: 1 << 20)
    first = play(work, slow=10)
    assert ours.seconds < (1 + lost) * first.seconds
    assert max(ours.waits) < 1.25 * max(first.waits)
    assert max(ours.gaps) < 0.35 * max(first.gaps)


def test_one_long_prompt_makes_nobody_wait_three_times_as_long() -> None:
    for writers in (1, 4, 12):
        work = [[(32, 90)]] * writers
        alone = play(work).gaps
        beside = play([*work, [(4000, 4)]]).gaps
        assert sorted(beside)[int(0.99 * len(beside))] < 3 * sorted(alone)[int(0.99 * len(alone))]


def test_what_waits_for_a_sequence_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told = set()
    fill = batch.fill

    def spy(*args: object) -> batch.Batch:
        told.add(args[-1])
        return fill(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "fill", spy)
    play([[(40, 5)]] * 6, sequences=2)
    assert {4, 2, 0} <= told
