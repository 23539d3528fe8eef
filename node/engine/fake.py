"""A backend without a model, for tests and for trying a mesh out: `--backend fake --model 'fake:key=value,…'`.

Deterministic, and strict where llama.cpp is silent: it keeps the tokens of every sequence and fails loudly on a gap in
positions, a fork of what is not there, or logits that were not asked for. What a candidate says depends on the tokens
in its own sequence, so text that leaks from one request to another shows.

Options of the spec, all optional:

    answers=A|B|…      what candidates say, chosen by their seed (default: "echo: " and the last user message)
    tokens_per_s=N     decode speed of one step (default 0: as fast as it goes)
    prefill_per_s=N    prefill speed, tokens/s (default 0: as fast as it goes)
    logprob=X          log probability of every token (default -0.1)
    fail_after=N       every decode after N fails with BackendError (default: never)
    name=TEXT          name of the model; nodes with equal specs have equal fingerprints
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from node.engine.backend import ModelInfo, Row, Sampler
from node.errors import BackendError, InvalidRequest
from node.types import Message, SamplingParams, Tool

_END = 0
_USER = re.compile(r"<user>\n(.*?)\n</user>", re.DOTALL)
_WORDS = re.compile(r"\n?</?(?:system|user|assistant|tool)>\n?|\s*[^\s<]+|\s*<|\s+")
_EMBEDDING_SIZE = 64


@dataclass(frozen=True, slots=True)
class FakeSpec:
    """What a fake model does; see the module's text."""

    answers: tuple[str, ...] = ()
    tokens_per_s: float = 0.0
    prefill_per_s: float = 0.0
    logprob: float = -0.1
    fail_after: int = -1
    name: str = "fake"

    @classmethod
    def parse(cls, text: str) -> FakeSpec:
        """Read a spec such as `fake:answers=42|41,tokens_per_s=50`. Raises InvalidRequest."""
        values: dict[str, object] = {}
        body = text.removeprefix("fake").removeprefix(":")
        if body in ("", "auto", "bundled"):
            return cls()
        for part in re.split(r",(?=[a-z_]+=)", body):
            key, _, value = part.partition("=")
            try:
                if key == "answers":
                    values[key] = tuple(value.split("|"))
                elif key in ("tokens_per_s", "prefill_per_s", "logprob"):
                    values[key] = float(value)
                    if not math.isfinite(float(value)) or (key != "logprob" and float(value) < 0):
                        raise ValueError
                elif key == "fail_after":
                    values[key] = int(value)
                elif key == "name":
                    values[key] = value
                else:
                    raise InvalidRequest(f"--model {text!r}: the fake backend has no option {key!r}")
            except ValueError:
                raise InvalidRequest(f"--model {text!r}: {key} is not a number, or below 0: {value!r}") from None
        return cls(**values)  # type: ignore[arg-type]


@dataclass(slots=True)
class _FakeSampler:
    seed: int
    repeats: bool = False
    plan: list[int] = field(default_factory=list)
    at: int = -1

    def close(self) -> None:
        pass


