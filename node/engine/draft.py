"""Speculative decoding by prompt lookup: what followed the last three tokens when they stood in the text before.

Answers that quote their prompt (code that is edited, text that is summed up, JSON with the same keys again) are guessed
right for long runs, at no cost but that of more rows in a step. A guess is only ever a guess: each token is drawn from
the model's own logits by the candidate's own sampler, and a guess that is not what was drawn is rolled back. So the
result is what it would be without, up to the rounding of another batch shape (Saxena, Prompt Lookup Decoding, 2023;
llama.cpp, examples/lookup).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SIZE = 3
# Of a longer prompt only the end is looked at.
MOST_PROMPT = 1 << 15
# A guess counts this much less with each that comes after it.
FADE = 0.95

_Run = tuple[int, ...]


def index(prompt: Sequence[int]) -> dict[_Run, int]:
    """By runs of `SIZE` tokens: where what followed the last of its kind begins. The prompt's end has nothing yet."""
    tokens = tuple(prompt)
    first = max(0, len(tokens) - MOST_PROMPT)
    return {tokens[i : i + SIZE]: i + SIZE for i in range(first, len(tokens) - SIZE)}


class Draft:
    """Guesses for one candidate. `runs` is `index(prompt)`, which all candidates of a prompt share."""

    def __init__(self, prompt: Sequence[int], runs: Mapping[_Run, int]) -> None:
        self._text = list(prompt)
        self._runs = runs
        end = tuple(prompt[-SIZE:])
        self._own: dict[_Run, int] = {end: len(prompt)}
        self._right, self._wrong = 1.0, 0.5
        self._at = runs.get(end, 0)

    @property
    def chance(self) -> float:
        """Probability that a guess is right, by how they were lately, whether or not they were computed."""
        return self._right / (self._right + self._wrong)

    def guess(self, most: int) -> list[int]:
        """Up to so many tokens that may come next; none if nothing like the last tokens was there before."""
        return self._text[self._at : self._at + most] if self._at else []

    def add(self, token: int) -> None:
        """The next token, as it was drawn."""
        if self._at:
            self._right *= FADE
            self._wrong *= FADE
            if self._text[self._at] == token:
                self._right += 1
            else:
                self._wrong += 1
        self._text.append(token)
        run = tuple(self._text[-SIZE:])
        self._at = self._own.get(run) or self._runs.get(run, 0)
        self._own[run] = len(self._text)
