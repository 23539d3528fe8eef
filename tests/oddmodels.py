"""Tiny GGUF files of kinds that are no language model to chat with, or lack what one needs. Weights are random."""

from pathlib import Path

import gguf
import numpy as np

from scripts.bench.make_model import TEMPLATE, TINY, bytes_to_unicode, write

WIDTH = 64
VOCABULARY = 260
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


class _Writer:
    def __init__(self, path: Path, arch: str, *, layers: int) -> None:
        self.rng = np.random.default_rng(1)
        self.out = gguf.GGUFWriter(path, arch)
        self.out.add_name(f"tiny {arch}")
        self.out.add_block_count(layers)
        self.out.add_context_length(512)
        self.out.add_embedding_length(WIDTH)
        self.out.add_vocab_size(VOCABULARY)

    def tokenizer(self, *, template: bool = True) -> None:
        self.out.add_tokenizer_model("gpt2")
        self.out.add_tokenizer_pre("qwen2")
        self.out.add_token_list([*bytes_to_unicode(), "th", *SPECIALS])
        self.out.add_token_types([1] * 257 + [3] * len(SPECIALS))
        self.out.add_token_merges(["t h"])
        self.out.add_eos_token_id(VOCABULARY - 1)
        if template:
            self.out.add_chat_template(TEMPLATE)

    def matrix(self, name: str, rows: int, columns: int, kind: type = np.float16) -> None:
        values = self.rng.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        self.out.add_tensor(name, values.astype(kind))

    def vector(self, name: str, size: int, value: float = 1.0) -> None:
        self.out.add_tensor(name, np.full(size, value, dtype=np.float32))

    def close(self) -> None:
        self.out.write_header_to_file()
        self.out.write_kv_data_to_file()
        self.out.write_tensors_to_file()
        self.out.close()


def bert(path: Path, *, template: bool = False) -> None:
    """For embeddings only: attention looks both ways, and there is nothing to write tokens with."""
    w = _Writer(path, "bert", layers=1)
    w.out.add_feed_forward_length(128)
    w.out.add_head_count(2)
    w.out.add_causal_attention(False)
    w.out.add_pooling_type(gguf.PoolingType.MEAN)
    w.out.add_layer_norm_eps(1e-6)
    w.out.add_tokenizer_model("bert")
    w.out.add_token_type_count(2)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁w{i}" for i in range(VOCABULARY - 5))]
    w.out.add_token_list(words)
    w.out.add_token_types([3] * 5 + [1] * (VOCABULARY - 5))
    for name, id in (("unknown", 1), ("seperator", 3), ("padding", 0), ("cls", 2), ("mask", 4)):
        w.out.add_uint32(f"tokenizer.ggml.{name}_token_id", id)  # spelled as llama.cpp does
    if template:
        w.out.add_chat_template(TEMPLATE)
    w.matrix("token_embd.weight", VOCABULARY, WIDTH)
    w.matrix("token_types.weight", 2, WIDTH, np.float32)
    w.matrix("position_embd.weight", 512, WIDTH)
    w.vector("token_embd_norm.weight", WIDTH)
    w.vector("token_embd_norm.bias", WIDTH, 0.0)
    for name, rows, columns in (
        ("attn_q", WIDTH, WIDTH),
        ("attn_k", WIDTH, WIDTH),
        ("attn_v", WIDTH, WIDTH),
        ("attn_output", WIDTH, WIDTH),
        ("ffn_up", 128, WIDTH),
        ("ffn_down", WIDTH, 128),
    ):
        w.matrix(f"blk.0.{name}.weight", rows, columns)
        w.vector(f"blk.0.{name}.bias", rows, 0.0)
    for name in ("attn_output_norm", "layer_output_norm"):
        w.vector(f"blk.0.{name}.weight", WIDTH)
        w.vector(f"blk.0.{name}.bias", WIDTH, 0.0)
    w.close()


def bert_with_template(path: Path) -> None:
    """The same, dressed up."""
    bert(path, template=True)


def _llama(path: Path, tokenizer: str) -> None:
    w = _Writer(path, "llama", layers=1)
    w.out.add_feed_forward_length(128)
    w.out.add_head_count(2)
    w.out.add_layer_norm_rms_eps(1e-6)
    if tokenizer == "without a template":
        w.tokenizer(template=False)
    elif tokenizer == "none":
        w.out.add_tokenizer_model("none")
        w.out.add_chat_template(TEMPLATE)
    else:
        w.out.add_chat_template(TEMPLATE)
    w.matrix("token_embd.weight", VOCABULARY, WIDTH)
    w.vector("output_norm.weight", WIDTH)
    for name, rows, columns in (
        ("attn_q", WIDTH, WIDTH),
        ("attn_k", WIDTH, WIDTH),
        ("attn_v", WIDTH, WIDTH),
        ("attn_output", WIDTH, WIDTH),
        ("ffn_gate", 128, WIDTH),
        ("ffn_up", 128, WIDTH),
        ("ffn_down", WIDTH, 128),
    ):
        w.matrix(f"blk.0.{name}.weight", rows, columns)
    w.vector("blk.0.attn_norm.weight", WIDTH)
    w.vector("blk.0.ffn_norm.weight", WIDTH)
    w.close()


def without_template(path: Path) -> None:
    """A base model: nothing says how messages become a prompt."""
    _llama(path, "without a template")


def without_tokenizer(path: Path) -> None:
    """It says that it has none."""
    _llama(path, "none")


def silent_about_its_tokenizer(path: Path) -> None:
    """It says nothing of one."""
    _llama(path, "")


def good(path: Path) -> None:
    """What works."""
    write(path, TINY)
