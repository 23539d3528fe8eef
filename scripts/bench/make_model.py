"""Write a GGUF with random weights in the shape of Qwen2.5-0.5B (or another), and quantize it: speed knows no values.

    python scripts/bench/make_model.py [--type q8_0]     prints the path; files are kept in the user's cache
    python scripts/bench/make_model.py --tiny --window 64 --out FILE     a small one for tests, with a sliding window

Vocabulary: bytes and the ChatML control tokens are real, the rest are placeholders, so prompts of plain text tokenize
to one token a byte (but for "th").
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conclave" / "bench"
TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "mxfp4_moe")
LETTERS = range(ord("a"), ord("z") + 1)  # token ids: the vocabulary begins with the bytes
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    arch: str = "qwen2"
    layers: int = 24
    width: int = 896
    heads: int = 14
    kv_heads: int = 2
    hidden: int = 4864
    vocabulary: int = 151_936
    context: int = 32_768
    window: int = 0
    experts: int = 0  # each `hidden` wide
    used: int = 0  # of them a token

    @property
    def head(self) -> int:
        return self.width // self.heads


QWEN_05B = Shape()
# Rows of whole blocks of 256, as models of 1.5B and more have them: so Q4_K_M files of it are Q4_K and Q6_K throughout.
BLOCKS = Shape(layers=12, width=1024, heads=16, hidden=2816, vocabulary=32_000)
# A mixture of experts, as Qwen3-30B-A3B is one of 128 experts, each 2,048 x 768.
EXPERTS = Shape("qwen3moe", 6, 1024, 16, 2, hidden=512, vocabulary=32_000, experts=64, used=8)
SHAPES = {"0.5b": QWEN_05B, "blocks": BLOCKS, "experts": EXPERTS}
TINY = Shape("gemma2", layers=2, width=64, heads=2, kv_heads=1, hidden=128, vocabulary=300, context=2048)
TINY_EXPERTS = replace(TINY, arch="qwen3moe", hidden=64, experts=8, used=4)


def bytes_to_unicode() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write(path: Path, shape: Shape, seed: int = 1, *, q8_0: bool = False) -> None:
    """Write a file of F16 or of Q8_0."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0 if q8_0 else gguf.GGMLQuantizationType.F16

    rng = np.random.default_rng(seed)
    out = gguf.GGUFWriter(path, shape.arch)
    out.add_name(f"random {shape.arch} {shape.layers}x{shape.width}")
    out.add_block_count(shape.layers)
    out.add_context_length(shape.context)
    out.add_embedding_length(shape.width)
    out.add_feed_forward_length(shape.hidden)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv_heads)
    out.add_key_length(shape.head)
    out.add_value_length(shape.head)
    out.add_rope_freq_base(1e6)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(shape.vocabulary)
    if shape.experts:
        out.add_expert_count(shape.experts)
        out.add_expert_used_count(shape.used)
        out.add_expert_feed_forward_length(shape.hidden)
    if shape.window:
        out.add_sliding_window(shape.window)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    filler = shape.vocabulary - 257 - len(specials)
    # llama.cpp wants at least one merge.
    tokens = [*bytes_to_unicode(), "th", *(f"<filler{i}>" for i in range(filler)), *specials]
    kinds = [1] * 257 + [5] * filler + [3] * len(specials)  # NORMAL, UNUSED, CONTROL
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges(["t h"])
    out.add_eos_token_id(shape.vocabulary - 1)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)

    def matrix(name: str, *sizes: int, scale: float = 1.0) -> None:
        values = rng.standard_normal(sizes, dtype=np.float32) * (scale / np.sqrt(sizes[-1]))
        out.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def vector(name: str, size: int, value: float = 1.0) -> None:
        out.add_tensor(name, np.full(size, value, dtype=np.float32))

    kv_width = shape.kv_heads * shape.head
    matrix("token_embd.weight", shape.vocabulary, shape.width)
    vector("output_norm.weight", shape.width)
    for i in range(shape.layers):
        block = f"blk.{i}."
        matrix(block + "attn_q.weight", shape.heads * shape.head, shape.width)
        matrix(block + "attn_k.weight", kv_width, shape.width)
        matrix(block + "attn_v.weight", kv_width, shape.width)
        matrix(block + "attn_output.weight", shape.width, shape.heads * shape.head)
        many, suffix = ((shape.experts,), "_exps.weight") if shape.experts else ((), ".weight")
        matrix(block + "ffn_gate" + suffix, *many, shape.hidden, shape.width)
        matrix(block + "ffn_up" + suffix, *many, shape.hidden, shape.width)
        matrix(block + "ffn_down" + suffix, *many, shape.width, shape.hidden)
        vector(block + "attn_norm.weight", shape.width)
        vector(block + "ffn_norm.weight", shape.width)
        if shape.arch == "qwen2":
            vector(block + "attn_q.bias", shape.heads * shape.head, 0.0)
            vector(block + "attn_k.bias", kv_width, 0.0)
            vector(block + "attn_v.bias", kv_width, 0.0)
        elif shape.experts:
            # Their weights differ, as those of trained ones do: of two that are nearly as good none or both are used.
            matrix(block + "ffn_gate_inp.weight", shape.experts, shape.width, scale=8)
            vector(block + "attn_q_norm.weight", shape.head)
            vector(block + "attn_k_norm.weight", shape.head)
        else:
            vector(block + "post_attention_norm.weight", shape.width)
            vector(block + "post_ffw_norm.weight", shape.width)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def quantize(source: Path, target: Path, kind: str) -> None:
    """Quantize a file with llama.cpp."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    if llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)) != 0:
        sys.exit(f"{source} could not be quantized to {kind}")


def model(kind: str = "q8_0", shape: str = "0.5b") -> Path:
    """The model of a shape in a type, made once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name = f"{SHAPES[shape].arch}-{shape}-random"
    target = CACHE / f"{name}-{kind}.gguf"
    if not target.exists():
        source = CACHE / f"{name}-f16.gguf"
        if not source.exists():
            write(source.with_suffix(".part"), SHAPES[shape])
            source.with_suffix(".part").rename(source)
        if kind != "f16":
            quantize(source, target.with_suffix(".part"), kind)
            target.with_suffix(".part").rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="q8_0", choices=TYPES)
    parser.add_argument("--shape", default="0.5b", choices=SHAPES)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.tiny:
        if args.out is None:
            parser.error("--tiny needs --out FILE")
        shape = Shape(**{**TINY.__dict__, "window": args.window})
        write(args.out, shape)
        print(args.out)
    else:
        print(model(args.type, args.shape))


if __name__ == "__main__":
    main()
