"""Training on one thread: the same seed, machine and versions give the same weights."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from scripts.model import tokenizer as bpe
from scripts.model.chat import Conversation, conversation
from scripts.model.exact import quick_scores
from scripts.model.network import Network, Shape, mechanise
from scripts.model.optimiser import Optimiser
from scripts.model.template import Message, segments

LONGEST = 640  # tokens of a conversation; longer ones are drawn again


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does; one step is about `batch` tokens, padding included."""

    seed: int = 1
    steps: int = 9200
    batch: int = 2048
    lr: float = 3e-3
    warm_up: int = 60
    constant: float = 0.3  # share of the steps at the full rate, before it falls linearly to zero
    copy_steps: int = 60  # first, on random tokens repeated
    score_every: int = 800
    more_steps: int = 1700  # then, with more tools and larger word problems, falling linearly to zero
    more_lr: float = 2e-3
    more_tools: float = 0.5


def encode(tok: Tokenizer, messages: list[Message], tools: list[dict] | None) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them are trained on."""
    ids: list[int] = []
    trained: list[bool] = []
    for text, wanted in segments(messages, tools):
        piece = tok.encode(text).ids
        ids += piece
        trained += [wanted] * len(piece)
    return ids, trained


def batches(
    tok: Tokenizer,
    rng: random.Random,
    size: int,
    pad: int,
    draw: Callable[[random.Random], Conversation],
    pool: int = 384,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids [B, T], trained [B, T]) of about `size` padded tokens, alike in length within a batch."""
    while True:
        rows: list[tuple[list[int], list[bool]]] = []
        while len(rows) < pool:
            made = draw(rng)
            row = encode(tok, made.messages, made.tools)
            if len(row[0]) <= LONGEST:
                rows.append(row)
        rows.sort(key=lambda r: len(r[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > size:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(r[0]) for r in group)
            ids = torch.tensor([r[0] + [pad] * (longest - len(r[0])) for r in group])
            yield ids, torch.tensor([r[1] + [False] * (longest - len(r[1])) for r in group])


def repeats(g: torch.Generator, vocabulary: int, size: int) -> tuple[Tensor, Tensor]:
    """Random tokens repeated; trained on from the second time."""
    period = int(torch.randint(8, 64, (), generator=g))
    once = torch.randint(0, vocabulary, (size // 128, period), generator=g)
    ids = once.repeat(1, 128 // period + 1)[:, :128]
    trained = (torch.arange(128) > period).expand_as(ids)
    return ids, trained


def loss_of(net: Network, ids: Tensor, trained: Tensor) -> Tensor:
    """Mean cross-entropy (nats) over the trained tokens."""
    hidden, wanted = net(ids[:, :-1]), trained[:, 1:]
    return F.cross_entropy(net.logits(hidden[wanted]), ids[:, 1:][wanted])


def train(plan: Plan, work: Path) -> Path:
    """Train, write `work/model.pt` and `work/log.jsonl`; a checkpoint is rewritten at each scoring."""
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    work.mkdir(parents=True, exist_ok=True)
    tokens, merges = bpe.train(plan.seed)
    tok = bpe.build(tokens, merges)
    net = Network(Shape(vocabulary=len(tokens)))
    mechanise(net, plan.seed)
    optimiser = Optimiser(net)
    g = torch.Generator().manual_seed(plan.seed)
    rng = random.Random(f"training {plan.seed}")
    data = batches(tok, rng, plan.batch, tokens.index("<|endoftext|>"), conversation)
    log = (work / "log.jsonl").open("w")
    seen, started, wall = 0, time.process_time(), time.monotonic()
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters, {len(tokens)} tokens", flush=True)
    for step in range(plan.steps):
        copying = step < plan.copy_steps
        ids, trained = repeats(g, len(tokens), plan.batch) if copying else next(data)
        loss = loss_of(net, ids, trained)
        loss.backward()
        optimiser.step(plan.lr * rate(plan, step))
        seen += ids.numel()
        last = step + 1 == plan.steps
        if step % 50 == 0 or last:
            entry = {"step": step, "loss": round(loss.item(), 4), "tokens": seen}
            entry |= {"cpu_min": round((time.process_time() - started) / 60, 2)}
            entry |= {"wall_min": round((time.monotonic() - wall) / 60, 2)}
            if copying:
                entry["copy"] = round(copy_score(net, *repeats(g, len(tokens), plan.batch)), 3)
            if last or (step and step % plan.score_every == 0):
                entry |= quick_scores(net, tok, encode)
                torch.save(
                    {
                        "weights": net.state_dict(),
                        "shape": asdict(net.shape),
                        "tokens": tokens,
                        "merges": merges,
                        "plan": asdict(plan),
                    },
                    work / "model.pt",
                )
            print(json.dumps(entry), flush=True)
            print(json.dumps(entry), file=log, flush=True)
    return work / "model.pt"


def polish(plan: Plan, work: Path) -> Path:
    """Train `work/model.pt` on, with many tools and larger word problems; rewrite it and lengthen the log."""
    torch.set_num_threads(1)
    kept = torch.load(work / "model.pt", map_location="cpu", weights_only=True)
    net = Network(Shape(**kept["shape"]))
    net.load_state_dict(kept["weights"])
    tok = bpe.build(kept["tokens"], kept["merges"])
    optimiser = Optimiser(net)
    rng = random.Random(f"polishing {plan.seed}")

    def draw(rng: random.Random) -> Conversation:
        return conversation(rng, plan.more_tools, late=True)

    data = batches(tok, rng, plan.batch, kept["tokens"].index("<|endoftext|>"), draw)
    before = json.loads((work / "log.jsonl").read_text().splitlines()[-1])
    seen, started, wall = before["tokens"], time.process_time(), time.monotonic()
    with (work / "log.jsonl").open("a") as log:
        for step in range(plan.more_steps):
            ids, trained = next(data)
            loss = loss_of(net, ids, trained)
            loss.backward()
            left = (plan.more_steps - step) / plan.more_steps
            optimiser.step(plan.more_lr * min(left, (step + 1) / plan.warm_up))
            seen += ids.numel()
            last = step + 1 == plan.more_steps
            if step % 50 and not last:
                continue
            entry = {"step": before["step"] + 1 + step, "loss": round(loss.item(), 4), "tokens": seen}
            entry["cpu_min"] = round(before["cpu_min"] + (time.process_time() - started) / 60, 2)
            entry["wall_min"] = round(before["wall_min"] + (time.monotonic() - wall) / 60, 2)
            if last:
                entry |= quick_scores(net, tok, encode)
                torch.save(kept | {"weights": net.state_dict(), "plan": asdict(plan)}, work / "model.pt")
            print(json.dumps(entry), flush=True)
            print(json.dumps(entry), file=log, flush=True)
    return work / "model.pt"


def rate(plan: Plan, step: int) -> float:
    """The learning rate's share: rises, stays, falls linearly to zero."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    flat = plan.constant * plan.steps
    return 1.0 if step < flat else max(0.0, (plan.steps - step) / (plan.steps - flat))


@torch.inference_mode()
def copy_score(net: Network, ids: Tensor, trained: Tensor) -> float:
    """Share of repeated random tokens predicted right."""
    best = net.logits(net(ids[:, :-1])).argmax(-1)
    return (best == ids[:, 1:])[trained[:, 1:]].float().mean().item()
