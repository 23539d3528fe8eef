"""The network as GGUF (`qwen3`), and back again: evaluation reads the very file that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType
from tokenizers import Tokenizer

from scripts.model import tokenizer as bpe
from scripts.model.network import Network, Shape
from scripts.model.template import MARKUP, SPECIAL, TEMPLATE

# Our name of a layer's weight -> GGUF's.
_LAYER = {
    "attn_norm": "attn_norm.weight",
    "attn.q.weight": "attn_q.weight",
    "attn.k.weight": "attn_k.weight",
    "attn.v.weight": "attn_v.weight",
    "attn.o.weight": "attn_output.weight",
    "attn.q_norm": "attn_q_norm.weight",
    "attn.k_norm": "attn_k_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "gate.weight": "ffn_gate.weight",
    "up.weight": "ffn_up.weight",
    "down.weight": "ffn_down.weight",
}


def _names(layers: int) -> dict[str, str]:
    names = {"embedding.weight": "token_embd.weight", "norm": "output_norm.weight"}
    for n in range(layers):
        names |= {f"layers.{n}.{ours}": f"blk.{n}.{theirs}" for ours, theirs in _LAYER.items()}
    return names


def export(checkpoint: Path, out: Path, kind: str = "f16") -> int:
    """Write a checkpoint as GGUF with matrices in `kind` (f32, f16 or q8_0) and norms in F32; returns the bytes."""
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
    shape = Shape(**kept["shape"])
    out.parent.mkdir(parents=True, exist_ok=True)
    w = GGUFWriter(out, "qwen3")
    w.add_name("Conclave demo")
    w.add_description("Conclave's small demonstration model: sums, recall within a chat, tool calls")
    w.add_license("MIT")
    w.add_size_label(f"{sum(t.numel() for t in kept['weights'].values()) / 1e6:.2f}M")
    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    w.add_file_type(types[kind])
    w.add_context_length(shape.context)
    w.add_embedding_length(shape.width)
    w.add_block_count(shape.layers)
    w.add_feed_forward_length(shape.hidden)
    w.add_head_count(shape.heads)
    w.add_head_count_kv(shape.kv_heads)
    w.add_key_length(shape.head)
    w.add_value_length(shape.head)
    w.add_rope_freq_base(shape.theta)
    w.add_layer_norm_rms_eps(shape.eps)
    w.add_vocab_size(shape.vocabulary)
    _add_tokenizer(w, kept["tokens"], kept["merges"])
    for ours, theirs in _names(shape.layers).items():
        array = kept["weights"][ours].float().numpy()
        if array.ndim == 1 or kind == "f32":
            w.add_tensor(theirs, array.astype(np.float32))
        elif kind == "f16":
            w.add_tensor(theirs, array.astype(np.float16))
        else:
            q = GGMLQuantizationType.Q8_0
            w.add_tensor(theirs, gguf.quants.quantize(array, q), raw_dtype=q)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return out.stat().st_size


def _add_tokenizer(w: GGUFWriter, tokens: list[str], merges: list[tuple[str, str]]) -> None:
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    kinds = {**dict.fromkeys(SPECIAL, TokenType.CONTROL), **dict.fromkeys(MARKUP, TokenType.USER_DEFINED)}
    w.add_token_types([kinds.get(t, TokenType.NORMAL) for t in tokens])
    w.add_token_merges([f"{a} {b}" for a, b in merges])
    end = tokens.index("<|im_end|>")
    # Without an explicit end token llama.cpp takes id 11.
    w.add_eos_token_id(end)
    w.add_eot_token_id(end)
    w.add_pad_token_id(tokens.index("<|endoftext|>"))
    w.add_add_bos_token(False)
    w.add_add_eos_token(False)
    w.add_chat_template(TEMPLATE)


def load(path: Path) -> tuple[Network, Tokenizer]:
    """The network (weights as F32) and the tokenizer of a GGUF that `export` wrote."""
    reader = GGUFReader(path)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        assert field is not None, f"{path} has no {key}"
        return field.contents()

    shape = Shape(
        vocabulary=len(value("tokenizer.ggml.tokens")),
        width=value("qwen3.embedding_length"),
        layers=value("qwen3.block_count"),
        heads=value("qwen3.attention.head_count"),
        kv_heads=value("qwen3.attention.head_count_kv"),
        head=value("qwen3.attention.key_length"),
        hidden=value("qwen3.feed_forward_length"),
        theta=value("qwen3.rope.freq_base"),
        eps=value("qwen3.attention.layer_norm_rms_epsilon"),
        context=value("qwen3.context_length"),
    )
    net = Network(shape)
    held = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    net.load_state_dict({ours: held[theirs].float() for ours, theirs in _names(shape.layers).items()})
    merges = [tuple(m.split(" ")) for m in value("tokenizer.ggml.merges")]
    return net.eval(), bpe.build(value("tokenizer.ggml.tokens"), merges)
