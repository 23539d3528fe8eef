"""A row of logits, and what choosing a token needs to know of it.

A large vocabulary is read twice for all of it, by a function that is built in beside our kernels
(scripts/kernels/logits.cpp); where there is none (other processors, a wheel from elsewhere) NumPy reads it six times.
"""

from __future__ import annotations

import ctypes
import math
from functools import cached_property
from typing import Any

import llama_cpp as ll
import numpy as np
from numpy.typing import NDArray

from node.errors import BackendError

# Vocabularies up to this size are handed over whole: searching them costs more.
SMALL_VOCABULARY = 4096
# The maxima of groups of so many logits give the bound.
GROUP = 128

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]


def _built_in(name: str, result: Any, *arguments: Any) -> Any:
    """A function of our own in the libraries that the binding loads; None if it is not there."""
    function = getattr(getattr(ll.llama_cpp, "_lib", None), name, None)
    if function is not None:
        function.restype, function.argtypes = result, arguments
    return function


_SCAN = _built_in(
    "conclave_scan", ctypes.c_int64,
    ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.POINTER(ctypes.c_double),
)  # fmt: skip
_AT_LEAST = _built_in(
    "conclave_at_least", ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
)


class Logits:
    """The logits of a row, and what is computed of them once. `scratch` is as long as they are.

    Raises BackendError if they are no numbers.
    """

    def __init__(self, values: Floats, scratch: Floats) -> None:
        self.values = values
        self._scratch = scratch
        self._is_large = len(values) > SMALL_VOCABULARY
        self._width = len(values) // GROUP
        self._total = ctypes.c_double()  # of the exponentials, once they are divided by the greatest
        if self._is_large and _SCAN is not None:
            self._maxima = np.empty(self._width, dtype=np.float32)
            self.first = int(_SCAN(_at(values), len(values), self._width, _at(self._maxima), ctypes.byref(self._total)))
        else:
            self.first = int(values.argmax())  # the most probable token; with NaN among them, one of those
        self.greatest = float(values[self.first])
        if not math.isfinite(self.greatest + self._total.value):
            raise BackendError("the model computed no numbers: was its file changed meanwhile? start the node again")

    @cached_property
    def log_total(self) -> float:
        """The logarithm of the sum of their exponentials."""
        if self._total.value:
            return self.greatest + math.log(self._total.value)
        base = 0.0 if -10.0 < self.greatest < 64.0 else self.greatest  # float32 holds exp(64) for every token
        shifted = np.subtract(self.values, np.float32(base), out=self._scratch) if base else self.values
        return base + math.log(float(np.exp(shifted, out=self._scratch).sum()))

    def logprob(self, token: int) -> float:
        """Natural-log probability of a token at temperature 1, before any sampler; at most 0."""
        return min(float(self.values[token]) - self.log_total, 0.0)

    def best(self, count: int) -> Ids | None:
        """Ids, ascending, among which are the `count` greatest logits and all that equal the least of these.

        None: all of them, which is no more work.
        """
        if not self._is_large or 2 * count > self._width:
            return None
        # So many maxima are at least this, so the logit that is `count`th is too.
        return self.at_least(float(np.partition(self._maxima, self._width - count)[self._width - count]))

    @cached_property
    def _maxima(self) -> Floats:
        """The greatest of each group. A group is a column, so that vector instructions over the columns take them."""
        maxima: Floats = self.values[: GROUP * self._width].reshape(GROUP, self._width).max(axis=0)
        return maxima

    def at_least(self, bound: float) -> Ids:
        """Ids, ascending, of logits that are at least this."""
        if _AT_LEAST is None:
            return np.flatnonzero(self.values >= np.float32(bound))
        ids = np.empty(len(self.values), dtype=np.intp)
        return ids[: _AT_LEAST(_at(self.values), len(self.values), bound, _at(ids))].copy()

    def weights(self, temperature: float, greatest: float) -> Floats:
        """What the probabilities of all tokens are proportional to; `greatest` is a logit that none is much above.
        They are in the scratch: changed, or gone, with the next call of this or of `log_total`."""
        np.subtract(self.values, np.float32(greatest), out=self._scratch)
        np.multiply(self._scratch, np.float32(1 / temperature), out=self._scratch)
        return np.exp(self._scratch, out=self._scratch)

    def top(self, count: int) -> list[tuple[int, float]]:
        """The most probable tokens and their log probabilities, the most probable first, of equals the lowest id."""
        ids = self.best(count)
        if ids is None:
            ids = np.arange(len(self.values))
        order = np.argsort(-self.values[ids], kind="stable")[:count]
        return [(int(i), self.logprob(int(i))) for i in ids[order]]


def _at(array: NDArray[Any]) -> int:
    """Where an array's values are."""
    address: int = array.__array_interface__["data"][0]
    return address
