"""A backend around another that keeps, as llama.cpp's cache does, which tokens the cells of each sequence hold, and
fails where a token is drawn from anything but its own prompt and what was written after it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.engine.backend import CacheFull, ModelInfo, Row, Sampler
from node.errors import BackendError
from node.types import SamplingParams


@dataclass(slots=True)
class Mirrored:
    """A sampler, the prompt it is for, and what was drawn with it."""

    inner: Sampler
    prompt: tuple[int, ...]
    drawn: list[int] = field(default_factory=list)

    def close(self) -> None:
        self.inner.close()


class Mirror:
    """See the module. `fails` is asked what should go wrong: "full", "abort", "fork", "truncate", "restore",
    "export", each as often as it comes up."""

    def __init__(self, inner: Any, fails: Callable[[str], bool] = lambda _: False) -> None:
        self._inner = inner
        self._fails = fails
        self.held: list[list[int] | None] = [[] for _ in range(inner.info.sequences)]  # None: not known
        self._contexts: list[tuple[int, ...]] = []  # of each row of the last batch
        self._states: dict[Hashable, tuple[int, ...]] = {}
        self.rows: list[Row] = []  # all that were ever computed
        self.drawn = 0
        self.checked = 0

    @property
    def info(self) -> ModelInfo:
        return self._inner.info  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:  # render, tokenize, piece, label, is_end, top, embed, close
        return getattr(self._inner, name)

    def decode(self, rows: Sequence[Row]) -> None:
        if self._fails("full"):
            raise CacheFull("no KV cells are left for the batch")
        contexts = []
        for row in rows:
            held = self.held[row.sequence]
            assert held is not None, f"sequence {row.sequence} is used after its batch failed"
            assert row.position == len(held), f"position {row.position} of a sequence that holds {len(held)} tokens"
            held.append(row.token)
            contexts.append(tuple(held) if row.wants_logits else ())
        aborted = self._fails("abort")
        try:
            self._inner.decode(rows[: (len(rows) + 1) // 2] if aborted else rows)
            if aborted:
                raise BackendError("llama_decode failed with 2: aborted")
        except CacheFull:
            for row in rows:
                self.held[row.sequence].pop()  # type: ignore[union-attr]
            raise
        except BackendError:
            # Half were computed, or as llama.cpp checks a batch before it begins, none.
            for row in rows[(len(rows) + 1) // 2 if aborted else 0 :]:
                self.held[row.sequence].pop()  # type: ignore[union-attr]
            raise
        self._contexts = contexts
        self.rows += rows

    def sampler(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Mirrored:
        return Mirrored(self._inner.sampler(params, seed, prompt), tuple(prompt))

    def sample(self, sampler: Mirrored, row: int) -> tuple[int, float]:
        context = self._contexts[row]
        assert context == (*sampler.prompt, *sampler.drawn), "a token is drawn after what is not its own"
        self.checked += 1
        token, logprob = self._inner.sample(sampler.inner, row)
        sampler.drawn.append(token)
        return token, logprob

    def fork(self, source: int, target: int, length: int) -> bool:
        held = self.held[source]
        assert self.held[target] == [], f"a fork into sequence {target}, which is not empty"
        assert held is not None
        assert 0 < length <= len(held), f"a fork of {length} of {len(held)} tokens"
        if self._fails("fork") or not self._inner.fork(source, target, length):
            return False
        self.held[target] = held[:length]
        return True

    def drop(self, sequence: int) -> None:
        self.held[sequence] = []
        self._inner.drop(sequence)

    def truncate(self, sequence: int, length: int) -> bool:
        held = self.held[sequence]
        assert held is not None
        assert length <= len(held), f"cut to {length} of {len(held)} tokens"
        refused = length < len(held) and self._fails("truncate")
        if refused or not self._inner.truncate(sequence, length):
            return False
        del held[length:]
        return True

    def export(self, sequence: int) -> Any:
        held = self.held[sequence]
        assert held is not None
        state = None if self._fails("export") else self._inner.export(sequence)
        if state is not None:
            self._states[_key(state)] = tuple(held)
        return state

    def restore(self, sequence: int, state: Any) -> bool:
        assert self.held[sequence] == [], f"a restore into sequence {sequence}, which is not empty"
        if self._fails("restore") or not self._inner.restore(sequence, state):
            return False
        self.held[sequence] = list(self._states[_key(state)])
        return True

    @property
    def used(self) -> int:
        """Sequences that hold anything."""
        return sum(held != [] for held in self.held)


def _key(state: Any) -> Hashable:
    return state if isinstance(state, Hashable) else state.tobytes()
