"""Log probabilities of a candidate's tokens, given out no sooner than their text."""

from __future__ import annotations

from collections import deque

from node.engine.backend import Backend
from node.engine.text import TextStream
from node.types import TokenLogprob

# JSON has no infinity; OpenAI's API says this for what is out of the question.
LEAST = -9999.0


class Logprobs:
    """What is known of the tokens that a candidate has written. `top` is how many alternatives each comes with."""

    def __init__(self, backend: Backend, top: int) -> None:
        self._backend = backend
        self._top = top
        self._held: deque[tuple[int, TokenLogprob]] = deque()  # and how many characters were before it
        self._given: list[TokenLogprob] = []
        self._told = 0

    @property
    def given(self) -> tuple[TokenLogprob, ...]:
        """Those of all tokens whose text was given out."""
        return tuple(self._given)

    def add(self, token: int, logprob: float, row: int, text: TextStream) -> None:
        """A token that was drawn from a row of the last decode and will be fed to `text` next."""
        top = tuple(self._made(*each) for each in self._backend.top(row, self._top)) if self._top else ()
        self._held.append((text.decoded, self._made(token, logprob, top)))

    def settle(self, text: TextStream, *, over: bool = False) -> None:
        """Give out those whose text has come; once the text is over, those of a stop string never."""
        while self._held:
            start = self._held[0][0]
            end = self._held[1][0] if len(self._held) > 1 else text.decoded
            # A token without characters of its own, such as the first bytes of one, waits for those before it only.
            if not (start < text.given or end <= text.given or (over and not text.stopped)):
                return
            self._given.append(self._held.popleft()[1])

    def news(self) -> tuple[TokenLogprob, ...]:
        """What was given out since this was asked last."""
        new = tuple(self._given[self._told :])
        self._told = len(self._given)
        return new

    def _made(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        label, data = self._backend.label(token), self._backend.piece(token)
        return TokenLogprob(label, max(logprob, LEAST), data, token, top)
