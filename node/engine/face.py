"""What the coordinator and the services need of an engine: the local one and a server elsewhere have the same face.

Everything belongs to one event loop; `piece` may be called from any thread.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from node.core.slots import Speeds
from node.engine.backend import ModelInfo
from node.engine.job import Event, Job
from node.types import Message, Tool


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is: free sequences, requests that wait, topics whose KV is kept between their turns."""

    free: int = 0
    queued: int = 0
    topics: int = 0


class EngineFace(Protocol):
    """A model that answers jobs."""

    @property
    def info(self) -> ModelInfo:
        """The model. Raises NotReady before `start`."""

    @property
    def load(self) -> Load:
        """How busy the engine is."""

    @property
    def free_sequences(self) -> int:
        """Candidates that could begin now."""

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of one candidate among a few; 0: not measured."""

    @property
    def speeds(self) -> Speeds:
        """What computing and restoring cost here."""

    @property
    def kv_bytes(self) -> float:
        """Bytes of KV a token, as they are copied; 0 where there is no KV to copy, or it was not measured."""

    @property
    def sample(self) -> Any:
        """A copy of some KV, for its layout; None where there is no KV to copy."""

    @property
    def refuted(self) -> int:
        """States from elsewhere that turned out to be wrong."""

    async def start(self) -> None:
        """Get ready. Raises ConclaveError."""

    async def prompt(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, is_raw: bool, think: bool | None = None
    ) -> tuple[int, ...]:
        """The tokens of a conversation, or of a text as it is (`is_raw`: the last message); none where only a server
        knows them; `think` as in SamplingParams. Raises InvalidRequest if the model's template refuses it."""

    async def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None) -> str:
        """The prompt as text. Raises InvalidRequest where only a server knows it."""

    async def tokens(self, text: str, *, is_part: bool) -> Sequence[int]:
        """Tokens of a text, as `Backend.tokenize`. Raises InvalidRequest where only a server knows them."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token. Raises InvalidRequest where tokens are not known here."""

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; an estimate where tokens are not known here."""

    def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a job, `Ended` last. Leaving the iteration cancels the job. Raises what the job failed with."""

    def cancel(self, job: str, candidates: Collection[int] | None = None) -> None:
        """Stop candidates of a job (all if None); each still comes as a `Done`. Unknown ids pass."""

    def expect(self, job: str, ballots: int) -> None:
        """Say that so many more ballots may decide a job's vote: what is nearly decided gets its candidates first."""

    def commit(self, job: str, winner: int = 0, topic: str = "") -> None:
        """Say who won an ended job, so that its KV is kept for the topic where there is any; `topic` is whose it is
        where the job names none."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of length 1."""

    async def held(self, topic: str) -> tuple[Sequence[int], Speeds]:
        """The tokens whose KV is held for a topic, and what computing and restoring cost; none where there is no KV."""

    async def export(self, topic: str, start: int = 0) -> tuple[Sequence[int], Any] | None:
        """A topic's tokens and its KV from `start` on; None if it has none."""

    async def adopt(self, topic: str, tokens: Sequence[int], state: Any) -> bool:
        """Take KV for a topic's next turn. Says whether it was taken."""

    async def forget(self, topic: str) -> None:
        """Let go of a topic's KV."""

    async def close(self) -> None:
        """Cancel everything and end."""
