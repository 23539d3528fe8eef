"""A candidate that is being written."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.engine.backend import Backend, Sampler
from node.engine.draft import Draft
from node.engine.logprobs import Logprobs
from node.engine.text import TextStream
from node.types import Candidate, FinishReason


@dataclass(slots=True, eq=False)
class Branch:
    """See the module. Its sequence holds `position` tokens between two steps: the last one drawn is not computed."""

    id: int
    sequence: int
    sampler: Sampler
    text: TextStream
    started: float
    next_token: int = -1  # sampled or the prompt's last, not computed yet
    position: int = -1  # where it goes
    written: list[int] = field(default_factory=list)
    logprob: float = 0.0
    logprobs: Logprobs | None = None  # where they were asked for
    row: int = -1  # of the current batch, with the logits to draw from
    draft: Draft | None = None  # where tokens are guessed
    guessed: list[int] = field(default_factory=list)  # in the current batch, in the rows after `row`

    def draw(self, backend: Backend, max_tokens: int) -> tuple[FinishReason | None, str]:
        """Draw the next token from `row`: the reason to end here (None: there is none), and text that can be told."""
        token, logprob = backend.sample(self.sampler, self.row)
        self.written.append(token)
        if self.draft is not None:
            self.draft.add(token)
        self.logprob += logprob
        self.position += 1
        self.next_token = token
        reason: FinishReason | None = None
        text = ""
        if backend.is_end(token):
            reason = FinishReason.STOP
        else:
            if self.logprobs is not None:
                self.logprobs.add(token, logprob, self.row, self.text)
            text = self.text.feed(backend.piece(token))
            if self.text.stopped:
                reason = FinishReason.STOP
            elif len(self.written) >= max_tokens:
                reason = FinishReason.LENGTH
        if reason is not None:
            text += self.text.finish()
        if self.logprobs is not None:
            self.logprobs.settle(self.text, over=reason is not None)
        return reason, text

    def candidate(self, node: str, reason: FinishReason, now: float) -> Candidate:
        """What became of it."""
        tokens = len(self.written)
        return Candidate(
            id=self.id,
            node=node,
            text=self.text.text,
            tokens=tokens,
            mean_logprob=self.logprob / tokens if tokens else 0.0,
            finish_reason=reason,
            latency_ms=(now - self.started) * 1e3,
            logprobs=self.logprobs.given if self.logprobs is not None else (),
            stopped_by=self.text.stopped_by,
        )
