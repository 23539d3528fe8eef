"""One round: something breaks, clients go on asking, it is repaired; then everything that must hold is checked."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import grpc

from chaos.swarm import Machine, Swarm
from node.v1 import generate_pb2, types_pb2

ANSWERS = ("40", "41", "42")
WORDS = 12
# A thought of a few words and one of three answers: a fifth of a second, so that what breaks, breaks in the middle.
MODEL = (
    "fake:answers="
    + "|".join(" ".join(f"thought{i}" for i in range(WORDS)) + f" answer: {a}" for a in ANSWERS)
    + ",tokens_per_s=60"
)
FLAGS = ("--backend", "fake", "--model", MODEL)
CALL_S = 3.0
LATE_S = 1.0
CONVERGED_S = 5.0
CLIENTS = 4
DOINGS = ("kill", "stop", "cable", "split", "loss", "slow", "clock")
# Certificates are valid from an hour before they are made, for a day: within this, a wrong clock must not matter.
CLOCK_S = (-1800.0, 7200.0)


@dataclass
class Asked:
    """One call of a client, as it ended: with an answer or a gRPC code."""

    took_s: float
    answer: generate_pb2.GenerateResponse | None = None
    code: str = "OK"


@dataclass
class Report:
    """What a round found; `wrong` says what must not be."""

    doing: str
    calls: Counter[str] = field(default_factory=Counter)
    converged_s: float = 0.0
    agreed_s: float = 0.0  # until all topics had one version
    turns: int = 0  # of topics, that were acknowledged
    branches: int = 0
    behind: int = 0  # copies of topics that lacked the last turns 5 s after the repair
    longest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Clients:
    """Programs that ask random nodes, all the time but while they are `paused`."""

    def __init__(self, machines: Sequence[Machine], seed: int, patience: float = 1.0) -> None:
        self._machines = machines
        self._late_s = patience * LATE_S
        self._run = threading.Event()
        self._over = False
        self._busy = [threading.Event() for _ in range(CLIENTS)]  # set: idle
        self._asked: list[Asked] = []
        self._round = 0
        self.acknowledged: dict[str, list[str]] = {}  # by topic of this round: what was said
        self._threads = [
            threading.Thread(target=self._ask_on, args=(i, Random(seed * 100 + i)), daemon=True) for i in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def resume(self) -> None:
        self._round += 1
        self.acknowledged = {}
        self._run.set()

    def pause(self) -> list[Asked]:
        """Let the calls in flight end, which they must; all calls since the last time."""
        self._run.clear()
        end = time.monotonic() + 2 * (CALL_S + self._late_s)
        for idle in self._busy:
            idle.wait(max(end - time.monotonic(), 0))
        hung = sum(not idle.is_set() for idle in self._busy)
        asked, self._asked = self._asked, []
        return asked + [Asked(CALL_S + self._late_s + 1, code="HUNG")] * hung

    def close(self) -> None:
        self._over = True
        self._run.set()
        for thread in self._threads:
            thread.join(CALL_S + self._late_s)

    def _ask_on(self, i: int, rng: Random) -> None:
        self._busy[i].set()
        while True:
            self._run.wait()
            if self._over:
                return
            self._busy[i].clear()
            said, topic = f"What is 6 * 7? ({rng.random()})", f"round {self._round} client {i}" if i % 2 else ""
            wish = generate_pb2.GenerateRequest(
                messages=[types_pb2.Message(role="user", content=said)],
                candidates=rng.choice((3, 8, 12)),
                strategy="majority",
                topic=topic,
                append=topic in self.acknowledged,
                request_id=f"{rng.random()}",
            )
            # Who has a topic asks once more elsewhere, as `node.client` does; it is the same request.
            for machine in rng.sample(list(self._machines), 2 if topic else 1):
                done = self._ask(machine, wish)
                self._asked.append(done)
                if done.answer is not None:
                    if topic:
                        self.acknowledged.setdefault(topic, []).append(said)
                    break
            self._busy[i].set()
            time.sleep(0.05)

    def _ask(self, machine: Machine, wish: generate_pb2.GenerateRequest) -> Asked:
        started = time.monotonic()
        done = Asked(0.0)
        try:
            done.answer = machine.generate.Generate(wish, timeout=CALL_S)
        except grpc.RpcError as e:
            done.code = e.code().name  # type: ignore[attr-defined]
        done.took_s = time.monotonic() - started
        return done


def play(swarm: Swarm, clients: Clients, doing: str, rng: Random, breaks_s: float, patience: float = 1.0) -> Report:
    """Break, wait, repair, check. Everything may take `patience` times as long as it should."""
    report = Report(doing)
    victim = rng.choice(swarm.machines)
    clients.resume()
    time.sleep(0.3)
    _break(swarm, victim, doing, rng)
    time.sleep(breaks_s)
    _repair(swarm, victim, doing)
    healed = time.monotonic()
    while not swarm.see_each_other():
        if time.monotonic() - healed > 4 * patience * CONVERGED_S:
            report.wrong.append(f"membership did not converge: {swarm.views()}")
            break
        time.sleep(0.05)
    report.converged_s = time.monotonic() - healed
    if report.converged_s > patience * CONVERGED_S:
        report.wrong.append(f"membership converged only after {report.converged_s:.1f} s")
    asked = clients.pause()
    report.calls.update(a.code for a in asked)
    report.longest_s = max((a.took_s for a in asked), default=0.0)
    for each in asked:
        report.wrong += check(each, patience)
    _look_at_topics(swarm, clients.acknowledged, report)
    end = time.monotonic() + patience * CONVERGED_S
    while any((used := m.status().slots.used) for m in swarm.machines):
        if time.monotonic() > end:
            report.wrong.append(f"{used} sequences are still in use")
            break
        time.sleep(0.05)
    return report


def _look_at_topics(swarm: Swarm, acknowledged: dict[str, list[str]], report: Report) -> None:
    """All that hold a topic agree on it soon; what was acknowledged is in it once, or else in a branch. A copy that
    only lacks the last turns is counted: its node looks for them before it answers, and compares now and then."""
    started = time.monotonic()
    for topic, said in acknowledged.items():
        report.turns += len(said)
        while len(versions := {m.version(topic) for m in swarm.machines} - {None}) != 1:
            if time.monotonic() - started > CONVERGED_S:
                break
            time.sleep(0.05)
        shown = [s for m in swarm.machines if (s := m.show(topic)) is not None]
        last = max(shown, key=lambda s: _order(s.info.version), default=None)
        for each in shown:
            if last is not None and each.info.version != last.info.version:
                report.behind += 1
                if list(each.messages) != list(last.messages[: len(each.messages)]):
                    report.wrong.append(f"{topic!r} has the versions {versions}, which contradict each other")
        told = [Counter(m.content for m in s.messages if m.role == "user") for s in shown]
        branches = {m.content for s in shown for b in s.branches for m in b.messages}
        report.branches += max((len(s.branches) for s in shown), default=0)
        for text in said:
            most = max((t[text] for t in told), default=0)
            if most > 1:
                report.wrong.append(f"{text!r} is in {topic!r} {most} times")
            if not most and text not in branches:
                report.wrong.append(f"{text!r}, acknowledged, is not in {topic!r}")
    report.agreed_s = time.monotonic() - started


def _order(version: types_pb2.Version) -> tuple[int, int, str]:
    return version.epoch, version.turn, version.node_id


def check(asked: Asked, patience: float = 1.0) -> list[str]:
    """What is wrong with how a call ended."""
    wrong = []
    if asked.took_s > CALL_S + patience * LATE_S:
        wrong.append(f"a call of {CALL_S:g} s took {asked.took_s:.1f} s")
    if asked.code in ("INTERNAL", "UNKNOWN", "INVALID_ARGUMENT", "HUNG"):
        wrong.append(f"a call ended with {asked.code}")
    if asked.answer is None:
        return wrong
    if any(w.startswith("answered before") for w in asked.answer.outcome.warnings):
        return wrong  # from the log, where its candidates are not
    outcome, candidates = asked.answer.outcome, {c.id: c for c in asked.answer.candidates}
    if outcome.winner not in candidates and asked.answer.finish_reason != "deadline":
        return [*wrong, f"the winner {outcome.winner} is not among the candidates"]
    if asked.answer.finish_reason == "deadline":  # the best of what was cut off: nobody finished, so nobody voted
        return wrong
    if asked.answer.text != candidates[outcome.winner].text:
        wrong.append("the answer is not what its winner wrote")
    if not asked.answer.text.endswith(tuple(f"answer: {a}" for a in ANSWERS)):
        wrong.append(f"no candidate can have written {asked.answer.text[-40:]!r}")
    pooled = Counter(c.answer for c in candidates.values())
    counted = {c.key: c.count for c in outcome.clusters}
    if counted != dict(pooled):
        wrong.append(f"counted were {counted}, pooled are {dict(pooled)}")
    if pooled[candidates[outcome.winner].answer] != max(pooled.values()):
        wrong.append(f"{candidates[outcome.winner].answer!r} won although pooled are {dict(pooled)}")
    if outcome.finished != len(candidates):
        wrong.append(f"{outcome.finished} finished, {len(candidates)} are shown")
    missing = outcome.planned - outcome.finished
    lost = sum(len(x.candidates) for x in outcome.lost)
    if missing != lost and not outcome.stopped_early:
        wrong.append(f"{missing} candidates are missing, {lost} are named as lost")
    return wrong


def _break(swarm: Swarm, victim: Machine, doing: str, rng: Random) -> None:
    lan = swarm.lan
    if doing == "kill":
        victim.signal(signal.SIGKILL)
        assert victim.process is not None
        victim.process.wait()
    elif doing == "stop":
        victim.signal(signal.SIGSTOP)
    elif doing == "cable":
        lan.link(victim.host, up=False)
    elif doing == "split":
        lan.split(rng.sample(lan.hosts, 2))
    elif doing == "loss":
        lan.lose(5)
    elif doing == "slow":
        lan.limit(5)
    elif doing == "clock":
        victim.set_clock(rng.uniform(*CLOCK_S))


def _repair(swarm: Swarm, victim: Machine, doing: str) -> None:
    lan = swarm.lan
    if doing == "kill":
        swarm.start(victim, *FLAGS)
        swarm.ready([victim])
    elif doing == "stop":
        victim.signal(signal.SIGCONT)
    elif doing == "cable":
        lan.link(victim.host, up=True)
    elif doing == "split":
        lan.split([])
    elif doing == "loss":
        lan.lose(0)
    elif doing == "slow":
        lan.limit(0)
    elif doing == "clock":
        victim.set_clock(0.0)
