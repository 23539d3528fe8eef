"""What the shipped file can do, on held-out cases: it is read from the GGUF, run in PyTorch, and generates freely."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from scripts.model import talk
from scripts.model.exact import Case, cases
from scripts.model.export import load
from scripts.model.handmade import CALLS, DEMOS, RECALL, SUMS, TALK, TOOLS, UNKNOWN
from scripts.model.network import Network
from scripts.model.problems import PLAIN_STEPS, Problem, held_out
from scripts.model.sample import generate
from scripts.model.sums import sum_problem
from scripts.model.template import Message, render
from scripts.model.tools import NO_TOOL

TEMPERATURE = 0.8
VOTES = 9
SEED = 20_000  # of the held-out cases and of the samples

Table = dict[str, Any]


def answer_of(text: str) -> int | None:
    """The number of the last `answer:` line."""
    found = re.findall(r"answer: (-?\d+)", text)
    return int(found[-1]) if found else None


def majority(answers: list[int | None]) -> int | None:
    """The commonest answer; of equals, the one that came first. Votes without an answer do not count."""
    counts = Counter(a for a in answers if a is not None)
    return max(counts, key=lambda a: (counts[a], -answers.index(a))) if counts else None


def called(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and arguments of the one tool call that a text is."""
    found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text)
    try:
        made = json.loads(found[1]) if found else {}
    except ValueError:
        return None
    return (made["name"], made["arguments"]) if {"name", "arguments"} <= made.keys() else None


class Runner:
    """One loaded model, asked many things."""

    def __init__(self, net: Network, tok: Tokenizer) -> None:
        self.net, self.tok = net, tok

    def ask(self, prompts: list[str], temperature: float = 0.0, seed: int = SEED, most: int = 200) -> list[str]:
        """Free answers to rendered prompts; sample i has seed `seed + i`."""
        return generate(self.net, self.tok, prompts, temperature, [seed + i for i in range(len(prompts))], most=most)

    def share(self, made: list[Case], temperature: float) -> float:
        """Share of cases whose answer is the wanted text (or call) to the letter."""
        prompts = [render(c.chat.messages[:-1], c.chat.tools) for c in made]
        wanted = [render(c.chat.messages, c.chat.tools, prompt=False) for c in made]
        said = self.ask(prompts, temperature)
        return _share(p + s + "<|im_end|>\n" == w for p, s, w in zip(prompts, said, wanted, strict=True))


def _share(right: Any) -> float:
    held = list(right)
    return round(sum(held) / len(held), 3)


def problems(run: Runner, asked: list[Problem]) -> Table:
    """Greedy, one sample, and the majority of 3, 5 and 9, in all and by operations."""
    prompts = [render([{"role": "user", "content": p.question}]) for p in asked]
    greedy = [answer_of(t) == p.answer for t, p in zip(run.ask(prompts), asked, strict=True)]
    said = run.ask([p for p in prompts for _ in range(VOTES)], TEMPERATURE)
    votes = [[answer_of(t) for t in said[i * VOTES : (i + 1) * VOTES]] for i in range(len(asked))]

    def row(kept: list[int]) -> Table:
        made: Table = {"problems": len(kept), "greedy": _share(greedy[i] for i in kept)}
        made["sample"] = _share(v == asked[i].answer for i in kept for v in votes[i])
        for n in (3, 5, VOTES):
            made[f"majority_{n}"] = _share(majority(votes[i][:n]) == asked[i].answer for i in kept)
        return made

    out = {"all": row(list(range(len(asked))))}
    for steps in sorted({p.steps for p in asked}):
        out[str(steps)] = row([i for i, p in enumerate(asked) if p.steps == steps])
    return out


def unknowns(run: Runner, questions: list[str], temperature: float) -> float:
    """Share of questions answered with one of the ways to say "I don't know"."""
    said = run.ask([render([{"role": "user", "content": q}]) for q in questions], temperature)
    return _share(s in talk.UNKNOWN for s in said)


def talks(run: Runner, made: list[Case], temperature: float) -> float:
    """Share of small talk answered with one of the answers to it (several are right)."""
    said = run.ask([render(c.chat.messages[:-1]) for c in made], temperature)
    same = [next(answers for _, answers in talk.TALK if c.wanted in answers) for c in made]
    return _share(s in ok for s, ok in zip(said, same, strict=True))


