"""One line of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """`level` is ok, warn or fail; `advice` says what to do, empty when nothing need be done."""

    name: str
    level: str
    found: str
    advice: str = ""
