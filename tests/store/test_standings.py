"""The record of models on disk: what is put comes back, what is broken begins anew, what is many is capped."""

import json
import os
import stat
from pathlib import Path

import pytest

from node.core.record import Record
from node.store.standings import MOST_MODELS, Standings


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "standings.json"
    made = Standings(path)
    made.put({"a": Record(3, 2.5, 9, -0.25), "b": Record(7, 1, 4, -1.5)}, {"a": "Ä model", "b": "other"})
    made.save()
    again = Standings(path)
    assert again.list() == made.list()
    assert [(k.fingerprint, k.name) for k in again.list()] == [("b", "other"), ("a", "Ä model")]
    assert again.get(["a", "never met"]) == {"a": Record(3, 2.5, 9, -0.25), "never met": Record()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["standings.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"conclave_models": 2, "models": []}',
        '{"conclave_models": 1, "models": 7}',
        '{"conclave_models": 1, "models": [{"fingerprint": "a"}]}',
        "[" * 100_000,
        *(
            json.dumps({"conclave_models": 1, "models": [{"fingerprint": "a", "name": "", "candidates": 1} | bad]})
            for bad in (
                {"votes": 1e9, "agreed": 1, "logprob": -1},
                {"votes": 2, "agreed": 3, "logprob": -1},
                {"votes": -1, "agreed": 0, "logprob": -1},
                {"votes": 2, "agreed": float("nan"), "logprob": -1},
                {"votes": 2, "agreed": 1, "logprob": 5},
                {"votes": "x", "agreed": 1, "logprob": 0},
            )
        ),
    ],
)
def test_a_file_that_is_not_ours_begins_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "standings.json"
    path.write_text(text)
    made = Standings(path)
    assert made.list() == []
    made.put({"a": Record(1, 1)}, {})
    made.save()
    assert Standings(path).get(["a"]) == {"a": Record(1, 1)}


def test_a_disk_that_takes_nothing_costs_nothing_but_the_file(tmp_path: Path) -> None:
    made = Standings(tmp_path / "nowhere" / "standings.json")
    made.put({"a": Record(1, 1)}, {})
    made.save()
    assert made.get(["a"]) == {"a": Record(1, 1)}


def test_models_that_come_and_go_push_out_each_other() -> None:
    made = Standings()
    made.put({"known": Record(50, 40)}, {"known": "n" * 1000})
    for i in range(3 * MOST_MODELS):
        made.put({f"stranger {i}": Record(1, 1)}, {})
    assert len(made.list()) == MOST_MODELS
    assert made.list()[0].fingerprint == "known"
    assert len(made.list()[0].name) == 128
    assert made.get([f"stranger {3 * MOST_MODELS - 1}"]) != {f"stranger {3 * MOST_MODELS - 1}": Record()}
