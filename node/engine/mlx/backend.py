"""MLX through mlx-lm: Apple's framework, on Apple silicon's GPU or, with its CPU wheels, on Linux.

The rows that the scheduler asks for map onto MLX's caches so: a sequence has a cache of its own (a `KVCache` a layer),
into which its prompt is computed. Sequences that write one token each step are merged into one `BatchKVCache` a layer
and stay there as long as the same ones write; one that ends or joins takes its part out again (`extract`), which copies
its KV, as MLX has no cells to mark. So a fork copies too: N candidates take N times the KV of the prompt.

What mlx-lm cannot take back is not pretended: a `RotatingKVCache` (sliding windows) can be trimmed only until its
window is full (cache.py, `is_trimmable`), so `truncate` and `fork` say no, and the scheduler computes again. There are
no grammars here. Models are directories as mlx-lm writes them: config.json, tokenizer.json, *.safetensors.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.utils import load_model
from numpy.typing import NDArray

from node.engine.backend import ModelInfo, Row, Sampler
from node.engine.mlx import state
from node.engine.mlx.sampling import MlxSampler, log_sum
from node.engine.template import ChatTemplate
from node.engine.vocabulary import Vocabulary
from node.errors import BackendError, InvalidRequest
from node.types import Message, SamplingParams, Tool

_BATCH = 512
_DEFAULT_CONTEXT = 4096
_CACHES = (KVCache, RotatingKVCache)
_SAME = 5e-2  # the same computation in another batch differs by the rounding of 16 bits


@dataclass(frozen=True, slots=True)
class MlxOptions:
    """How to load a model; 0 means: decide."""

    path: Path
    name: str
    fingerprint: str
    sequences: int = 16
    context: int = 0


def fingerprint(path: Path) -> str:
    """Hex hash of a model's directory: all of its configuration and tokenizer, and samples of its weights. Raises
    BackendError."""
    digest = hashlib.sha256(state.FORMAT.encode())
    try:
        for file in sorted([*path.glob("*.json"), *path.glob("*.jinja")]):
            digest.update(file.name.encode() + file.read_bytes())
        for file in sorted(path.glob("*.safetensors")):
            size = file.stat().st_size
            with file.open("rb") as f:
                for i in range(64):
                    f.seek(size * i // 64)
                    digest.update(f.read(4096))
            digest.update(f"{file.name} {size}".encode())
    except OSError as e:
        raise BackendError(f"{path} cannot be read: {e.strerror or e}") from None
    return digest.hexdigest()


@dataclass(slots=True)
class _Sequence:
    """One sequence: its caches, one a layer, unless it is in the batch. `length` is in tokens."""

    caches: list[Any] | None = None
    length: int = 0


class MlxBackend:
    """An MLX model. Raises InvalidRequest if the directory holds no model that chats, BackendError if it is broken."""

    def __init__(self, options: MlxOptions) -> None:
        o = options
        try:
            config = json.loads((o.path / "config.json").read_text())
            self._model, _ = load_model(o.path)
        except Exception as e:  # mlx-lm raises whatever a wrong directory makes it raise
            raise BackendError(f"{o.path} could not be loaded by mlx-lm: {_line(e)}") from None
        self._vocabulary = Vocabulary(o.path)
        if not self._vocabulary.template:
            raise InvalidRequest(f"{o.path} has no chat template: use an instruction-tuned model")
        self._template = ChatTemplate(self._vocabulary.template, bos=self._vocabulary.bos, eos=self._vocabulary.eos)
        caches = make_prompt_cache(self._model)
        if not all(isinstance(c, _CACHES) for c in caches):
            raise InvalidRequest(f"{o.path} has recurrent layers: its state cannot be forked, so no candidates")
        said = config.get("text_config", config)
        trained = int(said.get("max_position_embeddings") or _DEFAULT_CONTEXT)
        context = o.context or min(_DEFAULT_CONTEXT, trained)
        if context > trained:
            raise InvalidRequest(f"--ctx {context} is more than the {trained} tokens that the model was trained for")
        windows = [c.max_size for c in caches if isinstance(c, RotatingKVCache)]
        self._size = self._vocabulary.size
        self._info = ModelInfo(
            name=o.name,
            backend="mlx",
            fingerprint=o.fingerprint,
            description=f"{config.get('model_type', '?')} on {mx.default_device()}",
            sequences=o.sequences,
            context=context,
            cells=o.sequences * context,
            batch=max(_BATCH, o.sequences),
            vocabulary=self._size,
            rolls_back=not windows,
            window=max(windows, default=0),
            format=self._vocabulary.format,
            thinks=self._vocabulary.thinks,
        )
        self._sequences = [_Sequence() for _ in range(o.sequences)]
        self._batch: list[int] = []  # sequences in `_batched`, in its order; -1 where one was dropped
        self._batched: list[Any] = []
        self._logits: dict[int, NDArray[np.float32]] = {}

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        return self._info

    # ---- vocabulary: any thread -------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None = None) -> str:
        """The prompt, by the model's own chat template."""
        return self._template.render(messages, tools, think)

    def tokenize(self, text: str, *, is_part: bool = False) -> list[int]:
        """Token ids; control tokens that the template wrote are recognised."""
        return self._vocabulary.encode(text)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens but those of the model's format."""
        return self._vocabulary.piece(token)

    def label(self, token: int) -> str:
        """The token as a person reads it."""
        return self._vocabulary.label(token)

    def is_end(self, token: int) -> bool:
        """Whether the token is one of the model's end-of-generation tokens."""
        return token in self._vocabulary.ends

    # ---- the decode thread ------------------------------------------------------------------------------------------

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute the rows: prompts each by itself, sequences that write one token as one batch."""
        groups: dict[int, list[tuple[int, Row]]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.sequence, []).append((i, row))
        for sequence, group in groups.items():
            if group[0][1].position != self._sequences[sequence].length:
                raise BackendError(f"position {group[0][1].position} after {self._sequences[sequence].length} tokens")
        self._logits = {}
        wanted: list[tuple[int, Any]] = []  # rows and their logits, not computed yet
        try:
            singles = {s: g[0] for s, g in groups.items() if len(g) == 1}
            for sequence, group in groups.items():
                if len(group) > 1:
                    wanted += self._compute_prompt(sequence, group)
            if singles:
                wanted += self._compute_step(singles)
            mx.eval([logits for _, logits in wanted])
        except (RuntimeError, ValueError) as e:
            raise BackendError(f"MLX failed: {_line(e)}") from None
        for sequence, group in groups.items():
            self._sequences[sequence].length += len(group)
        self._logits = {i: np.array(logits.astype(mx.float32)) for i, logits in wanted}

    def _compute_prompt(self, sequence: int, group: list[tuple[int, Row]]) -> list[tuple[int, Any]]:
        """A run of tokens of one sequence. Logits are computed for those rows alone that want them, which are the last:
        MLX computes nothing that nobody asks for."""
        caches = self._own(sequence)
        first = next((n for n, (_, row) in enumerate(group) if row.wants_logits), len(group))
        tokens = [row.token for _, row in group]
        if first:
            self._model(mx.array([tokens[:first]]), cache=caches)
            mx.eval([c.state[:2] for c in caches])
        if first == len(group):
            return []
        logits = self._model(mx.array([tokens[first:]]), cache=caches)[0]
        return [(i, logits[n]) for n, (i, row) in enumerate(group[first:]) if row.wants_logits]

    def _compute_step(self, singles: dict[int, tuple[int, Row]]) -> list[tuple[int, Any]]:
        order = self._gather(list(singles))
        tokens = mx.array([[singles[s][1].token] for s in order])
        caches = self._batched if len(order) > 1 else self._own(order[0])
        logits = self._model(tokens, cache=caches)[:, -1]
        found = [(singles[s][0], logits[n]) for n, s in enumerate(order) if singles[s][1].wants_logits]
        if not found:
            mx.eval([c.state[:2] for c in caches])
        return found

    def _gather(self, wanted: list[int]) -> list[int]:
        """Make the batch hold just these sequences; their order in it. One alone computes in its own cache."""
        if len(wanted) == 1:
            self._own(wanted[0])
            return wanted
        if set(self._batch) != set(wanted):
            stay = [n for n, s in enumerate(self._batch) if s in wanted]
            if len(stay) == len(wanted):  # some ended, none joined
                for n, s in enumerate(self._batch):
                    if s >= 0 and s not in wanted:
                        self._sequences[s].caches = [c.extract(n) for c in self._batched]
                for c in self._batched:
                    c.filter(mx.array(stay))
                self._batch = [self._batch[n] for n in stay]
            else:
                own = [self._own(s) for s in wanted]
                self._scatter()
                self._batched = [type(layer[0]).merge(list(layer)) for layer in zip(*own, strict=True)]
                self._batch = list(wanted)
                for s in wanted:
                    self._sequences[s].caches = None
        return self._batch

    def _scatter(self) -> None:
        """Give every sequence of the batch its own cache again."""
        for n, s in enumerate(self._batch):
            if s >= 0:
                self._sequences[s].caches = [c.extract(n) for c in self._batched]
        self._batch, self._batched = [], []

    def _own(self, sequence: int) -> list[Any]:
        """The sequence's caches, taken out of the batch if they are there."""
        held = self._sequences[sequence]
        if sequence in self._batch:
            n = self._batch.index(sequence)
            held.caches = [c.extract(n) for c in self._batched]
            self._leave(sequence)
        if held.caches is None:
            held.caches = make_prompt_cache(self._model)
        return held.caches

    def _leave(self, sequence: int) -> None:
        """Note that a sequence's part of the batch is of no use any more; the next step takes it out."""
        self._batch = [-1 if s == sequence else s for s in self._batch]
        if all(s < 0 for s in self._batch):
            self._batch, self._batched = [], []

    def sampler(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Sampler:
        """A sampler with its own random state. Raises InvalidRequest for a grammar: there are none here."""
        if params.grammar or params.json_schema:
            raise InvalidRequest("this node computes with MLX, which has no grammars: ask without, or another node")
        bad = [t for t, _ in params.logit_bias if not 0 <= t < self._size]
        if bad:
            raise InvalidRequest(f"logit_bias names token {bad[0]}: the vocabulary ends at {self._size - 1}")
        return MlxSampler(params, seed, prompt)

    def sample(self, sampler: Sampler, row: int) -> tuple[int, float]:
        """Draw a token; its log probability is under the model's plain distribution."""
        assert isinstance(sampler, MlxSampler)
        logits = self._row(row)
        token = sampler.draw(logits)
        return token, float(logits[token]) - log_sum(logits)

    def top(self, row: int, count: int) -> Sequence[tuple[int, float]]:
        """The most probable tokens, the best first."""
        logits = self._row(row)
        count = min(count, len(logits))
        ids = np.argpartition(logits, len(logits) - count)[-count:]
        total = log_sum(logits)
        return [(int(i), float(logits[i]) - total) for i in sorted(ids, key=lambda i: -logits[i])]

    def _row(self, row: int) -> NDArray[np.float32]:
        logits = self._logits.get(row)
        if logits is None:
            raise BackendError(f"row {row} has no logits")
        if not math.isfinite(float(logits.max())):
            raise BackendError("the model computed no numbers: was its file changed meanwhile? start the node again")
        return logits

    # ---- sequences --------------------------------------------------------------------------------------------------

    def fork(self, source: int, target: int, length: int) -> bool:
        """Copy the first tokens of a sequence; False where a sliding window cannot be rolled back so far."""
        caches = copy.deepcopy(self._own(source))
        if not _trim(caches, self._sequences[source].length - length):
            return False
        self._sequences[target] = _Sequence(caches, length)
        return True

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        self._leave(sequence)
        self._sequences[sequence] = _Sequence()

    def truncate(self, sequence: int, length: int) -> bool:
        """Roll a sequence back; False where a sliding window cannot be."""
        held = self._sequences[sequence]
        if length == held.length:
            return True
        if length == 0:
            self.drop(sequence)
            return True
        if not _trim(self._own(sequence), held.length - length):
            return False
        held.length = length
        return True

    def export(self, sequence: int, start: int = 0) -> Any:
        """The caches' state in MLX's own form, whole, as an array of bytes."""
        length = self._sequences[sequence].length
        return state.save(self._own(sequence), length) if length else None

    def restore(self, sequence: int, saved: Any) -> bool:
        """Put a copy of this process into an empty sequence; False if it is none of this model."""
        caches = make_prompt_cache(self._model)
        length = state.load(caches, saved)
        if length is None:
            return False
        self._sequences[sequence] = _Sequence(caches, length)
        return True

    def reopen(self, sequence: int, length: int) -> Any:
        """Roll back, and keep a copy of the last token's K and V."""
        if length < 2 or not all(isinstance(cache, KVCache) for cache in self._own(sequence)):
            return None
        was = self._position(sequence, length - 1)
        return was if self.truncate(sequence, length - 1) else None

    def refutes(self, sequence: int, tokens: Sequence[int], was: Any) -> bool:
        """Compare the last token's K and V with those that were held."""
        found = self._position(sequence, len(tokens) - 1)
        return not all(bool(mx.allclose(a, b, _SAME, _SAME)) for a, b in zip(found, was, strict=True))

    def _position(self, sequence: int, position: int) -> list[Any]:
        """K and V of one token, layer by layer, apart from the caches."""
        rows = [
            mx.array(cache.state[i][..., position : position + 1, :]) for cache in self._own(sequence) for i in (0, 1)
        ]
        mx.eval(rows)
        return rows

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Mean of the last hidden states, length 1."""
        body = getattr(self._model, "model", None)
        if body is None:
            raise BackendError("this model shows no hidden states: no embeddings here")
        vectors = []
        for text in texts:
            tokens = (self.tokenize(text) or self.tokenize(" ") or [0])[: self._info.context]
            hidden = body(mx.array([tokens]))[0].astype(mx.float32).mean(axis=0)
            vector = np.array(hidden, dtype=np.float64)
            norm = float(np.linalg.norm(vector))
            vectors.append([float(x) for x in vector / norm] if norm > 0 else [0.0] * len(vector))
        return vectors

    def close(self) -> None:
        """Free the model."""
        self._sequences, self._batch, self._batched, self._logits = [], [], [], {}
        self._model = None
        mx.clear_cache()


def _trim(caches: list[Any], tokens: int) -> bool:
    """Take the last tokens off; False if a cache cannot."""
    if tokens == 0:
        return True
    if not all(c.is_trimmable() for c in caches):
        return False
    for cache in caches:
        cache.trim(tokens)
    return True


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
