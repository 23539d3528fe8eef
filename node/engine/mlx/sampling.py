"""Choosing tokens where MLX computes: over NumPy, as MLX's logits come to the processor anyway."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from node.types import SamplingParams

_PENALTY_WINDOW = 64  # tokens, as llama.cpp's


class MlxSampler:
    """The sampler of one candidate: filters and draws as llama.cpp's chain does, in its order."""

    def __init__(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> None:
        self._p = params
        self._random = np.random.default_rng(seed)
        self._last: deque[int] = deque(prompt[-_PENALTY_WINDOW:], maxlen=_PENALTY_WINDOW)
        self._bias = dict(params.logit_bias)

    def close(self) -> None:
        """Nothing to free."""

    def draw(self, logits: NDArray[np.float32]) -> int:
        """A token, which counts for the penalties from now on."""
        p = self._p
        values = self._penalised(logits) if self._changes else logits
        if p.temperature <= 0.0:
            token = int(values.argmax())
        else:
            k = min(p.top_k, len(values)) if p.top_k > 0 else len(values)
            ids = np.argpartition(values, len(values) - k)[-k:] if k < len(values) else np.arange(len(values))
            ids = ids[np.argsort(-values[ids], kind="stable")]
            weights = np.exp((values[ids] - values[ids[0]]).astype(np.float64))
            weights /= weights.sum()
            if p.top_p < 1.0:
                kept = int(np.searchsorted(np.cumsum(weights), p.top_p)) + 1
                ids, weights = ids[:kept], weights[:kept]
            if p.min_p > 0.0:
                likely = weights >= p.min_p * weights[0]
                ids, weights = ids[likely], weights[likely]
            weights = np.exp((values[ids] - values[ids[0]]).astype(np.float64) / p.temperature)
            token = int(ids[np.searchsorted(np.cumsum(weights), self._random.random() * weights.sum(), side="right")])
        self._last.append(token)
        return token

    @property
    def _changes(self) -> bool:
        p = self._p
        return bool(self._bias) or p.repeat_penalty != 1.0 or p.presence_penalty != 0 or p.frequency_penalty != 0

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        p, values = self._p, logits.copy()
        for token, bias in self._bias.items():
            values[token] += bias
        for token in set(self._last):
            count = self._last.count(token)
            value = values[token]
            value = value * p.repeat_penalty if value <= 0 else value / p.repeat_penalty
            values[token] = value - count * p.frequency_penalty - p.presence_penalty
        return values


def log_sum(logits: NDArray[np.float32]) -> float:
    """The logarithm of the sum of all exponentials: a logit less this is a log probability."""
    top = float(logits.max())
    return top + math.log(float(np.exp(logits - top).sum()))
