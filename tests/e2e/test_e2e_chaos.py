"""A short run of `scripts/chaos`, and that its checks can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.__main__ import rounds
from chaos.lan import unavailable
from chaos.round import ANSWERS, CALL_S, DOINGS, Asked, check

from node.v1 import generate_pb2, types_pb2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_round_of_each_kind(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    # How soon things must be right again is for `python scripts/chaos`, on a machine that does nothing else.
    played = list(rounds(len(DOINGS), seed=7, breaks_s=0.5, home=tmp_path, patience=12))
    assert {r.doing for r in played} == set(DOINGS)
    assert sum(r.calls["OK"] for r in played) > 20
    assert [line for r in played for line in r.wrong] == []


def answer(*keys: str, winner: int = 1, text: str = "") -> generate_pb2.GenerateResponse:
    candidates = [types_pb2.Candidate(id=i, text=f"answer: {k}", answer=k) for i, k in enumerate(keys, 1)]
    counts = {k: keys.count(k) for k in keys}
    outcome = types_pb2.Outcome(
        winner=winner,
        clusters=[types_pb2.Cluster(key=k, count=n) for k, n in counts.items()],
        planned=len(keys),
        finished=len(keys),
    )
    text = text or f"answer: {keys[winner - 1]}"
    return generate_pb2.GenerateResponse(text=text, candidates=candidates, outcome=outcome)


def test_what_is_wrong_is_found() -> None:
    good = answer("42", "42", "41")
    assert set(ANSWERS) >= {"42", "41"}
    assert check(Asked(0.1, good)) == []
    assert "took" in check(Asked(CALL_S + 2, good))[0]
    assert check(Asked(0.1, code="INTERNAL")) == ["a call ended with INTERNAL"]
    assert check(Asked(0.1, code="UNAVAILABLE")) == []
    assert "won although" in check(Asked(0.1, answer("42", "42", "41", winner=3)))[0]
    assert "is not among" in check(Asked(0.1, no_winner()))[0]
    assert "is not what its winner wrote" in check(Asked(0.1, answer("42", "41", "42", text="answer: 41")))[0]
    assert any("can have written" in w for w in check(Asked(0.1, answer("42", text="answer: 7"))))
    miscounted = answer("42", "42", "41")
    miscounted.outcome.clusters[0].count = 3
    assert "counted were" in check(Asked(0.1, miscounted))[0]
    missing = answer("42", "42", "41")
    missing.outcome.planned = 5
    assert check(Asked(0.1, missing)) == ["2 candidates are missing, 0 are named as lost"]
    missing.outcome.lost.add(node="x", candidates=[4, 5])
    assert check(Asked(0.1, missing)) == []


def no_winner() -> generate_pb2.GenerateResponse:
    made = answer("42")
    made.outcome.winner = 9
    return made
