"""What a model needs in memory, from its sizes alone: weights, KV cache, the compute buffer and the output buffer.

The arithmetic is llama.cpp's (src/llama-kv-cache.cpp, src/llama-context.cpp), for the way this program loads models:
flash attention, one unified KV cache that keeps all positions of layers with a sliding window too (`swa_full`), and at
most `UBATCH` rows computed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

UBATCH = 512
EMBED_CONTEXT, EMBED_ROWS = 2048, 32  # tokens of a text that is embedded, in a context of its own, and of its batches
SPARE = 1  # sequence beside those of candidates: it shares a range that is exported
CONTEXT = 4096  # tokens a sequence, where nobody says
_KV_BUDGET = 512 << 20  # bytes of KV that may be reserved so that every sequence can be full at once
_PAD = 256  # cells: llama.cpp pads n_ctx to this
_F32, _F16 = 4, 2
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # a value; ggml's block_q8_0 is 32 values in 34 bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes. `key_widths` and `value_widths` are values a token in each layer's KV cache, 0 for layers that
    share another's. `feed_forward` is the width of what is computed at once (experts in use x their width).
    `layer_bytes`, `input_bytes` (token embeddings) and `output_bytes` (the rest) are weights.
    """

    name: str
    quantization: str
    layers: int
    embedding: int
    feed_forward: int
    query_width: int
    key_widths: tuple[int, ...]
    value_widths: tuple[int, ...]
    vocabulary: int
    context: int  # tokens that it was trained for
    layer_bytes: tuple[int, ...]
    input_bytes: int
    output_bytes: int
    window: int = 0  # tokens; 0: no layer has a sliding window
    windowed: tuple[bool, ...] = ()
    is_tied: bool = False  # the output is computed with the token embeddings
    copies_input: bool = False  # tied, and these are held twice: as they are for reading, repacked for computing
    parameters: int = 0  # 0: not known
    experts_used: int = 0
    idle_bytes: int | None = 0  # weights of experts that a token does not use; None: not known
    states: tuple[int, ...] = ()  # values that each layer keeps of a sequence, whatever its length; none: not recurrent
    inner: int = 0  # values a token that a recurrent layer works with at once
    copies: float = 0.0  # of its states while it does

    @property
    def read_bytes(self) -> int:
        """Weights that are read for each token of one candidate; 0 if that is not known."""
        if self.idle_bytes is None:
            return 0
        return sum(self.layer_bytes) - self.idle_bytes + self.output_bytes + (self.input_bytes if self.is_tied else 0)

    @property
    def weight_bytes(self) -> int:
        """All weights, as they are held for the processor."""
        return sum(self.layer_bytes) + self.input_bytes * (2 if self.copies_input else 1) + self.output_bytes


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a loaded model takes. `kv` is all that is kept of sequences, `embedding` is for the context in which
    votes on free text compare answers."""

    weights: int
    kv: int
    compute: int
    output: int
    embedding: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.compute + self.output + self.embedding


def padded(cells: int) -> int:
    """Cells that llama.cpp reserves when so many are asked for."""
    return -(-cells // _PAD) * _PAD


def cells_for(sequences: int, context: int, row: int, planned: int = 0) -> int:
    """The KV cache's size in tokens, `row` bytes each: what was `planned`, or room for all sequences to be full if it
    is not too much, and for four in any case."""
    return min(sequences * context, planned or max(4 * context, _KV_BUDGET // max(row, 1)))


def kv_bytes_per_cell(shape: Shape, kv_type: str, *, layer: int | None = None) -> int:
    """Bytes of K and V a token over all layers, or in one."""
    layers = range(shape.layers) if layer is None else (layer,)
    return int(sum(shape.key_widths[i] + shape.value_widths[i] for i in layers) * KV_BYTES[kv_type])


def window_cells(shape: Shape, cells: int, sequences: int, *, swa_full: bool) -> int:
    """Cells of layers with a window: all, or what the windows of all sequences and one batch take (llama.cpp,
    src/llama-kv-cache-iswa.cpp)."""
    if not shape.window or swa_full:
        return padded(cells)
    return min(padded(cells), padded(shape.window * (sequences + SPARE) + UBATCH))


def kv_bytes(shape: Shape, cells: int, kv_type: str, *, sequences: int = 1, swa_full: bool = True) -> int:
    """The KV cache. Without `swa_full`, layers with a window keep only that, for each sequence, and one batch."""
    full, total = padded(cells), 0
    small = window_cells(shape, cells, sequences, swa_full=swa_full)
    for layer in range(shape.layers):
        is_small = bool(shape.windowed) and shape.windowed[layer]
        total += kv_bytes_per_cell(shape, kv_type, layer=layer) * (small if is_small else full)
    return total


def state_bytes(shape: Shape, sequences: int, *, layer: int | None = None) -> int:
    """What recurrent layers keep of so many sequences, all of them or one: f32, whatever the KV's type (llama.cpp,
    src/llama-memory-recurrent.cpp)."""
    return sum(shape.states if layer is None else shape.states[layer : layer + 1]) * sequences * _F32


def most_outputs(sequences: int) -> int:
    """Rows of one batch that may have logits. llama.cpp's own limit is the whole batch, which costs 4 bytes for each
    entry of the vocabulary times 512: 300 MB of a model of half a billion parameters."""
    return max(64, 4 * sequences)


def compute_bytes(shape: Shape, cells: int, small: int, outputs: int, ubatch: int = UBATCH, sequences: int = 1) -> int:
    """The buffer for what a batch computes on its way.

    ggml's allocator lets tensors share memory whose lives do not meet, so it is as large as the widest moment: the
    attention (Q, K, V and the result), the feed-forward (gate, up and their product), a recurrent layer (what goes in,
    what is convolved, and the states of all sequences), or the logits, each beside some rows of the width of the model;
    and the masks of the attention, which are needed throughout: one over all cells, and one over the `small` cells of
    layers with a window.
    """
    mask = (padded(cells) + (small if shape.window else 0)) * ubatch * _F16 if any(shape.key_widths) else 0
    kv_width = max((k + v for k, v in zip(shape.key_widths, shape.value_widths, strict=True)), default=0)
    attention = (2 * shape.query_width + kv_width + 3 * shape.embedding) * ubatch
    feed_forward = (3 * shape.feed_forward + 4 * shape.embedding) * ubatch
    if shape.experts_used:
        feed_forward += shape.experts_used * shape.embedding * ubatch
    logits = outputs * shape.vocabulary + 2 * shape.embedding * ubatch
    states = int(shape.copies * max(shape.states, default=0)) * sequences
    recurrent = (shape.inner + 3 * shape.embedding) * ubatch + states if shape.states else 0
    return mask + _F32 * max(attention, feed_forward, logits, recurrent)


def need(shape: Shape, cells: int, sequences: int, kv_type: str, *, swa_full: bool = True) -> Need:
    """Everything, for a context of `cells` tokens in all and so many sequences at once."""
    small = window_cells(shape, cells, sequences, swa_full=swa_full)
    return Need(
        weights=shape.weight_bytes,
        kv=kv_bytes(shape, cells, kv_type, sequences=sequences, swa_full=swa_full) + state_bytes(shape, sequences),
        compute=compute_bytes(shape, cells, small, most_outputs(sequences), UBATCH, sequences),
        output=sequences * shape.vocabulary * _F32,
        embedding=kv_bytes(shape, embedding_cells(shape), "f16") + state_bytes(shape, 1) + embedding_buffers(shape),
    )


def embedding_cells(shape: Shape) -> int:
    """Cells of the context that texts are embedded in; its KV is f16."""
    return padded(min(EMBED_CONTEXT, shape.context or EMBED_CONTEXT))


def embedding_buffers(shape: Shape) -> int:
    """The buffers of the context that texts are embedded in: each row of a batch has its logits and its state."""
    cells = embedding_cells(shape)
    return compute_bytes(shape, cells, cells, EMBED_ROWS, EMBED_ROWS) + (
        EMBED_ROWS * (shape.vocabulary + shape.embedding) * _F32
    )
