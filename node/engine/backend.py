"""What the scheduler needs of whatever computes: a `Backend`, driven by one thread.

A backend knows tokens, positions and sequences; it knows nothing of requests. Sequence ids are 0 <= id < `sequences`.
`render`, `tokenize`, `piece`, `label` and `is_end` only read the vocabulary and may be called from any thread;
everything else belongs to the decode thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from node.core.formats import Format
from node.errors import BackendError
from node.types import Message, SamplingParams, Tool


class CacheFull(BackendError):
    """No KV cells are left for the batch; nothing was changed."""


class StateLost(BackendError):
    """A batch failed, and what the sequences hold is not known any more: all of them are empty now."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model and how it was loaded. Sizes are tokens unless the name says bytes."""

    name: str
    backend: str
    fingerprint: str
    description: str
    sequences: int
    context: int  # a sequence
    cells: int  # KV cells, shared by all sequences
    batch: int  # rows of one decode at most
    vocabulary: int
    rolls_back: bool = True  # whether the last tokens of a sequence can always be taken back
    is_recurrent: bool = False  # whether a sequence can go on after exactly what it holds only
    is_demo: bool = False
    window: int = 0  # tokens that layers with a sliding window see; 0: there are none
    parameters: int = 0  # 0: not known
    weights_bytes: int = 0  # 0: not known
    format: Format = Format.PLAIN  # in which it writes thoughts and calls
    thinks: bool = False  # whether it may think before it answers


@dataclass(frozen=True, slots=True)
class Row:
    """One token to compute. Rows of one sequence must be in position order and leave no gap."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class Sampler(Protocol):
    """Chooses tokens for one candidate; owns its random state."""

    def close(self) -> None:
        """Free what it holds."""


class Backend(Protocol):
    """A model that computes. See the module's text for threads."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None = None) -> str:
        """The prompt for the assistant's next turn; `think` as in SamplingParams. Raises InvalidRequest if the model's
        template refuses it."""

    def tokenize(self, text: str, *, is_part: bool = False) -> list[int]:
        """Token ids of a rendered prompt, or of a part of a text, which no token of the model's begins."""

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; not always whole UTF-8 characters; empty for control tokens."""

    def label(self, token: int) -> str:
        """The token as a person reads it: control tokens have a name, bytes that are no UTF-8 are U+FFFD."""

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute the rows. Raises CacheFull (nothing changed) or BackendError (drop the batch's sequences)."""

    def sampler(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Sampler:
        """A sampler for one candidate; penalties see the prompt. Raises InvalidRequest for a bad grammar or token."""

    def sample(self, sampler: Sampler, row: int) -> tuple[int, float]:
        """Draw from the logits of a row of the last decode: token and its natural-log probability at temperature 1.

        Raises InvalidRequest where the sampler's grammar has come to a dead end.
        """

    def top(self, row: int, count: int) -> Sequence[tuple[int, float]]:
        """The most probable tokens of a row of the last decode, the best first, with their log probabilities as from
        `sample`."""

    def fork(self, source: int, target: int, length: int) -> bool:
        """Let `target`, which must be empty, share the first `length` tokens of `source`. False if what it would hold
        would not be right, or there is no room for it; `target` is empty then."""

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""

    def truncate(self, sequence: int, length: int) -> bool:
        """Keep only the first `length` tokens of a sequence. False if what is left would not be right: then drop it."""

    def export(self, sequence: int, start: int = 0) -> Any:
        """A copy of a sequence's KV, an array of bytes, for `restore` in this process; None if there is none.

        With `start`, at least what follows that position; such a part is for a snapshot and cannot be restored.
        """

    def restore(self, sequence: int, state: Any) -> bool:
        """Put a copy into an empty sequence. False if it does not fit now; the sequence is empty then."""

    def reopen(self, sequence: int, length: int) -> Any:
        """Keep all but the last of a sequence's first `length` tokens, so that the last is computed again with what
        comes next. Answers with what was held of it, for `refutes`; None if that cannot be done: then drop it."""

    def refutes(self, sequence: int, tokens: Sequence[int], was: Any) -> bool:
        """Whether a sequence's KV is not that of these tokens, as far as the last of them, computed again after
        `reopen`, can tell. For KV that came from elsewhere."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of length 1 for texts; too long ones are cut to the context."""

    def close(self) -> None:
        """Free the model."""
