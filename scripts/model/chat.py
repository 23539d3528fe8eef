"""Whole conversations for training: sums, facts, small talk, honest ignorance and tools, mixed and of many lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from scripts.model import facts as f
from scripts.model import talk, tools
from scripts.model.problems import problem
from scripts.model.sums import drill, sum_problem
from scripts.model.template import Message

# Share of turns of each kind; within "sum" a fifth are lists of small sums, a quarter bare sums.
WEIGHTS = {"sum": 0.45, "tell": 0.15, "ask": 0.19, "talk": 0.08, "unknown": 0.06, "tool": 0.07}
# Lengths of conversations in tokens (at least, at most) with their shares: mixed from the very start.
LENGTHS = (((40, 130), (60, 260), (150, 500)), (0.45, 0.32, 0.23))
TOOLS_SHARE = 0.19
SYSTEM_SHARE = 0.12
UNTOLD_SHARE = 0.3  # of the questions about facts ask for something never said
SYSTEMS = (
    "You are a helpful assistant.",
    "You are Conclave's small demonstration model.",
    "You are a careful assistant. Answer briefly.",
    "Be brief.",
    "Answer with a last line `answer: N`.",
    "You are a helpful assistant. Think step by step.",
)


@dataclass(slots=True)
class Conversation:
    """Messages as an API client would send them, and the tools listed, if any."""

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None

    def say(self, user: str, assistant: str) -> None:
        """Add a user's turn and its answer."""
        self.messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]

    def size(self) -> int:
        """A rough size in tokens: the tokenizer gives about one token for 2.6 characters of this text."""
        chars = sum(len(str(m.get("content") or m.get("tool_calls"))) + 22 for m in self.messages)
        return (chars + sum(len(str(t)) for t in self.tools or ())) * 10 // 26


def conversation(rng: random.Random, tools_share: float = TOOLS_SHARE, late: bool = False) -> Conversation:
    """One conversation of a random length; `tools_share` of them list tools.

    The `late` ones have tools with longer descriptions and larger word problems.
    """
    low, high = rng.choices(*LENGTHS)[0]
    target = rng.randint(low, high)
    made, listed, taken = Conversation(), [], set[str]()
    if rng.random() < SYSTEM_SHARE:
        made.messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    if rng.random() < tools_share:
        listed = [tools.tool(rng, taken, late) for _ in range(rng.choices((1, 2, 3), (5, 4, 2))[0])]
        made.tools = [t.schema for t in listed]
        target += made.size()
    known: list[f.Fact] = []
    kinds = list(WEIGHTS)
    weights = [WEIGHTS[k] * (10 if listed else 0.25) if k == "tool" else WEIGHTS[k] for k in kinds]
    while True:
        _turn(rng, rng.choices(kinds, weights)[0], made, known, listed, taken, late)
        if made.size() >= target:
            return made


def _turn(
    rng: random.Random,
    kind: str,
    made: Conversation,
    known: list[f.Fact],
    listed: list[tools.Tool],
    taken: set[str],
    late: bool,
) -> None:
    if kind == "sum":
        draw = rng.random()
        if draw < 0.2:
            made.say(*drill(rng))
        else:
            drawn = sum_problem(rng) if draw < 0.45 else problem(rng, late and rng.random() < 0.6)
            made.say(drawn.question, drawn.work)
    elif kind == "tell":
        told: list[f.Fact] = []
        for _ in range(rng.choices((1, 2, 3), (7, 2, 1))[0]):
            told.append(f.new_fact(rng, known + told))
        if rng.random() < 0.06:
            said, _ = f.telling(rng, told)
            made.say(f"{said.rstrip('.!')}. {told[0].ask}", told[0].answer)
        else:
            made.say(*f.telling(rng, told))
        known += told
    elif kind == "ask":
        for _ in range(rng.choices((1, 2), (7, 3))[0]):
            if not known and rng.random() < 0.6:
                _turn(rng, "tell", made, known, listed, taken, late)
            if known and rng.random() >= UNTOLD_SHARE:
                # The oldest fact is asked for more often: recall over a distance is the harder thing.
                asked = known[0] if rng.random() < 0.4 else rng.choice(known)
                made.say(asked.ask, asked.answer)
            else:
                never = f.new_fact(rng, known)
                made.say(never.ask, never.unknown)
    elif kind == "talk":
        made.say(*(talk.small_talk(rng) if rng.random() < 0.45 else talk.echo(rng)))
    elif kind == "unknown":
        made.say(*talk.unknown(rng))
    elif listed and rng.random() < 0.78:
        wanted = rng.choice(listed)
        said, arguments = tools.request(rng, wanted, late)
        made.messages += [{"role": "user", "content": said}, tools.call(wanted, arguments)]
        if rng.random() < 0.75:
            output, answer = tools.result(rng, wanted, arguments)
            made.messages += [{"role": "tool", "content": output}, {"role": "assistant", "content": answer}]
    else:
        said, _ = tools.request(rng, tools.tool(rng, set(taken)))
        made.say(said, tools.NO_TOOL)
