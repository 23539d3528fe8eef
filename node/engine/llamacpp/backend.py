"""A GGUF model as a `Backend`.

Weights are loaded once; a prompt is computed once and forked. The context is one unified KV cache: inside it
`llama_memory_seq_cp` marks cells and copies nothing (llama.cpp, src/llama-kv-cache.cpp), so N candidates cost the cells
of the prompt once. What llama.cpp aborts the process for (batches over n_batch, sequence ids out of range, rows without
logits, two threads on one context) cannot be asked for through this class.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp as ll
import numpy as np
import psutil

from node.core import probe as kv_probe
from node.core import recurrent
from node.core.shape import CONTEXT, SPARE, UBATCH, cells_for, most_outputs
from node.engine.backend import CacheFull, ModelInfo, Row, Sampler, StateLost
from node.engine.llamacpp import devices, native
from node.engine.llamacpp.embedding import Embedder
from node.engine.llamacpp.logits import Logits
from node.engine.llamacpp.options import LlamaOptions
from node.engine.llamacpp.sampling import Candidates, Chain
from node.engine.llamacpp.vocabulary import Vocabulary
from node.errors import BackendError, InvalidRequest
from node.types import Message, SamplingParams, Tool

# The layout of llama_state_seq_get_data's blob that this version of the binding writes; it enters the fingerprint.
STATE_FORMAT = f"llama-cpp-python {ll.__version__}"
_KV_TYPES = {"f16": ll.GGML_TYPE_F16, "q8_0": ll.GGML_TYPE_Q8_0}
_LOAD_MAPPED, LOAD_READ = -1, 0  # llama.h: LLAMA_LOAD_MODE_AUTO, which maps where the devices can, and _NONE


class LlamaBackend:
    """A GGUF model. Raises InvalidRequest if the file is no model that chats, BackendError if it cannot be loaded."""

    def __init__(self, options: LlamaOptions, progress: Callable[[float], None] | None = None) -> None:
        native.set_up()
        # Native pointers; None before they are made and after `close`.
        self._model: Any = None
        self._ctx: Any = None
        self._batch: Any = None
        self._memory: Any = None
        self._embedder: Embedder | None = None
        self._rows: dict[int, Logits] = {}  # of the last batch, made when first drawn from
        try:
            self._load(options, progress)
        except BaseException:
            self.close()
            raise

    def _load(self, o: LlamaOptions, progress: Callable[[float], None] | None) -> None:
        params = ll.llama_model_default_params()

        def told(share: float, _: object) -> bool:
            if progress is not None:
                progress(share)
            return True  # go on

        params.progress_callback = ll.llama_progress_callback(told)  # lives as long as `params`
        params.n_gpu_layers = o.gpu_layers if o.gpu_layers >= 0 else 999
        params.load_mode = _LOAD_MAPPED if o.mmap else LOAD_READ
        kept = devices.spread(params, o.spread) if o.spread else ()
        native.forget_errors()
        self._model = ll.llama_model_load_from_file(str(o.path).encode(), params)
        del kept  # what params points to
        if not self._model and "tokenizer.ggml.model" in native.reason():
            raise InvalidRequest(f"{o.path} has no tokenizer: it cannot read a prompt")
        if not self._model:
            raise BackendError(f"{o.path} could not be loaded: {native.reason()}; download it again or use another")
        if not ll.llama_model_has_decoder(self._model) or ll.llama_model_has_encoder(self._model):
            raise InvalidRequest(f"{o.path} is not a model that chats: it has an encoder or no decoder")
        arch = _metadata(self._model, "general.architecture")
        self._is_recurrent = ll.llama_model_is_recurrent(self._model) or ll.llama_model_is_hybrid(self._model)
        if self._is_recurrent and (arch not in recurrent.KINDS or ll.llama_model_n_swa(self._model) > 0):
            raise InvalidRequest(f"{o.path} has recurrent layers of a kind ({arch}) that cannot be forked; use another")
        pools = _metadata(self._model, f"{arch}.pooling_type") not in ("", "0")
        if pools or _metadata(self._model, f"{arch}.attention.causal") == "false":
            raise InvalidRequest(f"{o.path} is an embedding model: it writes no text; use an instruction-tuned model")
        self._vocabulary = Vocabulary(self._model, o.path)
        self._threads: int = o.threads or psutil.cpu_count(logical=False) or os.cpu_count() or 1
        self._make_context(o)

    def _make_context(self, o: LlamaOptions) -> None:
        trained = ll.llama_model_n_ctx_train(self._model)
        if trained <= 0:
            raise BackendError(f"{o.path} is damaged: it says that it was trained for {trained} tokens")
        context = o.context or min(CONTEXT, trained)
        if context > trained:
            raise InvalidRequest(f"--ctx {context} is more than the {trained} tokens that the model was trained for")
        row = o.row or _kv_bytes_per_token(self._model, o.kv_type)
        cells = cells_for(o.sequences, context, row, o.cells)
        params = ll.llama_context_default_params()
        params.n_ctx = cells
        # Beside those of candidates, a sequence for the exporting of a range; nobody else uses it.
        # Of a recurrent model each takes memory, and there are no ranges.
        spare = 0 if self._is_recurrent else min(SPARE, ll.llama_max_parallel_sequences() - o.sequences)
        self._spare = range(o.sequences, o.sequences + spare)
        params.n_seq_max = o.sequences + spare
        params.n_batch = params.n_ubatch = max(UBATCH, o.sequences)
        self._most_outputs = params.n_outputs_max = min(most_outputs(o.sequences), params.n_batch)
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = _KV_TYPES[o.kv_type]
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.kv_unified = True
        params.swa_full = o.swa == "full"
        self._small_window = not params.swa_full and ll.llama_model_n_swa(self._model) > 0
        params.no_perf = True
        native.forget_errors()
        self._ctx = ll.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise BackendError(
                f"no memory for a context of {cells} tokens ({cells * row >> 20} MiB of KV): {native.reason()}"
            )
        self._memory = ll.llama_get_memory(self._ctx)
        batch = min(ll.llama_n_batch(self._ctx), ll.llama_n_ctx(self._ctx))  # llama.cpp may give less than was asked
        self._batch = ll.llama_batch_init(batch, 0, 1)
        vocabulary = self._vocabulary.size
        self._candidates = Candidates(vocabulary)
        self._row_type = ctypes.c_float * vocabulary
        self._scratch = np.empty(vocabulary, dtype=np.float32)
        description = ctypes.create_string_buffer(128)
        ll.llama_model_desc(self._model, description, len(description))
        self._info = ModelInfo(
            name=o.name,
            backend="llama",
            fingerprint=o.fingerprint,
            description=description.value.decode(errors="replace"),
            sequences=min(o.sequences, batch),
            context=min(context, ll.llama_n_ctx(self._ctx)),
            cells=ll.llama_n_ctx(self._ctx),
            batch=batch,
            vocabulary=vocabulary,
            rolls_back=not (self._small_window or self._is_recurrent),
            is_recurrent=bool(self._is_recurrent),
            is_demo=o.is_demo,
            window=max(ll.llama_model_n_swa(self._model), 0),
            parameters=ll.llama_model_n_params(self._model),
            weights_bytes=ll.llama_model_size(self._model),
            format=self._vocabulary.format,
            thinks=self._vocabulary.thinks,
        )

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        return self._info

    # ---- vocabulary: any thread --------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None = None) -> str:
        """The prompt, by the model's own chat template."""
        return self._vocabulary.render(messages, tools, think)

    def tokenize(self, text: str, *, is_part: bool = False) -> list[int]:
        """Token ids; control tokens that the template wrote are recognised."""
        return self._vocabulary.tokenize(text, is_part=is_part)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens but those of its format. Raises IndexError for no token."""
        return self._vocabulary.piece(token)

    def label(self, token: int) -> str:
        """A token as a person reads it, control tokens too."""
        return self._vocabulary.label(token)

    def is_end(self, token: int) -> bool:
        """Whether the token is one of the model's end-of-generation tokens."""
        return self._vocabulary.is_end(token)

    # ---- the decode thread ------------------------------------------------------------------------------------------

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute the rows in one llama_decode."""
        if sum(row.wants_logits for row in rows) > self._most_outputs:  # llama.cpp would end the process
            raise BackendError(f"a batch may have logits in {self._most_outputs} rows at most")
        batch = self._batch
        for i, row in enumerate(rows):
            batch.token[i] = row.token
            batch.pos[i] = row.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row.sequence
            batch.logits[i] = row.wants_logits
        batch.n_tokens = len(rows)
        self._rows.clear()
        code = ll.llama_decode(self._ctx, batch)
        if code == 1:
            raise CacheFull("no KV cells are left for the batch")
        if code not in (0, -1) and self._is_recurrent:
            # States change their places when a batch begins and are copied there while it is computed, those of
            # sequences that are not in it too (src/llama-memory-recurrent.cpp, find_slot).
            ll.llama_memory_clear(self._memory, True)
            raise StateLost(f"llama_decode failed with {code}: {native.reason()}")
        if code != 0:
            raise BackendError(f"llama_decode failed with {code}: {native.reason()}")

    def sampler(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Sampler:
        """llama.cpp's samplers, in the order of its own default."""
        ends = self._vocabulary.ends if params.ignore_eos else ()
        return Chain(self._vocabulary.pointer, self._vocabulary.size, params, seed, prompt, ends)

    def sample(self, sampler: Sampler, row: int) -> tuple[int, float]:
        """Draw a token; its log probability is under the model's plain distribution, before any sampler."""
        assert isinstance(sampler, Chain)
        logits = self._logits(row)
        token = sampler.draw(logits, self._candidates)
        return token, logits.logprob(token)

    def top(self, row: int, count: int) -> list[tuple[int, float]]:
        """The most probable tokens of a row under the plain distribution."""
        return self._logits(row).top(count)

    def _logits(self, row: int) -> Logits:
        """Of the last batch; candidates that fork from a prompt draw from the same row."""
        found = self._rows.get(row)
        if found is None:
            pointer = ll.llama_get_logits_ith(self._ctx, row)
            if not pointer:
                raise BackendError(f"row {row} has no logits")
            # Not as_array, whose cast makes a cycle of objects at each call.
            room: Any = self._row_type.from_address(ctypes.addressof(pointer.contents))
            values = np.frombuffer(room, dtype=np.float32)
            found = self._rows[row] = Logits(values, self._scratch)
        return found

    def fork(self, source: int, target: int, length: int) -> bool:
        """Mark cells as the target's too. A recurrent state is shared as long as it is whole, and copied when one of
        its sequences goes on.

        The small window cache needs cells of its own for each sequence: it makes room by overwriting what fell out of
        a sequence's window, and never overwrites cells that two sequences share (src/llama-kv-cache.cpp, find_slot).
        """
        if not self._holds_enough(source, length):
            return False
        ll.llama_memory_seq_cp(self._memory, source, target, 0, length)
        if self._small_window:
            window = self._export(target, ll.LLAMA_STATE_SEQ_FLAGS_SWA_ONLY)
            if window is None or not self._restore(target, window, ll.LLAMA_STATE_SEQ_FLAGS_SWA_ONLY):
                self.drop(target)
                return False
        return True

    def drop(self, sequence: int) -> None:
        """Free a sequence's cells, those of a failed batch included."""
        ll.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def truncate(self, sequence: int, length: int) -> bool:
        """Roll a sequence back."""
        if ll.llama_memory_seq_pos_max(self._memory, sequence) == length - 1:
            return True
        return self._holds_enough(sequence, length) and bool(ll.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def _holds_enough(self, sequence: int, length: int) -> bool:
        """Whether a sequence can go on after its first `length` tokens. With a sliding window the cells before it are
        gone (after a restore with the large window cache too), and llama.cpp would say yes and answer wrongly:
        positions must reach back to 0, or further than the window before `length`. A recurrent state is that of its
        last token alone."""
        if ll.llama_memory_seq_pos_max(self._memory, sequence) == length - 1:
            return True
        if self._is_recurrent:
            return False
        first = ll.llama_memory_seq_pos_min(self._memory, sequence)
        window = ll.llama_model_n_swa(self._model)
        return length > 0 and first >= 0 and (first == 0 or first < max(0, length - window))

    def export(self, sequence: int, start: int = 0) -> Any:
        """llama_state_seq_get_data's blob, as an array of bytes. There is no call for a range: a spare sequence that
        shares the range's cells has it."""
        if start and not self._is_recurrent:
            return self._export_range(sequence, start, -1)
        return self._export(sequence, ll.LLAMA_STATE_SEQ_FLAGS_NONE)

    def _export_range(self, sequence: int, start: int, end: int) -> Any:
        if not self._spare:
            return self._export(sequence, ll.LLAMA_STATE_SEQ_FLAGS_NONE)
        spare = self._spare[0]
        ll.llama_memory_seq_cp(self._memory, sequence, spare, start, end)
        try:
            return self._export(spare, ll.LLAMA_STATE_SEQ_FLAGS_NONE)
        finally:
            self.drop(spare)

    def _export(self, sequence: int, flags: int) -> Any:
        size = ll.llama_state_seq_get_size_ext(self._ctx, sequence, flags)
        state = np.empty(size, dtype=np.uint8)
        written = ll.llama_state_seq_get_data_ext(self._ctx, _bytes(state), size, sequence, flags)
        return state if written == size else None

    def restore(self, sequence: int, state: Any) -> bool:
        """Load a blob that `export` of this process made; a failed load leaves nothing behind."""
        return self._restore(sequence, state, ll.LLAMA_STATE_SEQ_FLAGS_NONE)

    def _restore(self, sequence: int, state: Any, flags: int) -> bool:
        read = ll.llama_state_seq_set_data_ext(self._ctx, _bytes(state), state.nbytes, sequence, flags)
        if read != state.nbytes:
            self.drop(sequence)
            return False
        return True

    def reopen(self, sequence: int, length: int) -> Any:
        """Roll back to the token before the last. A window that holds what comes after the last holds what the last one
        sees but for itself, so at the sequence's end this is no rollback that a window forbids."""
        at = length - 1
        is_end = ll.llama_memory_seq_pos_max(self._memory, sequence) == at
        if at < 1 or self._is_recurrent or not (is_end or self._holds_enough(sequence, at)):
            return None
        was = self._row(sequence, at)
        return was if ll.llama_memory_seq_rm(self._memory, sequence, at, -1) else None

    def refutes(self, sequence: int, tokens: Sequence[int], was: Any) -> bool:
        """Compare K and V of the last token with those that were held: they depend, layer by layer, on all that comes
        before. The same computation differs by rounding only."""
        at = len(tokens) - 1
        return not kv_probe.agrees(self._row(sequence, at), was, self._info.window, at)

    def _row(self, sequence: int, position: int) -> Any:
        """The state of one token of a sequence, or more."""
        return self._export_range(sequence, position, position + 1)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Mean-pooled last hidden state, length 1; the context for it is made when first needed."""
        if self._embedder is None:
            self._embedder = Embedder(self._model, context=self._info.context, threads=self._threads)
        limit = self._embedder.limit
        return [self._embedder.embed((self.tokenize(t) or self.tokenize(" ") or [0])[:limit]) for t in texts]

    def close(self) -> None:
        """Free contexts and weights."""
        if self._embedder is not None:
            self._embedder.close()
        if self._ctx:
            if self._batch is not None:
                ll.llama_batch_free(self._batch)
            ll.llama_free(self._ctx)
        if self._model:
            ll.llama_model_free(self._model)
        self._embedder = self._ctx = self._model = self._batch = None


def _bytes(state: Any) -> Any:
    """A pointer to an array's bytes, for one call. Not `data_as`, whose cast makes a cycle of objects each time."""
    return ctypes.byref(ctypes.c_uint8.from_address(state.ctypes.data))


def _metadata(model: Any, key: str) -> str:
    """A value of the file's metadata as text; empty if it is not there."""
    value = ctypes.create_string_buffer(64)
    size = ll.llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode(errors="replace") if size >= 0 else ""


def _kv_bytes_per_token(model: Any, kv_type: str) -> int:
    """Bytes of K and V a token over all layers, for plain attention (windows and shared layers need less)."""
    heads = max(ll.llama_model_n_head(model), 1)
    width = ll.llama_model_n_embd(model) // heads * ll.llama_model_n_head_kv(model)
    per_value = 2.0 if kv_type == "f16" else 34 / 32  # ggml block_q8_0: 32 values in 34 bytes
    return int(2 * ll.llama_model_n_layer(model) * width * per_value)
