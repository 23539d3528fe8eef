"""What a topic's KV is worth, and which to let go: decisions only. Which to begin from: `node.core.prefixes`.

A topic's KV is resident (in the context, on a sequence of its own) or parked (a copy in memory or on disk); else it is
gone and is prefilled again. What to let go is decided by what it would cost to get it back, how long until that is
likely to be needed, and the room that it takes:

    value = seconds to bring it back / (turns until it is used again x room)

When a topic comes back is guessed from the turns between its uses (Belady's rule with a forecast): one that came every
eighty turns, forty turns ago, is due in forty. One that is overdue is less likely to come the longer it stays away. So
on round robin over more topics than fit, where plain LRU lets go of the very one that comes next, those used last
go, and the rest stays; and what was left alone for long goes before what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A prefix shorter than this is not worth a fork from another topic.
MIN_SHARED = 16
# From another topic whose prompt continues as ours does for at least this share of it, the KV is taken over: a client
# without topic names sends the same conversation again with one more turn.
TAKEOVER = 0.5


@dataclass(frozen=True, slots=True)
class Speeds:
    """What this machine measured, in seconds: prefilling a token; restoring a copy, whatever its size and by size; and
    reading it from disk before."""

    prefill_s: float = 1e-3
    restore_s: float = 1e-4
    restore_s_per_byte: float = 2e-10
    disk_s_per_byte: float = 1e-9
    is_measured: bool = False  # as long as not, these are guesses


@dataclass(frozen=True, slots=True)
class Held:
    """A topic's KV as far as decisions go. `bytes` is of its parked copy (0: none).

    It was used last at turn `used`, and before that about every `interval` turns (0: not known, it was used once).
    """

    topic: str
    tokens: Sequence[int]
    is_resident: bool
    bytes: int = 0
    is_on_disk: bool = False
    interval: float = 0.0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """Where to begin: the first `length` tokens of `held`. `take` moves them, else they are shared or copied."""

    held: Held
    length: int
    take: bool


def common_prefix(a: Sequence[int], b: Sequence[int], start: int = 0, end: int | None = None) -> int:
    """Number of leading tokens that are equal, of which the first `start` are known to be; `end` of them at most."""
    # Slices compare in C. They double from the beginning on, as most others differ early; the one with the first
    # difference is halved.
    n = min(len(a), len(b)) if end is None else min(len(a), len(b), end)
    low, size = start, MIN_SHARED
    while a[low : low + size] == b[low : low + size]:
        low += size
        if low >= n:
            return n
        size *= 2
    high = min(low + size, n)
    if a[low:high] == b[low:high]:
        return n  # one of them goes on
    while low + 1 < high:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def interval_after(interval: float, last: int, turn: int) -> float:
    """The turns between uses, after one more use at `turn`."""
    gap = float(turn - last)
    return gap if interval == 0.0 else (interval + gap) / 2


def wait(held: Held, turn: int, usual: float) -> float:
    """Turns until a topic is likely to be used again, at least one. `usual` stands in for an interval not known."""
    interval, elapsed = held.interval or usual, turn - held.used
    return max(interval - elapsed if elapsed < interval else float(elapsed), 1.0)


def restoring(held: Held, speeds: Speeds) -> float:
    """Seconds to put a parked copy into the context."""
    by_size = speeds.restore_s_per_byte + (speeds.disk_s_per_byte if held.is_on_disk else 0.0)
    return speeds.restore_s + held.bytes * by_size


def worth_from(speeds: Speeds, bytes_per_token: float, more_s_per_byte: float = 0.0) -> int:
    """Tokens from which on restoring a copy is quicker than prefilling; 0: it never is. `more_s_per_byte` is what it
    takes to get at the copy (a disk, a link)."""
    saved = speeds.prefill_s - bytes_per_token * (speeds.restore_s_per_byte + more_s_per_byte)
    return int(speeds.restore_s / saved) + 1 if saved > 0 and bytes_per_token else 0


def cost(held: Held, speeds: Speeds, *, keeps_copy: bool) -> float:
    """Seconds to bring a topic back: restored if a copy is kept and that is quicker, else prefilled."""
    prefill = len(held.tokens) * speeds.prefill_s
    if not keeps_copy or not held.bytes:
        return prefill
    return min(prefill, restoring(held, speeds))


def leave_context(held: Iterable[Held], turn: int, speeds: Speeds) -> list[Held]:
    """Resident topics in the order in which they leave the context: the least valuable first."""
    return _by_value([h for h in held if h.is_resident], turn, speeds, keeps_copy=True)


def leave_memory(held: Iterable[Held], turn: int, speeds: Speeds) -> list[Held]:
    """Copies parked in memory in the order in which they leave it: the least valuable first."""
    return _by_value([h for h in held if h.bytes and not h.is_on_disk], turn, speeds, keeps_copy=False)


def leave_disk(held: Iterable[Held], turn: int, speeds: Speeds) -> list[Held]:
    """Copies on disk in the order in which they are forgotten: the least valuable first."""
    return _by_value([h for h in held if h.is_on_disk], turn, speeds, keeps_copy=False)


def _by_value(held: list[Held], turn: int, speeds: Speeds, *, keeps_copy: bool) -> list[Held]:
    usual = 2.0 * len(held)

    def value(h: Held) -> tuple[float, int, str]:
        room = h.bytes or len(h.tokens) or 1
        return cost(h, speeds, keeps_copy=keeps_copy) / (wait(h, turn, usual) * room), -h.used, h.topic

    return sorted(held, key=value)
