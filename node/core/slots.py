"""Which topic's KV to begin from, and which to let go: decisions only.

A topic's KV is resident (in the context, on a sequence of its own) or parked (a copy in memory); else it is gone and is
prefilled again. What to let go is decided by what it would cost to get it back, times how soon that is likely to be
needed:

    value = seconds to bring it back x uses a turn, lately / room that it takes

Plain LRU looks at neither the cost nor the rate, and on round robin over one topic more than fits it always lets go of
the very one that comes next. Here, among topics of equal value, the one used last goes first: then on round robin all
but one of the topics that fit stay (Belady's choice, since the one used last is the one that comes back last).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A prefix shorter than this is not worth a fork from another topic.
MIN_SHARED = 16
# A use counts for half after this many turns of other topics.
HALF_LIFE = 256
# From another topic whose prompt continues as ours does for at least this share of it, the KV is taken over: a client
# without topic names sends the same conversation again with one more turn.
TAKEOVER = 0.5


@dataclass(frozen=True, slots=True)
class Speeds:
    """What this machine measured, in seconds: prefilling a token; restoring a copy, whatever its size and by size."""

    prefill_s: float = 1e-3
    restore_s: float = 1e-4
    restore_s_per_byte: float = 2e-10


@dataclass(frozen=True, slots=True)
class Held:
    """A topic's KV as far as decisions go. `bytes` is of its parked copy (0: none); `rate` as of turn `used`."""

    topic: str
    tokens: Sequence[int]
    is_resident: bool
    bytes: int = 0
    rate: float = 0.0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """Where to begin: the first `length` tokens of `held`. `take` moves them, else they are shared or copied."""

    held: Held
    length: int
    take: bool


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that are equal."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n  # slices compare in C: halving finds the first difference faster than a loop
    while low + 1 < high:
        middle = (low + high) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle
    return low


def match(held: Iterable[Held], topic: str, prompt: Sequence[int], speeds: Speeds) -> Match | None:
    """The best beginning for a prompt: the topic's own KV, else the longest prefix among others'; None: prefill all.

    At least the prompt's last token is always left to compute, since its logits are needed. A parked copy is used only
    where restoring it is quicker than prefilling what it saves.
    """
    best: Match | None = None
    best_gain = 0.0
    for each in held:
        own = topic != "" and each.topic == topic
        length = min(common_prefix(each.tokens, prompt), len(prompt) - 1)
        if length < (1 if own else MIN_SHARED):
            continue
        gain = length * speeds.prefill_s
        if not each.is_resident:
            gain -= speeds.restore_s + each.bytes * speeds.restore_s_per_byte
        if own:
            gain += speeds.prefill_s / 2  # of equal ones, its own: it need not be kept beside
        if gain > best_gain:
            best_gain = gain
            anonymous = each.topic.startswith("~")
            best = Match(each, length, own or (anonymous and length >= TAKEOVER * len(each.tokens)))
    return best


def rate_now(held: Held, turn: int) -> float:
    """Uses a turn, lately: an exponentially decayed count."""
    return float(held.rate * math.exp2(-(turn - held.used) / HALF_LIFE))


def used(held_rate: float, last: int, turn: int) -> float:
    """The rate after one more use."""
    return held_rate * math.exp2(-(turn - last) / HALF_LIFE) + 1.0


def cost(held: Held, speeds: Speeds, *, keeps_copy: bool) -> float:
    """Seconds to bring a topic back: restored if a copy is kept and that is quicker, else prefilled."""
    prefill = len(held.tokens) * speeds.prefill_s
    if not keeps_copy or not held.bytes:
        return prefill
    return min(prefill, speeds.restore_s + held.bytes * speeds.restore_s_per_byte)


def leave_context(held: Iterable[Held], turn: int, speeds: Speeds) -> list[Held]:
    """Resident topics in the order in which they leave the context: the cheapest to bring back for their room first.

    A topic that can be parked counts as a copy of its own size would cost.
    """
    resident = [h for h in held if h.is_resident]
    return sorted(
        resident,
        key=lambda h: (cost(h, speeds, keeps_copy=True) * rate_now(h, turn) / max(len(h.tokens), 1), -h.used, h.topic),
    )


def leave_memory(held: Iterable[Held], turn: int, speeds: Speeds) -> list[Held]:
    """Parked copies in the order in which they leave memory: the cheapest to prefill again for their bytes first."""
    parked = [h for h in held if h.bytes]
    return sorted(
        parked,
        key=lambda h: (cost(h, speeds, keeps_copy=False) * rate_now(h, turn) / h.bytes, -h.used, h.topic),
    )
