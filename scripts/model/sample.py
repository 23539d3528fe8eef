"""Generation in PyTorch: many prompts at once, each sample with its own seed."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from scripts.model.network import Cache, Network

MOST = 200  # new tokens


@torch.inference_mode()
def generate(
    net: Network,
    tok: Tokenizer,
    prompts: list[str],
    temperature: float,
    seeds: list[int],
    batch: int = 96,
    most: int = MOST,
) -> list[str]:
    """One answer for each prompt; temperature 0 is greedy. No top-k, top-p or penalty. A seed is a sample's own."""
    encoded = [tok.encode(p).ids for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    out = [""] * len(prompts)
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        made = _batch(net, tok, [encoded[i] for i in rows], temperature, [seeds[i] for i in rows], most)
        for i, ids in zip(rows, made, strict=True):
            out[i] = tok.decode(ids, skip_special_tokens=True)
    return out


def _batch(
    net: Network, tok: Tokenizer, prompts: list[list[int]], temperature: float, seeds: list[int], most: int
) -> list[list[int]]:
    b, longest = len(prompts), max(map(len, prompts))
    end = tok.token_to_id("<|im_end|>")
    cache = Cache(net.shape, b, longest + most + 1)
    ids = torch.tensor([p + [end] * (longest - len(p)) for p in prompts])
    # One number in (0, 1) a step decides a sample's token, drawn from the sample's own generator.
    chance = torch.stack([torch.rand(most, generator=torch.Generator().manual_seed(s)) for s in seeds])
    logits = net.extend(ids, torch.tensor([len(p) for p in prompts]), cache)
    out: list[list[int]] = [[] for _ in range(b)]
    alive = torch.ones(b, dtype=torch.bool)
    for step in range(most):
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            total = (logits / temperature).softmax(-1).cumsum(-1)
            token = torch.searchsorted(total, chance[:, step : step + 1] * total[:, -1:]).squeeze(1)
            token = token.clamp(max=logits.shape[1] - 1)
        alive &= token != end
        if not alive.any():
            break
        for i in alive.nonzero().flatten().tolist():
            out[i].append(int(token[i]))
        logits = net.extend(token[:, None], torch.ones(b, dtype=torch.long), cache)
    return out
