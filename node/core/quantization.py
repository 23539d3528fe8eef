"""How large a model becomes when llama.cpp quantizes it: the shape of a file that nobody has downloaded yet.

The recipes are those of src/llama-quant.cpp for the three types that a plan proposes (an imatrix does not change them):
Q4_K_M keeps Q6_K for the output and, in the first eighth, the last eighth and every third layer between, for attn_v and
ffn_down. Rows that are no multiple of a K-quant's 256 values fall back to Q5_0 (from Q4_K) or Q8_0 (from Q6_K).
"""

from __future__ import annotations

from dataclasses import dataclass

from node.core.shape import Shape

QUANTIZATIONS = ("Q4_K_M", "Q6_K", "Q8_0")
# Bytes and values of a block: ggml-common.h.
_BLOCKS = {"Q4_K": (144, 256), "Q6_K": (210, 256), "Q8_0": (34, 32), "Q5_0": (22, 32)}
_FALL_BACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


@dataclass(frozen=True, slots=True)
class Facts:
    """A model's sizes as its authors' config.json has them. `experts` 0: the feed-forward is dense."""

    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    vocabulary: int
    context: int
    is_tied: bool = False
    window: int = 0
    window_every: int = 0  # of so many layers the last sees everything
    experts: int = 0
    experts_used: int = 0

    @property
    def parameters(self) -> int:
        """Weights in all, but for norms and biases, which do not count beside them."""
        ends = self.vocabulary * self.embedding * (1 if self.is_tied else 2)
        return ends + self.layers * sum(rows * columns for rows, columns in self.matrices().values())

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of a layer's matrices; those of experts under each other."""
        query, kv, many = self.heads * self.head, self.kv_heads * self.head, max(self.experts, 1)
        return {
            "attn_q": (query, self.embedding),
            "attn_k": (kv, self.embedding),
            "attn_v": (kv, self.embedding),
            "attn_output": (self.embedding, query),
            "ffn_gate": (many * self.feed_forward, self.embedding),
            "ffn_up": (many * self.feed_forward, self.embedding),
            "ffn_down": (many * self.embedding, self.feed_forward),
        }


def shape(name: str, facts: Facts, quantization: str, parameters: int = 0) -> Shape:
    """The shape of the file that quantizing makes."""
    f, kv = facts, facts.kv_heads * facts.head
    tail = "Q6_K" if quantization == "Q4_K_M" else quantization
    ends = _bytes(f.vocabulary, f.embedding, tail)
    plain = "Q4_K" if quantization == "Q4_K_M" else quantization
    norms = 4 * (2 * f.embedding + 2 * f.head + f.experts * f.embedding)
    layers = tuple(
        norms + sum(_bytes(*matrix, _type(key, i, f.layers, quantization)) for key, matrix in f.matrices().items())
        for i in range(f.layers)
    )
    return Shape(
        name=name,
        quantization=quantization,
        layers=f.layers,
        embedding=f.embedding,
        feed_forward=f.feed_forward * max(f.experts_used, 1),
        query_width=f.heads * f.head,
        key_widths=(kv,) * f.layers,
        value_widths=(kv,) * f.layers,
        vocabulary=f.vocabulary,
        context=f.context,
        layer_bytes=layers,
        input_bytes=ends if f.is_tied else _bytes(f.vocabulary, f.embedding, plain),
        output_bytes=4 * f.embedding + (0 if f.is_tied else ends),
        window=f.window,
        windowed=tuple(i % f.window_every < f.window_every - 1 for i in range(f.layers)) if f.window_every else (),
        is_tied=f.is_tied,
        parameters=parameters or f.parameters,
        experts_used=f.experts_used,
        idle_bytes=_idle(f, quantization),
    )


def _idle(f: Facts, quantization: str) -> int:
    """Bytes of the experts that a token does not use."""
    if not f.experts:
        return 0
    of_experts = [(key, matrix) for key, matrix in f.matrices().items() if key.startswith("ffn")]
    total = sum(_bytes(*m, _type(key, i, f.layers, quantization)) for key, m in of_experts for i in range(f.layers))
    return total * (f.experts - f.experts_used) // f.experts


def _type(key: str, layer: int, layers: int, quantization: str) -> str:
    if quantization != "Q4_K_M":
        return quantization
    eighth = layers // 8
    is_fine = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return "Q6_K" if key in ("attn_v", "ffn_down") and is_fine else "Q4_K"


def _bytes(rows: int, columns: int, kind: str) -> int:
    if columns % _BLOCKS[kind][1]:
        kind = _FALL_BACK.get(kind, kind)
    size, values = _BLOCKS[kind]
    return rows * columns // values * size
