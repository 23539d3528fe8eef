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

    def lines(self) -> list[str]:
        """As a person reads it: what was found, and what to do about it."""
        advice = [f"     -> {self.advice}"] if self.advice else []
        return [f"{self.level:<5}{self.name}: {self.found}", *advice]
