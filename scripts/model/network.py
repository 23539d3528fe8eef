"""The network: Qwen3's architecture, very small, as llama.cpp runs it (`qwen3`): RMS norms, QK-norm, NEOX RoPE, SwiGLU.

`mechanise` sets the first two layers up as a previous-token head and induction heads, so that copying works within
seconds of training. From random weights this size takes many times longer to find it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes; `head` is one head's width, `theta` the base of RoPE."""

    vocabulary: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head: int = 32
    hidden: int = 384
    theta: float = 1e6
    eps: float = 1e-6
    context: int = 2048


class Cache:
    """Keys and values of a batch of sequences: [layers, batch, kv heads, positions, head]."""

    def __init__(self, shape: Shape, batch: int, positions: int) -> None:
        self.k = torch.zeros(shape.layers, batch, shape.kv_heads, positions, shape.head)
        self.v = torch.zeros_like(self.k)
        self.length = torch.zeros(batch, dtype=torch.long)  # tokens held, per sequence


class Attention(nn.Module):
    """Grouped-query attention with QK-norm."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q = nn.Linear(s.width, s.heads * s.head, bias=False)
        self.k = nn.Linear(s.width, s.kv_heads * s.head, bias=False)
        self.v = nn.Linear(s.width, s.kv_heads * s.head, bias=False)
        self.o = nn.Linear(s.heads * s.head, s.width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(s.head))
        self.k_norm = nn.Parameter(torch.ones(s.head))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, T, D], rotated keys and values [B, K, T, D] of x [B, T, C]."""
        s, (b, t, _) = self.s, x.shape
        q = F.rms_norm(self.q(x).view(b, t, s.heads, s.head), (s.head,), self.q_norm, s.eps).transpose(1, 2)
        k = F.rms_norm(self.k(x).view(b, t, s.kv_heads, s.head), (s.head,), self.k_norm, s.eps).transpose(1, 2)
        v = self.v(x).view(b, t, s.kv_heads, s.head).transpose(1, 2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend; causal where no mask [B, 1, T, S] is given. Returns [B, T, C]."""
        group = self.s.heads // self.s.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o(out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """NEOX RoPE: pairs (i, i + D/2) of x [..., T, D] turned by the angles of cos, sin [..., T, D/2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.eps = s.eps
        self.attn_norm = nn.Parameter(torch.ones(s.width))
        self.attn = Attention(s)
        self.ffn_norm = nn.Parameter(torch.ones(s.width))
        self.gate = nn.Linear(s.width, s.hidden, bias=False)
        self.up = nn.Linear(s.width, s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.width, bias=False)

    def feed(self, x: Tensor) -> Tensor:
        """The SwiGLU part, with its residual."""
        y = F.rms_norm(x, x.shape[-1:], self.ffn_norm, self.eps)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def norm(self, x: Tensor) -> Tensor:
        """The norm before attention."""
        return F.rms_norm(x, x.shape[-1:], self.attn_norm, self.eps)


class Network(nn.Module):
    """Token ids [B, T] to hidden states [B, T, C]; `logits` ties the output to the embeddings."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.embedding = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.Parameter(torch.ones(s.width))
        frequency = s.theta ** (-torch.arange(0, s.head, 2, dtype=torch.float64) / s.head)
        angle = torch.outer(torch.arange(s.context, dtype=torch.float64), frequency).float()
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states after the last norm; causal, so padding on the right is harmless."""
        x, t = self.embedding(ids), ids.shape[1]
        cos, sin = self.cos[:t], self.sin[:t]
        for layer in self.layers:
            q, k, v = layer.attn.project(layer.norm(x), cos, sin)
            x = layer.feed(x + layer.attn.mix(q, k, v, None))
        return F.rms_norm(x, x.shape[-1:], self.norm, self.shape.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary]."""
        return F.linear(hidden, self.embedding.weight)

    @torch.inference_mode()
    def extend(self, ids: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
        """Append ids [B, T] (the first lengths[b] of each row count) to the cache; logits [B, V] after each row's last.

        Rows whose length is 0 are left as they were; their logits mean nothing.
        """
        b, t = ids.shape
        start = cache.length
        position = start[:, None] + torch.arange(t)
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]
        span = int(position.max()) + 1
        mask = (torch.arange(span)[None, None, :] <= position[:, :, None])[:, None]
        rows = torch.arange(b)[:, None].expand(b, t)
        x = self.embedding(ids)
        for n, layer in enumerate(self.layers):
            q, k, v = layer.attn.project(layer.norm(x), cos, sin)
            # Beyond a row's length this writes padding, which the mask hides until it is overwritten.
            cache.k[n][rows, :, position] = k.transpose(1, 2)
            cache.v[n][rows, :, position] = v.transpose(1, 2)
            x = layer.feed(x + layer.attn.mix(q, cache.k[n][:, :, :span], cache.v[n][:, :, :span], mask))
        last = x[torch.arange(b), (lengths - 1).clamp(min=0)]
        cache.length = start + lengths
        return self.logits(F.rms_norm(last, last.shape[-1:], self.norm, self.shape.eps))


@torch.no_grad()
def mechanise(net: Network, seed: int) -> None:
    """Initial weights with a mechanism for copying.

    The residual stream is laid out as: 0-63 the token's own random code, 64-95 half of the previous token's code,
    96-126 of the one before that, 127 a constant. Layer 0 fills 64-126 by heads that look a fixed way back: a constant
    query and key, turned by RoPE. Layer 1's heads look for places whose previous token (or two) is the current one, by
    those of RoPE's pairs that hardly turn, and add the code found there to the own code: induction (Olsson et al.
    2022).
    """
    s, g = net.shape, torch.Generator().manual_seed(seed)
    assert (s.width, s.head, s.heads, s.kv_heads) == (128, 32, 4, 2), "the layout below is for this shape"

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    code, scale = 64, 0.3
    net.embedding.weight.copy_(normal(s.vocabulary, s.width) * 0.01)
    net.embedding.weight[:, :code] += normal(s.vocabulary, code) * scale
    net.embedding.weight[:, 127] = 4 * scale
    net.norm.fill_(0.25)
    for layer in net.layers:
        for linear in (layer.attn.q, layer.attn.k, layer.attn.v, layer.gate, layer.up):
            linear.weight.copy_(normal(*linear.weight.shape) / math.sqrt(s.width))
        layer.attn.o.weight.copy_(normal(s.width, s.width) * 0.02)
        layer.down.weight.copy_(normal(s.width, s.hidden) * 0.01)

    half = s.head // 2
    frequency = s.theta ** (-torch.arange(half, dtype=torch.float32) / half)
    first = net.layers[0].attn
    first.q_norm.fill_(2.8)
    first.k_norm.fill_(2.8)
    for linear in (first.q, first.k, first.v):
        linear.weight.mul_(0.1)
    first.o.weight.mul_(0.3)
    for kv in range(2):
        first.k.weight[kv * 32 : kv * 32 + 8, 127] += 1.0
        first.v.weight[kv * 32 : kv * 32 + 32, kv * 32 : kv * 32 + 32] += torch.eye(32)
    # Per head: how far back it looks, and by which of RoPE's pairs: fast ones are sharp, slow ones wide.
    for h, (offset, low, high) in enumerate(((1.0, 0, 6), (2.0, 0, 6), (1.0, 0, 6), (4.0, 2, 8))):
        phase = -frequency[low:high] * offset
        first.q.weight[h * 32 + low : h * 32 + high, 127] += phase.cos() * 1.2
        first.q.weight[h * 32 + half + low : h * 32 + half + high, 127] += phase.sin() * 1.2
    first.o.weight[64:96, 0:32] += torch.eye(32) * scale
    first.o.weight[96:127, 32:63] += torch.eye(31) * scale
    spread = torch.linalg.qr(normal(63, 63)).Q
    first.o.weight[64:127, 64:96] += spread[:, :32] * scale * 0.4
    first.o.weight[64:127, 96:128] += spread[:, 31:63] * scale * 0.4

    second = net.layers[1].attn
    second.q_norm.fill_(2.4)
    second.k_norm.fill_(2.4)
    for linear in (second.q, second.k, second.v):
        linear.weight.mul_(0.15)
    slow = torch.tensor([*range(8, 16), *range(24, 32)])  # dimensions of pairs that turn by less than 0.5 in 500 tokens
    one = torch.linalg.qr(normal(32, 32)).Q[:16]
    two = torch.linalg.qr(normal(32, 32)).Q[:16]
    second.k.weight[slow, 64:96] += one
    second.k.weight[32 + slow, 64:96] += two * 0.7
    second.k.weight[32 + slow, 96:127] += one[:, :31].roll(3, 0) * 0.7
    for h in (0, 1):
        second.q.weight[h * 32 + slow, 0:32] += one
    for h in (2, 3):
        second.q.weight[h * 32 + slow, 0:32] += two * 0.7
        second.q.weight[h * 32 + slow, 64:95] += one[:, :31].roll(3, 0) * 0.7
    for kv in range(2):
        second.v.weight[kv * 32 : kv * 32 + 32, kv * 32 : kv * 32 + 32] += torch.eye(32)
    for h in range(4):
        base = (h // 2) * 32
        second.o.weight[base : base + 32, h * 32 : h * 32 + 32] += torch.eye(32) * scale * 1.5
