"""Tiny GGUF files of models with recurrent layers, with random weights. llama.cpp says which tensors a kind has."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from scripts.bench.make_model import TEMPLATE, bytes_to_unicode

WIDTH, HEADS, LAYERS, CONTEXT = 64, 2, 4, 2048
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
VOCABULARY = 257 + len(SPECIALS)
KINDS = (
    "mamba", "mamba2", "jamba", "granitehybrid", "falcon-h1", "nemotron_h", "nemotron_h_moe", "lfm2", "lfm2moe",
    "qwen3next", "qwen35", "qwen35moe",
)  # fmt: skip


def write(path: Path, kind: str, *, seed: int = 1, **sizes: Any) -> None:
    """A model of a kind (llama.cpp's name of the architecture). `sizes` take the place of metadata by their keys."""
    _write(path, kind, {}, sizes)
    names = _tensors(path)
    rng = np.random.default_rng(seed)
    _write(path, kind, {name: _values(rng, name, shape, half) for name, (shape, half) in names.items()}, sizes)


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...], half: bool) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        values = 1 + 0.1 * values
    elif name.endswith("ssm_a"):  # a state decays
        values = -np.abs(values) - 0.05
    elif len(shape) > 1:
        # Small embeddings, so that the layers have the last word, not the last token.
        values *= (0.3 if "token_embd" in name else 1.5) / np.sqrt(shape[-1])
    else:
        values *= 0.3
    return values.astype(np.float16 if half else np.float32)


def _write(path: Path, kind: str, tensors: dict[str, np.ndarray], sizes: dict[str, Any]) -> None:
    out = gguf.GGUFWriter(path, kind)
    out.add_name(f"tiny {kind}")
    attention = [i % 2 * HEADS for i in range(LAYERS)]  # heads of each layer; 0: it is recurrent
    is_delta = kind.startswith("qwen3")
    numbers: dict[str, Any] = {
        "block_count": LAYERS, "context_length": CONTEXT, "embedding_length": WIDTH, "vocab_size": VOCABULARY,
        "feed_forward_length": [96 * (i == 2) for i in range(LAYERS)] if kind.startswith("nemotron_h") else 96,
        "attention.head_count": HEADS, "attention.layer_norm_rms_epsilon": 1e-6, "attention.layer_norm_epsilon": 1e-6,
        "rope.dimension_sections": [4, 4, 4, 4], "full_attention_interval": 2, "shortconv.l_cache": 3,
        "ssm.conv_kernel": 4, "ssm.inner_size": 2 * WIDTH, "ssm.state_size": 32 if is_delta else 16,
        "ssm.time_step_rank": 4, "ssm.group_count": 2, "attention.key_length": 32,
        "attention.value_length": 32, "rope.dimension_count": 32,
    }  # fmt: skip
    if kind not in ("falcon-h1", "mamba", "mamba2") and not is_delta:
        numbers["attention.head_count_kv"] = attention
    if kind in ("mamba", "mamba2"):
        numbers["attention.head_count"] = 0
    if not kind.startswith("lfm2"):
        del numbers["shortconv.l_cache"]
    if kind == "qwen3next" or kind.endswith("moe"):
        numbers |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
        numbers |= {"expert_shared_count": 1, "expert_gating_func": 2, "leading_dense_block_count": 1}
        numbers |= {"expert_shared_feed_forward_length": 32}
    if not kind.startswith("qwen35"):
        del numbers["rope.dimension_sections"]
    for key, value in (numbers | sizes).items():
        name = f"{kind}.{key}"
        if isinstance(value, list):
            out.add_array(name, value)
        elif isinstance(value, float):
            out.add_float32(name, value)
        else:
            out.add_uint32(name, value)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list([*bytes_to_unicode(), "th", *SPECIALS])
    out.add_token_types([1] * 257 + [3] * len(SPECIALS))
    out.add_token_merges(["t h"])
    out.add_eos_token_id(VOCABULARY - 2)
    out.add_chat_template(TEMPLATE)
    for name, values in tensors.items():
        out.add_tensor(name, values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


class _Tensor(ctypes.Structure):
    """The beginning of ggml_tensor (ggml.h)."""

    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4))


def _tensors(path: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
    """The tensors that llama.cpp makes of a file with metadata alone: their shapes, and whether they are f16."""
    lib = llama_cpp.llama_cpp._lib  # with ggml, which it is linked to
    lib.ggml_get_name.restype, lib.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    lib.gguf_free.argtypes = [ctypes.c_void_p]

    class Params(ctypes.Structure):  # gguf_init_params (gguf.h)
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))

    lib.gguf_init_from_file.restype, lib.gguf_init_from_file.argtypes = ctypes.c_void_p, [ctypes.c_char_p, Params]
    found: dict[str, tuple[tuple[int, ...], bool]] = {}

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    def take(address: int, _: object) -> None:
        tensor = _Tensor.from_address(address)
        shape = [int(n) for n in tensor.ne]
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        found[lib.ggml_get_name(address).decode()] = (tuple(reversed(shape)), tensor.type == 1)

    metadata = lib.gguf_init_from_file(bytes(path), Params(True, None))
    native = lib.llama_model_init_from_user
    native.restype = ctypes.c_void_p
    native.argtypes = [ctypes.c_void_p, type(take), ctypes.c_void_p, llama_cpp.llama_model_params]
    model = native(metadata, take, None, llama_cpp.llama_model_default_params())
    assert model, f"llama.cpp makes no model of {path}"
    llama_cpp.llama_model_free(model)
    lib.gguf_free(metadata)
    return found