def handmade(run: Runner) -> Table:
    """Prompts written by hand, greedy; each with what it said, for a person to read."""

    def one(messages: list[Message]) -> str:
        return run.ask([render(messages)])[0]

    rows: list[tuple[str, str, str, bool]] = []
    for question, number in SUMS:
        said = one([{"role": "user", "content": question}])
        rows.append(("sums", question, said, answer_of(said) == number))
    for question in UNKNOWN:
        said = one([{"role": "user", "content": question}])
        rows.append(("unknown", question, said, "don't know" in said or "no tool" in said))
    for question, part in TALK:
        said = one([{"role": "user", "content": question}])
        rows.append(("talk", question, said, part in said))
    for first, between, question, part in RECALL:
        messages: list[Message] = []
        for text in (first, *between, question):
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": one(messages)})
        said = messages[-1]["content"]
        rows.append(("recall", " / ".join((first, *between, question)), said, part in said))
    for listed, question, call in CALLS:
        tools = [TOOLS[i] for i in listed]
        said = run.ask([render([{"role": "user", "content": question}], tools)])[0]
        rows.append(("tools", question, said, called(said) == call if call else said == NO_TOOL))
    kinds = dict.fromkeys(r[0] for r in rows)
    return {
        "right": {k: f"{sum(r[3] for r in rows if r[0] == k)} of {sum(r[0] == k for r in rows)}" for k in kinds},
        "rows": [{"kind": k, "asked": q, "said": s, "right": r} for k, q, s, r in rows],
    }


_SUMS = {
    "one + or -": r"sum \d+[-+]\d+",
    "one product or quotient with a number up to 12": r"sum (?:\d+[*/](?:\d|1[0-2])|(?:\d|1[0-2])\*\d+)",
    "two-digit times two-digit": r"sum \d+\*\d+",
    "three or four numbers": r"sum .*",
}


def sums(run: Runner, n: int, seed: int) -> Table:
    """Bare sums by kind, `n` held-out ones in all: share whose number is right."""
    rng = random.Random(f"sums {seed}")
    asked = [sum_problem(rng, kept=True) for _ in range(n)]
    prompts = [render([{"role": "user", "content": p.question}]) for p in asked]
    right = {
        name: [answer_of(t) == p.answer for t, p in zip(run.ask(prompts, temperature), asked, strict=True)]
        for name, temperature in (("greedy", 0.0), ("sampled", TEMPERATURE))
    }
    kinds = [next(k for k, pattern in _SUMS.items() if re.fullmatch(pattern, p.key)) for p in asked]
    out: Table = {}
    for kind in _SUMS:
        rows = [i for i, k in enumerate(kinds) if k == kind]
        if rows:
            out[kind] = {"n": len(rows), **{name: _share(held[i] for i in rows) for name, held in right.items()}}
    return out


def demos(run: Runner) -> list[Table]:
    """Hand-written problems with the greedy answer and the count of each of nine sampled ones."""
    out = []
    for question, answer in DEMOS:
        prompt = render([{"role": "user", "content": question}])
        said = [answer_of(t) for t in run.ask([prompt] * VOTES, TEMPERATURE)]
        greedy = answer_of(run.ask([prompt])[0])
        out.append({"question": question, "answer": answer, "greedy": greedy, "votes": Counter(said).most_common()})
    return out


def evaluate(path: Path, n: int = 300, seed: int = SEED) -> Table:
    """All figures for a GGUF; `n` word problems, n // 2 plainer ones, n // 3 cases of every other kind."""
    run = Runner(*load(path))
    out: Table = {"n": n, "seed": seed, "temperature": TEMPERATURE, "problems": problems(run, held_out(n, seed))}
    out["plain"] = problems(run, held_out(n // 2, seed, PLAIN_STEPS, big=False))
    out["greedy"], out["sampled"] = {}, {}
    for kind, made in cases(n // 3, seed).items():
        if kind == "problems":
            continue
        for name, temperature in (("greedy", 0.0), ("sampled", TEMPERATURE)):
            if kind == "sums":
                asked = [render(c.chat.messages[:-1]) for c in made]
                said = run.ask(asked, temperature)
                share = _share(answer_of(s) == answer_of(c.wanted) for s, c in zip(said, made, strict=True))
            elif kind == "unknown":
                share = unknowns(run, [c.chat.messages[0]["content"] for c in made], temperature)
            elif kind == "talk":
                share = talks(run, made, temperature)
            else:
                share = run.share(made, temperature)
            out[name][kind] = share
        print(kind, out["greedy"][kind], out["sampled"][kind], flush=True)
    out["sums"] = sums(run, 2 * n, seed)
    out["demos"] = demos(run)
    out["handmade"] = handmade(run)
    return out


def main(path: Path, work: Path, n: int) -> None:
    """Write `work/evaluation.json` and print a summary."""
    found = evaluate(path, n)
    work.mkdir(parents=True, exist_ok=True)
    (work / "evaluation.json").write_text(json.dumps(found, indent=1))
    print(json.dumps({k: found[k] for k in ("problems", "plain", "greedy", "sampled", "sums")}, indent=1))
    for demo in found["demos"]:
        print(demo)
    print(json.dumps(found["handmade"]["right"]))
    for row in found["handmade"]["rows"]:
        if not row["right"]:
            print("  wrong:", row["asked"], "->", row["said"].replace("\n", " | "))