class FakeBackend:
    """A `Backend` that says what its spec says, at its spec's speed."""

    def __init__(
        self,
        spec: FakeSpec,
        *,
        sequences: int = 16,
        context: int = 4096,
        cells: int = 0,
        batch: int = 512,
        is_recurrent: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._spec = spec
        self._sleep = sleep
        self._lock = threading.Lock()
        self._words: list[str] = [""]  # token id -> text; 0 ends an answer
        self._ids: dict[str, int] = {}
        self._sequences: list[list[int]] = [[] for _ in range(sequences)]
        self._rows: list[Row] = []
        self._drawn: dict[int, int] = {}  # by row, of the last decode
        self._decodes = 0
        self._info = ModelInfo(
            name=spec.name,
            backend="fake",
            fingerprint=hashlib.sha256(repr(spec).encode()).hexdigest(),
            description="no model: scripted answers",
            sequences=sequences,
            context=context,
            cells=cells or sequences * context,
            batch=max(batch, sequences),
            vocabulary=1 << 31,
            rolls_back=not is_recurrent,
            is_recurrent=is_recurrent,
        )

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        return self._info

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None = None) -> str:
        """Each message between tags, tool names first."""
        head = "".join(f"<tool>{t.name}</tool>\n" for t in tools)
        return head + "".join(f"<{m.role}>\n{m.content}\n</{m.role}>\n" for m in messages) + "<assistant>\n"

    def tokenize(self, text: str, *, is_part: bool = False) -> list[int]:
        """A token for each word with the space before it, and for each of the template's tags with its line breaks."""
        with self._lock:
            return [self._id(w) for w in _WORDS.findall(text)]

    def piece(self, token: int) -> bytes:
        """The word."""
        return self._words[token].encode()

    def label(self, token: int) -> str:
        """The word, or <end>."""
        return self._words[token] if token else "<end>"

    def is_end(self, token: int) -> bool:
        """Whether the token is 0."""
        return token == _END

    def decode(self, rows: Sequence[Row]) -> None:
        """Append the rows to their sequences, strictly, in the time that the spec says."""
        assert 0 < len(rows) <= self._info.batch, f"{len(rows)} rows"
        self._decodes += 1
        if 0 <= self._spec.fail_after < self._decodes:
            raise BackendError(f"the fake backend fails after {self._spec.fail_after} decodes, as it was told")
        prompt_rows = sum(not r.wants_logits for r in rows)
        for row in rows:
            tokens = self._sequences[row.sequence]
            assert row.position == len(tokens), f"position {row.position} after {len(tokens)} tokens"
            assert row.position < self._info.context, f"position {row.position} is past the context"
            tokens.append(row.token)
        self._rows = list(rows)
        self._drawn.clear()
        if self._spec.prefill_per_s and prompt_rows:
            self._sleep(prompt_rows / self._spec.prefill_per_s)
        if self._spec.tokens_per_s and prompt_rows < len(rows):
            self._sleep(1.0 / self._spec.tokens_per_s)

    def sampler(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Sampler:
        """A sampler that will say one of the answers."""
        return _FakeSampler(seed, params.ignore_eos)

    def sample(self, sampler: Sampler, row: int) -> tuple[int, float]:
        """The next token of the sampler's answer; checks that the answer so far is what its sequence holds."""
        assert isinstance(sampler, _FakeSampler)
        assert self._rows[row].wants_logits, f"row {row} has no logits"
        at = self._rows[row]
        tokens = self._sequences[at.sequence][: at.position + 1]  # rows after it may be guesses
        if sampler.at < 0:
            sampler.plan = self._plan(tokens, sampler.seed)
            sampler.at = 0
        else:
            held = tokens[len(tokens) - sampler.at :]
            assert held == sampler.plan[: sampler.at], "the sequence does not hold what was sampled"
        if sampler.repeats and sampler.at == len(sampler.plan):
            sampler.plan *= 2
        token = sampler.plan[sampler.at] if sampler.at < len(sampler.plan) else _END
        sampler.at += 1
        self._drawn[row] = token
        return token, self._spec.logprob

    def top(self, row: int, count: int) -> list[tuple[int, float]]:
        """What was drawn from the row, then other words, each half as probable as the one before."""
        drawn = self._drawn[row]
        others = [t for t in range(count) if t != drawn]
        return [(t, self._spec.logprob - i * math.log(2)) for i, t in enumerate([drawn, *others][:count])]

    def fork(self, source: int, target: int, length: int) -> bool:
        """Copy the first tokens of a sequence into an empty one."""
        assert not self._sequences[target], f"sequence {target} is not empty"
        assert length <= len(self._sequences[source]), f"fork of {length} of {len(self._sequences[source])} tokens"
        if self._info.is_recurrent and length < len(self._sequences[source]):
            return False
        self._sequences[target] = self._sequences[source][:length]
        return True

    def drop(self, sequence: int) -> None:
        """Empty a sequence."""
        self._sequences[sequence] = []

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget the end of a sequence."""
        assert length <= len(self._sequences[sequence]), "a sequence cannot be cut to more than it has"
        if self._info.is_recurrent and length < len(self._sequences[sequence]):
            return False
        del self._sequences[sequence][length:]
        return True

    def export(self, sequence: int, start: int = 0) -> Any:
        """Its tokens as bytes, 16 for each."""
        return np.repeat(np.array(self._sequences[sequence], dtype=np.int64), 2).view(np.uint8)

    def restore(self, sequence: int, state: Any) -> bool:
        """Put the tokens back."""
        assert not self._sequences[sequence], f"sequence {sequence} is not empty"
        self._sequences[sequence] = state.view(np.int64)[::2].tolist()
        return True

    def reopen(self, sequence: int, length: int) -> Any:
        """Take back the last of some tokens."""
        if self._info.is_recurrent:
            return None
        was = self._sequences[sequence][length - 1 : length]
        del self._sequences[sequence][length - 1 :]
        return was

    def refutes(self, sequence: int, tokens: Sequence[int], was: Any) -> bool:
        """Whether it holds or held other tokens."""
        return self._sequences[sequence][: len(tokens)] != list(tokens) or was != [tokens[-1]]

    @property
    def used_sequences(self) -> int:
        """Sequences that hold tokens; 0 when nothing runs and nothing leaked."""
        return sum(1 for s in self._sequences if s)

    @property
    def used_cells(self) -> int:
        """Tokens in all sequences."""
        return sum(map(len, self._sequences))

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Hashed bags of words: equal texts are equal, texts that share words are near."""
        out = []
        for text in texts:
            vector = [0.0] * _EMBEDDING_SIZE
            for word in re.findall(r"\w+", text.casefold()) or [""]:
                digest = hashlib.sha256(word.encode()).digest()
                vector[digest[0] % _EMBEDDING_SIZE] += 1.0 if digest[1] & 1 else -1.0
            norm = math.sqrt(sum(x * x for x in vector)) or 1.0
            out.append([x / norm for x in vector])
        return out

    def close(self) -> None:
        """Nothing to free."""

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]

    def _plan(self, prompt: list[int], seed: int) -> list[int]:
        text = "".join(self._words[t] for t in prompt)
        if self._spec.answers:
            answer = self._spec.answers[seed % len(self._spec.answers)]
        else:
            said = _USER.findall(text)
            answer = f"echo: {said[-1] if said else ''}"
        return self.tokenize(answer)
