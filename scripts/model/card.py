"""The model card, written from the measured figures only."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch

from scripts.model.template import render

COMMAND = "make model"


def card(shipped: Path, work: Path) -> str:
    """The card's text, from `work`'s log, checks and evaluation and the file itself."""
    log = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    found = json.loads((work / "evaluation.json").read_text())
    checks = json.loads((work / "checks.json").read_text())
    plan = torch.load(work / "model.pt", map_location="cpu", weights_only=True)
    size = sum(t.numel() for t in plan["weights"].values())
    raw = shipped.read_bytes()
    parts = [
        _HEAD.format(
            file=shipped.name,
            parameters=f"{size / 1e6:.2f}",
            megabytes=f"{len(raw) / 1e6:.2f}",
            sha=hashlib.sha256(raw).hexdigest(),
            shape=_SHAPE.format(**plan["shape"]),
            vocabulary=plan["shape"]["vocabulary"],
        ),
        _figures(found),
        _learning(log),
        _checks(checks),
        _MADE.format(
            command=COMMAND,
            seed=plan["plan"]["seed"],
            steps=plan["plan"]["steps"],
            more=plan["plan"].get("more_steps", 0),
            tokens=f"{log[-1]['tokens'] / 1e6:.1f}",
            cpu=f"{log[-1]['cpu_min']:.0f}",
            torch=torch.__version__.split("+")[0],
            python=platform.python_version(),
        ),
        _try(found["demos"]),
        _LOOK.format(prompt=render([{"role": "user", "content": "What is 17 * 23?"}])),
    ]
    return "\n".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _votes(made: dict[str, Any]) -> str:
    rows = [
        "| operations | problems | greedy | one sample | majority of 3 | of 5 | of 9 |",
        "|---|---|---|---|---|---|---|",
    ]
    for steps, row in made.items():
        cells = [row["greedy"], row["sample"], row["majority_3"], row["majority_5"], row["majority_9"]]
        rows.append(f"| {steps} | {row['problems']} | {' | '.join(map(_percent, cells))} |")
    return "\n".join(rows)


def _figures(found: dict[str, Any]) -> str:
    kinds = ["| held-out cases | greedy | sampled |", "|---|---|---|"]
    for kind in found["greedy"]:
        greedy, sampled = found["greedy"][kind], found["sampled"][kind]
        kinds.append(f"| {_KINDS.get(kind, kind)} | {_percent(greedy)} | {_percent(sampled)} |")
    right = ", ".join(f"{k}: {v}" for k, v in found["handmade"]["right"].items())
    wrong = [r for r in found["handmade"]["rows"] if not r["right"]]
    missed = "\n".join(f"* {r['asked']} -> {' '.join(r['said'].split())[:160] or '(nothing)'}" for r in wrong)
    every = found["problems"]["all"]
    return _FIGURES.format(
        n=found["n"],
        third=found["n"] // 3,
        seed=found["seed"],
        problems=_votes(found["problems"]),
        over_sample=f"{100 * (every['majority_9'] - every['sample']):+.1f}",
        over_greedy=f"{100 * (every['majority_9'] - every['greedy']):+.1f}",
        plain=_votes(found["plain"]),
        m=found["n"] // 2,
        kinds="\n".join(kinds),
        right=right,
        kinds_of_sums="\n".join(
            f"* {kind}: {_percent(row['greedy'])}, {_percent(row['sampled'])} ({row['n']} sums)"
            for kind, row in found["sums"].items()
        ),
        missed=missed or "* (none)",
    )


def _try(demos: list[dict[str, Any]]) -> str:
    rows = []
    for demo in demos:
        votes = ", ".join(f"{answer}: {n}" for answer, n in demo["votes"])
        rows.append(f"* {demo['question']} ({demo['answer']}) - greedy {demo['greedy']}; votes {votes}")
    return _TRY.format(rows="\n".join(rows))


def _learning(log: list[dict[str, Any]]) -> str:
    rows = [
        "| CPU min | M tokens | loss | problems | sums | recall 0 / 100 / 200 / 300 / 450 | not told 0 / 200 / 450 "
        "| tool call / answer / unlisted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for at, entry in enumerate(log):
        if "problems" not in entry:
            continue
        near = [e["loss"] for e in log[max(0, at - 5) : at + 1]]

        def cells(*kinds: str, entry: dict[str, Any] = entry) -> str:
            return " / ".join(f"{100 * entry[k]:.0f}" for k in kinds)

        parts = (
            f"{entry['cpu_min']:.1f}",
            f"{entry['tokens'] / 1e6:.1f}",
            f"{sum(near) / len(near):.3f}",
            cells("problems"),
            cells("sums"),
            cells(*(f"recall {d}" for d in (0, 100, 200, 300, 450))),
            cells(*(f"not told {d}" for d in (0, 200, 450))),
            cells("tool call", "tool answer", "tool unlisted"),
        )
        rows.append(f"| {' | '.join(parts)} |")
    return _LEARNING.format(rows="\n".join(rows))


def _checks(found: dict[str, Any]) -> str:
    return _CHECKS.format(**found) if "greedy_same" in found else _UNCHECKED.format(**found)


_KINDS = {
    "sums": 'bare sums ("What is 17 * 23?"), the number',
    "recall 0": "recall at once, to the letter",
    "recall 100": "recall after 100 tokens",
    "recall 200": "recall after 200 tokens",
    "recall 300": "recall after 300 tokens",
    "recall 450": "recall after 450 tokens",
    "not told 0": '"You have not told me", at once',
    "not told 200": '"You have not told me", after 200 tokens',
    "not told 450": '"You have not told me", after 450 tokens',
    "tool call": "tool call, two tools listed, the same call to the letter",
    "tool answer": "answer from a tool's result, to the letter",
    "tool unlisted": '"I have no tool for that", for a tool that is not listed',
    "talk": "small talk",
    "unknown": '"I don\'t know"',
    "echo": "repeating words, to the letter",
}

_SHAPE = (
    "{layers} layers of width {width}, {heads} heads and {kv_heads} KV heads of {head}, SwiGLU of {hidden}, QK-norm, "
    "RoPE base {theta:.0f}, embeddings tied to the output"
)

_HEAD = """\
# The bundled model

