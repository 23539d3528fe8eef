"""A tiny MLX model directory with random weights, made in the test, as mlx-lm reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QWEN: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
WINDOWED: dict[str, Any] = {
    **QWEN, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 16, "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 16, "rope_local_base_freq": 10000.0,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(path: Path, config: dict[str, Any], seed: int = 1) -> Path:
    """Write the directory."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    path.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in specials])
    tokenizer.save(str(path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}))
    config = {**config, "vocab_size": size, "eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    (path / "config.json").write_text(json.dumps(config))
    mx.random.seed(seed)
    kind, arguments = _get_classes(config)
    model = kind(arguments.from_dict(config))
    weights = {
        name: mx.random.normal(w.shape) * (0.3 if w.ndim > 1 else 0.1)
        + (1.0 if w.ndim == 1 and "norm" in name else 0.0)
        for name, w in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    return path
