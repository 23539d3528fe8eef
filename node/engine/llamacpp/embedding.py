"""Vectors of texts: the model's mean-pooled last hidden state, in a small context of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp as ll
import numpy as np

from node.engine.llamacpp import native
from node.errors import BackendError

_CONTEXT = 2048  # tokens; longer texts are cut


class Embedder:
    """A context to embed with, beside the one that decodes. Raises BackendError if there is no memory for it."""

    def __init__(self, model: Any, *, context: int, threads: int) -> None:
        params = ll.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = min(_CONTEXT, context)
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.pooling_type = ll.LLAMA_POOLING_TYPE_MEAN
        params.no_perf = True
        self._size: int = ll.llama_model_n_embd(model)
        self._ctx = ll.llama_init_from_model(model, params)
        if not self._ctx:
            raise BackendError(f"no memory for a context to embed with: {native.reason()}")
        self.limit: int = ll.llama_n_batch(self._ctx)

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """The vector, of length 1, of 1 to `limit` tokens."""
        memory = ll.llama_get_memory(self._ctx)
        batch = ll.llama_batch_init(len(tokens), 0, 1)
        try:
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
                batch.seq_id[i][0] = 0
            batch.n_tokens = len(tokens)
            if memory:
                ll.llama_memory_clear(memory, True)
            if ll.llama_decode(self._ctx, batch) != 0:
                raise BackendError(f"the text could not be embedded: {native.reason()}")
            pointer = ll.llama_get_embeddings_seq(self._ctx, 0)
            row: Any = (ctypes.c_float * self._size).from_address(ctypes.addressof(pointer.contents))
            vector = np.frombuffer(row, dtype=np.float32).astype(np.float64)
        finally:
            ll.llama_batch_free(batch)
        norm = float(np.linalg.norm(vector))
        return [float(x) for x in vector / norm] if norm > 0 else [0.0] * self._size

    def close(self) -> None:
        """Free the context. The second call does nothing."""
        if self._ctx:
            ll.llama_free(self._ctx)
            self._ctx = None
