"""The sizes of a model, exact, from the head of its GGUF file."""

from __future__ import annotations

from collections.abc import Collection

from node.core import recurrent
from node.core.shape import Shape
from node.models.gguf import Gguf

# llama.h: enum llama_ftype.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
# Of each so many layers the last has no window, where the file does not say: llama.cpp, `set_swa_pattern` by model.
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "llama4": 4, "exaone4": 4, "olmo2": 4}
# A file says what it likes; what would make the arithmetic slow or meaningless is cut to these.
_MOST_LAYERS, _MOST = 1024, 1 << 24


# What llama.cpp lays out anew at loading for the processor's instructions, by ggml type, if it has one of these
# features (names of /proc/cpuinfo): ggml/src/ggml-cpu/repack.cpp, `ggml_repack_get_optimal_repack_type`.
_REPACKED = {
    2: ("avx2", "i8mm", "asimddp"), 8: ("i8mm", "asimddp"), 10: ("avx512f",), 12: ("avx2", "i8mm", "asimddp"),
    13: ("i8mm", "asimddp"), 14: ("i8mm", "asimddp"), 20: ("avx2", "asimddp"), 39: ("avx2", "asimddp"),
}  # fmt: skip


def is_repacked(head: Gguf, features: Collection[str]) -> bool:
    """Whether a processor with these features would keep a second copy of weights beside a mapped file: then the file
    is better read than mapped."""
    return any(feature in features for kind in head.matrix_types for feature in _REPACKED.get(kind, ()))


def shape(head: Gguf, features: Collection[str] = ()) -> Shape:
    """The shape of the model in a file, for a processor with these features. What the file does not say counts as 0."""
    arch = str(head.metadata.get("general.architecture", ""))

    def number(key: str, default: int = 0) -> int:
        value = head.metadata.get(f"{arch}.{key}", default)
        return min(max(int(value), 0), _MOST) if isinstance(value, int | float) else default

    def each(key: str, default: int) -> tuple[int, ...]:
        """A size of each layer, which the file gives once or as a list."""
        found = head.arrays.get(f"{arch}.{key}", ())
        return tuple((*found, *[0] * layers)[:layers]) if found else (number(key, default),) * layers

    layers = min(number("block_count"), _MOST_LAYERS)
    trunk = layers - min(number("nextn_predict_layers"), layers) if arch in recurrent.KINDS else layers
    embedding, heads = number("embedding_length"), max(_largest(head, f"{arch}.attention.head_count"), 1)
    kv_heads = each("attention.head_count_kv", heads)
    key = number("attention.key_length", embedding // heads)
    value = number("attention.value_length", embedding // heads)
    if f"{arch}.attention.key_length_mla" in head.metadata:
        value = 0  # latent attention: V is a view of K (llama.cpp, src/llama-kv-cache.cpp)
    own = trunk - min(number("attention.shared_kv_layers"), trunk)  # gemma3n's last ones use others' KV
    feed_forward = each("feed_forward_length", 0)
    interval = number("full_attention_interval", 4)
    is_recurrent = recurrent.layers(arch, kv_heads, feed_forward, each("attention.recurrent_layers", 0), interval)
    attending = tuple(
        h if i < own and (arch == "falcon-h1" or not is_recurrent[i]) else 0 for i, h in enumerate(kv_heads)
    )
    window = number("attention.sliding_window")
    used = number("expert_used_count")
    dense = max(feed_forward, default=0)
    state = recurrent.state_values(arch, embedding, number)
    return Shape(
        name=head.name,
        quantization=_FILE_TYPES.get(int(head.metadata.get("general.file_type", -1) or 0), ""),
        layers=layers,
        embedding=embedding,
        feed_forward=max(dense if not used else 0, used * number("expert_feed_forward_length")) or dense,
        query_width=heads * key,
        key_widths=tuple(h * key for h in attending),
        value_widths=tuple(h * value for h in attending),
        vocabulary=head.vocabulary,
        context=number("context_length"),
        layer_bytes=tuple(head.layer_bytes.get(i, 0) for i in range(layers)),
        input_bytes=head.input_bytes,
        output_bytes=max(head.size - head.data_offset - head.input_bytes - sum(head.layer_bytes.values()), 0),
        window=window,
        windowed=_windowed(head, arch, layers) if window else (),
        is_tied=head.is_tied,
        copies_input=head.is_tied and any(f in features for f in _REPACKED.get(head.input_type, ())),
        experts_used=used,
        idle_bytes=None if used else 0,
        states=tuple(state * (is_one and i < trunk) for i, is_one in enumerate(is_recurrent))
        if any(is_recurrent)
        else (),
        inner=recurrent.inner_width(arch, embedding, number) if any(is_recurrent) else 0,
        copies=recurrent.copies(arch),
    )


def _largest(head: Gguf, key: str) -> int:
    """The largest of a list, or the number itself; 0 if there is neither."""
    value = head.metadata.get(key, 0)
    return min(max((*head.arrays.get(key, ()), value if isinstance(value, int) else 0)), _MOST)


def _windowed(head: Gguf, arch: str, layers: int) -> tuple[bool, ...]:
    key = f"{arch}.attention.sliding_window_pattern"
    if found := head.arrays.get(key):
        return tuple(bool(x) for x in (*found, *[0] * layers)[:layers])
    every = head.metadata.get(key, _PATTERNS.get(arch, 0))
    if not isinstance(every, int) or every < 1:
        return (True,) * layers
    return tuple(i % every < every - 1 for i in range(layers))
