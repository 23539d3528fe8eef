"""The shipped file in llama.cpp, by the bindings' low-level API: tokens, logits, greedy continuations."""

from __future__ import annotations

import os
from pathlib import Path

# With the default, idle OpenMP threads spin, and one busy neighbour makes every step ten times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import llama_cpp as lc
import numpy as np


class Llama:
    """One model and one context; `f32_kv` keeps keys and values in full precision, for comparing logits."""

    def __init__(self, path: Path, f32_kv: bool = False, context: int = 1024) -> None:
        self._log = lc.llama_log_callback(lambda *_: None)
        lc.llama_log_set(self._log, None)
        lc.llama_backend_init()
        params = lc.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.size = lc.llama_vocab_n_tokens(self.vocab)
        c = lc.llama_context_default_params()
        c.n_ctx, c.n_batch, c.n_ubatch, c.n_threads, c.n_threads_batch = context, context, context, 1, 1
        # Flash attention rounds as F16 does; the comparison in F32 needs it off, the shipped file is used with it on.
        c.flash_attn_type = 0 if f32_kv else 1
        c.type_k = c.type_v = lc.GGML_TYPE_F32 if f32_kv else lc.GGML_TYPE_F16
        self.context = lc.llama_init_from_model(self.model, c)

    def tokens(self, text: str) -> list[int]:
        """Token ids, with the marks of the template read as such."""
        raw = text.encode()
        out = (lc.llama_token * (len(raw) + 8))()
        n = lc.llama_tokenize(self.vocab, raw, len(raw), out, len(out), False, True)
        return list(out[:n])

    def logits(self, ids: list[int], every: bool = True) -> np.ndarray:
        """Logits [tokens, vocabulary] of a fresh sequence, or only the last row."""
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)
        return self._decode(ids, 0, every)

    def greedy(self, ids: list[int], most: int) -> list[int]:
        """The likeliest continuation, up to the end of the turn."""
        out: list[int] = []
        row = self.logits(ids, every=False)[-1]
        while len(out) < most:
            token = int(row.argmax())
            if lc.llama_vocab_is_eog(self.vocab, token):
                break
            out.append(token)
            row = self._decode([token], len(ids) + len(out) - 1, False)[-1]
        return out

    def _decode(self, ids: list[int], start: int, every: bool) -> np.ndarray:
        batch = lc.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = every or i + 1 == len(ids)
        code = lc.llama_decode(self.context, batch)
        lc.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        rows = len(ids) if every else 1
        held = lc.llama_get_logits(self.context)
        return np.ctypeslib.as_array(held, shape=(rows, self.size)).copy()

    def close(self) -> None:
        """Free the context and the model."""
        lc.llama_free(self.context)
        lc.llama_model_free(self.model)
