"""Vectors of texts: the model's mean-pooled last hidden state, in a small context of its own.

llama.cpp can pool by itself, but then all of a text's tokens must be in one batch, and for each of them it computes
logits that nobody asked for and keeps them: a text of 2,048 tokens took 2.4 GB with a vocabulary of 152,000. In pieces,
whose hidden states are summed here, it takes 70 MB (`EMBED_ROWS`: each row of a piece costs 8 bytes for every entry of
the vocabulary). Texts of more than `EMBED_CONTEXT` tokens are cut.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp as ll
import numpy as np

from node.core.shape import EMBED_CONTEXT, EMBED_ROWS
from node.engine.llamacpp import native
from node.errors import BackendError


class Embedder:
    """A context to embed with, beside the one that decodes. Raises BackendError if there is no memory for it."""

    def __init__(self, model: Any, *, context: int, threads: int) -> None:
        params = ll.llama_context_default_params()
        params.n_ctx = min(EMBED_CONTEXT, context)
        params.n_batch = params.n_ubatch = min(EMBED_ROWS, params.n_ctx)
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.pooling_type = ll.LLAMA_POOLING_TYPE_NONE
        params.no_perf = True
        self._size: int = ll.llama_model_n_embd(model)
        self._ctx = ll.llama_init_from_model(model, params)
        if not self._ctx:
            raise BackendError(f"no memory for a context to embed with: {native.reason()}")
        self._rows = min(EMBED_ROWS, ll.llama_n_batch(self._ctx))
        self.limit: int = min(EMBED_CONTEXT, context, ll.llama_n_ctx(self._ctx))

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """The vector, of length 1, of 1 to `limit` tokens."""
        memory = ll.llama_get_memory(self._ctx)
        batch = ll.llama_batch_init(self._rows, 0, 1)
        vector = np.zeros(self._size, dtype=np.float64)
        try:
            if memory:
                ll.llama_memory_clear(memory, True)
            for begin in range(0, len(tokens), self._rows):
                vector += self._sum(batch, tokens[begin : begin + self._rows], begin)
        finally:
            ll.llama_batch_free(batch)
        norm = float(np.linalg.norm(vector))
        return [float(x) for x in vector / norm] if norm > 0 else [0.0] * self._size

    def _sum(self, batch: Any, tokens: Sequence[int], begin: int) -> Any:
        """The sum of the hidden states of some tokens that begin at a position."""
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, begin + i, 1, 1
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(tokens)
        if ll.llama_decode(self._ctx, batch) != 0:
            raise BackendError(f"the text could not be embedded: {native.reason()}")
        pointer = ll.llama_get_embeddings(self._ctx)
        states: Any = (ctypes.c_float * (len(tokens) * self._size)).from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(states, dtype=np.float32).reshape(len(tokens), self._size).sum(axis=0, dtype=np.float64)

    def close(self) -> None:
        """Free the context. The second call does nothing."""
        if self._ctx:
            ll.llama_free(self._ctx)
            self._ctx = None
