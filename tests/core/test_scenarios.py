"""Votes as readable text: each file under `votes/` is a conversation with the vote, command by command.

A command is a line, more lines of input, `----`, and the answer, which ends at a blank line. `#` starts a comment.

    vote STRATEGY ids=1..9 [adaptive=off] [quorum=0.5] [strict]   a new vote
    add                          lines: ID KEY [q=QUALITY] [lp=MEAN LOGPROB] [w=WEIGHT] [ms=LATENCY]; "_" is a blank
    lose IDS NODE REASON…
    outcome [vectors]            `vectors`: by the angles that `said` gave
    said                         lines: ID ANGLE TEXT; an answer whose embedding points at so many degrees
    tally NAME STRATEGY planned=N   lines as under `add`; a node's whole local phase
    elect NAME…                  merges tallies in the given order and elects

Written in the manner of etcd-io/raft's quorum tests. `python tests/core/test_scenarios.py` writes the answers anew.
"""

from __future__ import annotations

import math
import sys
from functools import reduce
from pathlib import Path

import pytest

from node.core.answers import ballot
from node.core.consensus import Vote, VoteState, elect, merge, tally
from node.errors import ConclaveError
from node.types import Ballot, Candidate, FinishReason, Outcome, Strategy, Tally

VOTES = Path(__file__).parent / "votes"


def options(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) if "=" in word else (word, "") for word in words)


def ids(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("..")
        found += range(int(first), int(last or first) + 1)
    return found


def candidate(number: int, text: str, given: dict[str, str]) -> Candidate:
    return Candidate(
        id=number,
        node=given.get("node", "a"),
        text=text,
        tokens=1,
        mean_logprob=float(given.get("lp", "-0.5")),
        finish_reason=FinishReason.STOP,
        latency_ms=float(given.get("ms", "1")),
    )


def read_ballot(line: str) -> Ballot:
    number, key, *rest = line.split()
    given = options(rest)
    key = "" if key == "_" else key
    made = candidate(int(number), key, given)
    return Ballot(made, key, float(given.get("w", "1")), float(given.get("q", "0.5")))


class Scenario:
    """Carries out one file's commands."""

    def __init__(self) -> None:
        self.vote = Vote(Strategy.MAJORITY, [1])
        self.tallies: dict[str, Tally] = {}
        self.vectors: dict[int, tuple[float, float]] = {}

    def run(self, command: str, lines: list[str]) -> str:
        name, *words = command.split()
        try:
            return str(getattr(self, f"do_{name}")(words, lines))
        except ConclaveError as error:
            return f"{type(error).__name__}: {error}"

    def do_vote(self, words: list[str], lines: list[str]) -> str:
        given = options(words[1:])
        self.vote = Vote(
            Strategy(words[0]),
            ids(given["ids"]),
            adaptive=given.get("adaptive") != "off",
            quorum_fraction=float(given.get("quorum", "0.5")),
            strict="strict" in given,
        )
        return self.state()

    def do_add(self, words: list[str], lines: list[str]) -> str:
        answers = []
        for line in lines:
            refused = self.vote.add(read_ballot(line))
            answers.append(f"refused: {refused}" if refused else self.state())
        return "\n".join(answers)

    def do_said(self, words: list[str], lines: list[str]) -> str:
        for line in lines:
            number, angle, text = line.split(maxsplit=2)
            turn = math.radians(float(angle))
            self.vectors[int(number)] = (math.cos(turn), math.sin(turn))
            self.vote.add(ballot(candidate(int(number), text, {}), self.vote.strategy))
        return self.state()

    def do_lose(self, words: list[str], lines: list[str]) -> str:
        lost = self.vote.lose(ids(words[0]), words[1], " ".join(words[2:]))
        return f"lost {shown(lost)}; {self.state()}"

    def do_outcome(self, words: list[str], lines: list[str]) -> str:
        vectors = self.vectors if "vectors" in words else None
        return describe(self.vote.outcome(vectors=vectors, threshold=0.9))

    def do_tally(self, words: list[str], lines: list[str]) -> str:
        planned = int(options(words)["planned"])
        made = tally(map(read_ballot, lines), Strategy(words[1]), planned)
        self.tallies[words[0]] = made
        return "\n".join(clusters(made)) or "no clusters"

    def do_elect(self, words: list[str], lines: list[str]) -> str:
        return describe(elect(reduce(merge, (self.tallies[word] for word in words))))

    def state(self) -> str:
        waiting = f", waits for {shown(self.vote.outstanding)}" if self.vote.state() is VoteState.PENDING else ""
        return f"{self.vote.state()}{waiting}"


def shown(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers)) or "none"


def clusters(counted: Tally | Outcome) -> list[str]:
    return [
        f"  {each.key or '_'}: weight {each.weight:g} of {shown(each.members)}, by {each.medoid.candidate.id}"
        for each in counted.clusters
    ]


def describe(outcome: Outcome) -> str:
    flags = [name for name in ("stopped_early", "disagreement") if getattr(outcome, name)]
    flags += [] if outcome.quorum else ["no quorum"]
    return "\n".join(
        [
            f"winner {outcome.winner}, confidence {outcome.confidence:.3f}, margin {outcome.margin:.3f}",
            f"finished {outcome.finished} of {outcome.planned}, dissent {shown(outcome.dissent)}",
            *([", ".join(flags)] if flags else []),
            *clusters(outcome),
            *(f"lost {shown(loss.candidates)} of {loss.node}: {loss.reason}" for loss in outcome.lost),
            *(f"warning: {warning}" for warning in outcome.warnings),
        ]
    )


def replay(path: Path) -> str:
    """The file as it would read if every expectation were what happens now."""
    scenario = Scenario()
    written: list[str] = []
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        written.append(line)
        if not line.strip() or line.startswith("#"):
            continue
        given: list[str] = []
        for more in lines:
            written.append(more)
            if more == "----":
                break
            given.append(more)
        for expected in lines:  # replaced by what happens
            if not expected.strip():
                break
        written += [scenario.run(line, given), ""]
    return "\n".join(written).rstrip("\n") + "\n"


@pytest.mark.parametrize("path", sorted(VOTES.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    assert replay(path) == path.read_text(encoding="utf-8")


def test_there_are_scenarios() -> None:
    assert len(list(VOTES.glob("*.txt"))) >= 6


if __name__ == "__main__":
    for file in sorted(VOTES.glob("*.txt")) if len(sys.argv) < 2 else map(Path, sys.argv[1:]):
        file.write_text(replay(file), encoding="utf-8")
