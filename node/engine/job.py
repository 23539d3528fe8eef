"""What goes into the scheduler, and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.errors import ConclaveError
from node.types import Candidate, Message, SamplingParams, TokenLogprob, Tool


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt in tokens with the candidates to write. `deadline` is in seconds of the scheduler's clock.

    `topic` names the conversation whose KV it goes on from and which its KV is kept for; empty: none is named, and the
    longest equal prefix of any is used. With `wave`, so many candidates begin at first, the rest when these have all
    but ended, unless they are cancelled before: a vote that is decided by then has spent nothing on them. With
    `is_polled` the candidates are for another node's vote, and nobody reads them as they are written: there are no
    `Text` events, each of which would wake the event loop, and without a topic no `commit` is waited for.
    """

    id: str
    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, int], ...]  # (id, seed)
    params: SamplingParams
    deadline: float | None = None
    topic: str = ""
    wave: int = 0
    is_polled: bool = False
    # What the prompt was made from, for an engine elsewhere, which makes its own tokens of it.
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    is_raw: bool = False


@dataclass(frozen=True, slots=True)
class Prefilling:
    """A step computed a part of the prompt, and more of it is left. `computed` counts the `cached` tokens too."""

    job: str
    computed: int
    cached: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt is computed; `cached` of its tokens were not computed again."""

    job: str
    prompt: int
    cached: int
    queue_ms: float
    prefill_ms: float


@dataclass(frozen=True, slots=True)
class Text:
    """Candidates wrote; one event a step, (candidate id, text) each.

    `logprobs` are those of tokens whose text has come, where they were asked for: (candidate id, tokens) each.
    """

    job: str
    pieces: tuple[tuple[int, str], ...]
    logprobs: tuple[tuple[int, tuple[TokenLogprob, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """A candidate ended; those that were cancelled come too, with what they had written."""

    job: str
    candidate: Candidate
    more: int = 0  # of the same job that ended in the same step and follow at once


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a job that did not fail. Its KV waits for `commit`."""

    job: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a job that failed."""

    job: str
    error: ConclaveError


Event = Prefilling | Prefilled | Text | Done | Ended | Failed


def derive_seed(base: int, candidate: int) -> int:
    """Seed of a candidate, 0 <= seed < 2**32 - 1 (llama.cpp takes 2**32 - 1 for "random"). SplitMix64's mixer."""
    z = (base + candidate * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) % 0xFFFFFFFF


def job(
    id: str,
    prompt: Sequence[int],
    candidates: Sequence[int],
    params: SamplingParams,
    seed: int,
    deadline: float | None = None,
    topic: str = "",
    wave: int = 0,
    *,
    is_polled: bool = False,
    messages: tuple[Message, ...] = (),
    tools: tuple[Tool, ...] = (),
    is_raw: bool = False,
) -> Job:
    """A job whose candidates have seeds derived from one."""
    seeds = tuple((c, derive_seed(seed, c)) for c in candidates)
    return Job(id, tuple(prompt), seeds, params, deadline, topic, wave, is_polled, messages, tools, is_raw)
