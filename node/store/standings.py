"""The record of each model, in memory and in one file of the data directory."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node import disk
from node.core.record import MOST_CANDIDATES, MOST_VOTES, Record

log = logging.getLogger(__name__)

MOST_MODELS = 64
MAX_BYTES = 1 << 20
MAX_NAME = 128  # characters of a fingerprint or a model's name, as `node.wire` lets them in
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Known:
    """A model as it is listed: its fingerprint, the name under which it was last met, its record."""

    fingerprint: str
    name: str
    record: Record


class Standings:
    """What this node knows of models, by fingerprint. `path` None keeps it in memory.

    At most `MOST_MODELS`: whoever has been in the fewest votes goes first, the longest known among equals, so that
    models that come and go push out each other and none that is well known. A file that is not ours counts as none:
    what is lost is learnt again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()  # one save at a time
        self._models: dict[str, Known] = _read(path) if path is not None else {}

    def get(self, fingerprints: Iterable[str]) -> dict[str, Record]:
        """The records of models; empty ones of those that are not known."""
        return {f: self._models[f].record if f in self._models else Record() for f in fingerprints}

    def put(self, records: Mapping[str, Record], names: Mapping[str, str]) -> None:
        """Take new records in; `names` are of the same models. `save` keeps them."""
        for fingerprint, record in records.items():
            name = names.get(fingerprint, "")[:MAX_NAME]
            self._models[fingerprint[:MAX_NAME]] = Known(fingerprint[:MAX_NAME], name, record)
        while len(self._models) > MOST_MODELS:
            del self._models[min(self._models.values(), key=lambda known: known.record.votes).fingerprint]

    def list(self) -> list[Known]:
        """All models, the most votes first."""
        return sorted(self._models.values(), key=lambda known: -known.record.votes)

    def save(self) -> None:
        """Write the file in one step; a disk that takes nothing costs the log a line. Blocks."""
        if self._path is None:
            return
        with self._lock:
            models = [
                {
                    "fingerprint": k.fingerprint,
                    "name": k.name,
                    "votes": k.record.votes,
                    "agreed": k.record.agreed,
                    "candidates": k.record.candidates,
                    "logprob": k.record.logprob,
                }
                for k in tuple(self._models.values())
            ]
            temporary = self._path.with_suffix(".new")
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    json.dump({"conclave_models": FORMAT, "models": models}, file)
                    file.flush()
                    disk.sync(file.fileno())
                temporary.rename(self._path)
            except OSError as e:
                log.warning("the record of models cannot be kept in %s: %s", self._path, e.strerror or e)


def _read(path: Path) -> dict[str, Known]:
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(MAX_BYTES))
        if said["conclave_models"] != FORMAT:
            return {}
        found = [_known(model) for model in said["models"][:MOST_MODELS]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
        if not isinstance(e, FileNotFoundError):
            log.warning("the record of models in %s cannot be read and begins anew: %s", path, type(e).__name__)
        return {}
    return {known.fingerprint: known for known in found}


def _known(said: Any) -> Known:
    """A model of the file. Raises ValueError, TypeError or KeyError."""

    def number(name: str, low: float, high: float) -> float:
        value = float(said[name])
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(name)
        return value

    votes = number("votes", 0.0, MOST_VOTES + 1e-6)
    record = Record(
        votes,
        number("agreed", 0.0, votes + 1e-6),
        number("candidates", 0.0, MOST_CANDIDATES + 1e-6),
        number("logprob", -1e3, 0.0),
    )
    return Known(str(said["fingerprint"])[:MAX_NAME], str(said["name"])[:MAX_NAME], record)
