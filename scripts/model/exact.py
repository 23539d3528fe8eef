"""Held-out conversations, and how often the network says every token of an answer as it should (teacher-forced)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from scripts.model import facts as f
from scripts.model import talk, tools
from scripts.model.chat import Conversation
from scripts.model.network import Network
from scripts.model.problems import PLAIN_STEPS, held_out, problem
from scripts.model.sums import sum_problem

Encoder = Callable[[Tokenizer, list[dict[str, Any]], list[dict[str, Any]] | None], tuple[list[int], list[bool]]]


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation whose last message is the answer that is wanted."""

    chat: Conversation

    @property
    def wanted(self) -> str:
        """The last answer's text."""
        return self.chat.messages[-1]["content"]


def recall(rng: random.Random, tokens: int, told: bool) -> Case:
    """Three facts, some `tokens` of other talk, then a question about one of them, or about something never told."""
    chat, known = Conversation(), list[f.Fact]()
    for _ in range(3):
        known.append(f.new_fact(rng, known))
        chat.say(*f.telling(rng, known[-1:]))
    goal = chat.size() + tokens
    while chat.size() < goal:
        kind = rng.randrange(4)
        if kind == 0:
            chat.say(*talk.small_talk(rng))
        elif kind == 1:
            chat.say(*talk.unknown(rng))
        else:
            drawn = problem(rng) if kind == 2 else sum_problem(rng)
            chat.say(drawn.question, drawn.work)
    asked = rng.choice(known) if told else f.new_fact(rng, known)
    chat.say(asked.ask, asked.answer if told else asked.unknown)
    return Case(chat)


def tool_case(rng: random.Random, kind: str) -> Case:
    """With two tools listed: a `call`, an `answer` from a result, or a request for an `unlisted` tool."""
    taken: set[str] = set()
    listed = [tools.tool(rng, taken) for _ in range(2)]
    chat = Conversation(tools=[t.schema for t in listed])
    if kind == "unlisted":
        said, _ = tools.request(rng, tools.tool(rng, set(taken)))
        chat.say(said, tools.NO_TOOL)
        return Case(chat)
    wanted = rng.choice(listed)
    said, arguments = tools.request(rng, wanted)
    chat.messages += [{"role": "user", "content": said}, tools.call(wanted, arguments)]
    if kind == "answer":
        output, answer = tools.result(rng, wanted, arguments)
        chat.messages += [{"role": "tool", "content": output}, {"role": "assistant", "content": answer}]
    return Case(chat)


def single(question: str, answer: str) -> Case:
    """One question, one answer."""
    chat = Conversation()
    chat.say(question, answer)
    return Case(chat)


def cases(n: int, seed: int) -> dict[str, list[Case]]:
    """`n` held-out cases of each kind. Sums and problems are kept from training by their key, the rest by the seed."""
    rng = random.Random(f"cases {seed}")
    out = {
        "problems": [single(p.question, p.work) for p in held_out(n, seed, PLAIN_STEPS, big=False)],
        "sums": [single(p.question, p.work) for p in (sum_problem(rng, kept=True) for _ in range(n))],
    }
    for distance in (0, 100, 200, 300, 450):
        out[f"recall {distance}"] = [recall(rng, distance, told=True) for _ in range(n)]
    for distance in (0, 200, 450):
        out[f"not told {distance}"] = [recall(rng, distance, told=False) for _ in range(n)]
    for kind in ("call", "answer", "unlisted"):
        out[f"tool {kind}"] = [tool_case(rng, kind) for _ in range(n)]
    out["talk"] = [single(*talk.small_talk(rng)) for _ in range(n)]
    out["unknown"] = [single(talk.unknown(rng)[0], talk.UNKNOWN[0]) for _ in range(n)]
    out["echo"] = [single(*talk.echo(rng)) for _ in range(n)]
    return out


@torch.inference_mode()
def quick_scores(net: Network, tok: Tokenizer, encode: Encoder, n: int = 40, seed: int = 1) -> dict[str, float]:
    """Share of each kind of case whose last answer is right in every token, given the right tokens before it."""
    scores = {}
    for kind, made in cases(n, seed).items():
        right = 0
        for case in made:
            ids, trained = encode(tok, case.chat.messages, case.chat.tools)
            best = net.logits(net(torch.tensor([ids[:-1]])))[0].argmax(-1).tolist()
            # Every answer in the conversation is trained on; only the last is asked for here.
            end = max(i for i, t in enumerate(trained) if t)
            start = max(i for i in range(end + 1) if not trained[i]) + 1
            right += best[start - 1 : end] == ids[start : end + 1]
        scores[kind] = right / len(made)
    return scores
