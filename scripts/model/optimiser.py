"""Muon for the hidden matrices (Jordan et al. 2024), AdamW for embeddings and norms."""

from __future__ import annotations

import torch
from torch import Tensor

from scripts.model.network import Network


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices to g [N, R, C], by the quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        y = x @ x.mT
        x = a * x + (b * y + c * y @ y) @ x
    return x.mT if tall else x


class Muon:
    """Momentum, made orthogonal; matrices of one shape are done together. The step has AdamW's usual size (0.2 rms)."""

    def __init__(self, params: list[Tensor], momentum: float = 0.95, decay: float = 0.01) -> None:
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.buffers = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.groups.items()}
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update."""
        for shape, ps in self.groups.items():
            g = torch.stack([p.grad for p in ps])  # type: ignore[misc]
            buffer = self.buffers[shape].lerp_(g, 1 - self.momentum)
            update = orthogonal(g.lerp(buffer, self.momentum)) * (0.2 * max(shape) ** 0.5)
            for p, u in zip(ps, update, strict=True):
                p.mul_(1 - lr * self.decay).sub_(u, alpha=lr)


class Optimiser:
    """Both, under one learning rate."""

    def __init__(self, net: Network) -> None:
        matrices = [p for p in net.layers.parameters() if p.ndim == 2]
        others = [p for p in net.layers.parameters() if p.ndim == 1] + [net.norm]
        self.net = net
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            [{"params": [net.embedding.weight], "ratio": 0.5}, {"params": others, "ratio": 1.0}],
            lr=0.0,
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )

    def step(self, lr: float) -> None:
        """Clip, update and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.muon.step(lr)
        for group in self.adam.param_groups:
            group["lr"] = lr * group["ratio"]
        self.adam.step()
        self.net.zero_grad(set_to_none=True)