`{file}` is Conclave's small demonstration model: {parameters} M parameters, {megabytes} MB, trained from
nothing by `scripts/model` on one CPU core. It lets a fresh checkout answer, vote, remember and call tools with
no model downloaded. It is a toy with honest manners, not an assistant: it knows nothing about the world and says
so.

**It can** solve arithmetic word problems with worked steps and a last line `answer: N`; do bare sums in many
phrasings; recall what it was told earlier in the chat, or say "You have not told me ..."; call the tools listed
in the system turn (Hermes form), report what they returned, and say "I have no tool for that."; make small
talk.

**It cannot** do anything else: general knowledge, code, poems, translation, other languages, long texts. It
should answer "I don't know. I am only a small demonstration model ...". Answers to word problems are often
wrong in one sample; that is what voting is for. Wording far from the training data confuses it, and it can be
confidently wrong there.

**For real work** use a real model: download an instruction-tuned GGUF that fits the machine's memory (Hugging Face
has many; a 7B at Q4_K_M takes about 5 GB) and start every node with `python -m node --model PATH.gguf`.

* Architecture `qwen3`:
  {shape}.
* Tokenizer: byte-level BPE, {vocabulary} tokens, single digits (`gpt2` with `pre=qwen2` in llama.cpp); ChatML
  template with tools.
* Trained on conversations of 30 to 640 tokens. The file states a context of 2,048; beyond 640 nothing was
  trained or measured.
* Matrices F16, norms F32. SHA-256 `{sha}`.
* Licence: MIT, as the rest. All training text comes from the generator in `scripts/model`; no other text was
  used.
"""

_FIGURES = """
## Figures on held-out data

All from the shipped file (read back from the GGUF, run in PyTorch), sampled at temperature 0.8 without top-k,
top-p or penalties, every sample with its own seed. Percent.

Hard word problems, with three-digit numbers and two-digit factors: {n}, `held_out({n}, seed={seed})` of
`scripts/model/problems.py`, equally many of each number of operations. One structure-with-numbers in sixteen is
kept from training by its hash.

{problems}

A majority of nine against one sample: {over_sample} points; against greedy decoding: {over_greedy} points. The default
numbers of operations were chosen, on other problems, so that one sample is right half to three quarters of the
time.

Plainer ones, `held_out({m}, seed={seed}, steps=PLAIN_STEPS, big=False)`:

{plain}

Everything else: {third} cases a kind, other seeds than training. "To the letter" means that one wrong character
counts as wrong.

{kinds}

Bare sums apart, by kind (percent right, greedy and sampled):

{kinds_of_sums}

Written by hand, never by the generator (`scripts/model/handmade.py`), greedy: {right}. What went wrong:

{missed}
"""

_LEARNING = """
## While it learnt

40 held-out cases of each kind (word problems: the plainer ones); right in every token, given the right tokens
before it; percent. The last row is after the second stretch of training.

{rows}
"""

_CHECKS = """
## The same in PyTorch and llama.cpp

`python -m scripts.model check`: the Jinja template renders {template_same} of {template_same} conversations as
trained on; {tokenizer_same} of {tokenizer_same} texts (emoji, CJK, CRLF and JSON among them) have the same
token ids; the largest difference of any logit, F32 weights and F32 KV, is {logits_max_abs_diff}; greedy answers
of the shipped file are the same text as PyTorch's for {greedy_same_f32_kv} of {greedy_asked} prompts with F32
KV and {greedy_same} with F16 KV and flash attention, the usual setting.
"""

_UNCHECKED = """
## The same in PyTorch and llama.cpp

Not compared in this run: llama-cpp-python was not installed. The Jinja template renders {template_same} of
{template_same} conversations as trained on.
"""

_MADE = """
## How it is made

`{command}` runs generator, training, export, checks, evaluation and this card. Seed {seed}, {steps} steps of
about 2,048 tokens, then {more} with more tools and larger problems; {tokens} M tokens (padding included), {cpu}
CPU-minutes on one thread for the training (Python {python}, PyTorch {torch}). On the same machine the same
seed gave the same losses over the first 150 steps, which is as far as that was checked; another CPU rounds
differently and gives a model like it.

The data: word problems of 1 to 10 operations with numbers of up to three digits, products and sentences that do
not matter; bare sums; facts about the user, told and asked for, three questions in ten about something never
said; small talk; repeating words; noise and general questions answered "I don't know"; tools with made-up
names, shuffled JSON keys and results. Several of these in one conversation, half of them short, a fifth 150 to
500 tokens. No worked step in the data is wrong: one-sample errors are the network's.
"""

_TRY = """
## Things to try

Written by hand. In brackets the right answer, then what the model said greedily and in nine samples at 0.8.

{rows}
"""

_LOOK = """
## What a prompt looks like

```
{prompt}```
"""
