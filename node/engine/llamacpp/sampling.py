"""How a candidate's tokens are chosen, and how probable the model held them to be.

llama.cpp's own samplers decide, in the order of its own default (common/sampling.cpp): biases and penalties, top-k,
top-p, min-p, temperature, chance. What is spared is the work over the whole vocabulary. llama_sampler_sample copies all
logits (151,936 of them in a common model) into an array for every token; here the samplers are given only tokens that
can be among the k best. That changes nothing: of unchanged logits at least k are above the bound below which all others
lie, and every token whose logit a bias or a penalty changes is given as well. Without top-k they are given all, unless
min-p is the only filter, which says itself how far down it looks, or there is none.

A grammar is llama.cpp's too, and is used as there: a token is drawn first, and only if the grammar refuses it are all
tokens held against the grammar and another drawn, which takes milliseconds.

What can be repeated: a chain's choices follow from its seed, its parameters, the prompt and the logits it is shown, and
from nothing else. The logits are the same bits for the same build on the same machine and number of threads, with the
same tokens in batches of the same shapes and in KV cells of the same order; other shapes (another number of candidates
at once, a prompt that was partly cached or cut into other chunks) sum in another order, and a draw that was close may
then fall differently.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import llama_cpp as ll
import numpy as np

from node.engine.grammar import check_grammar, check_schema
from node.engine.llamacpp import native
from node.engine.llamacpp.logits import GROUP, SMALL_VOCABULARY, Floats, Ids, Logits
from node.errors import InvalidRequest
from node.types import SamplingParams

PENALTY_WINDOW = 64  # tokens, those of the prompt included; llama.cpp's default

_NOTHING: Floats = np.empty(0, dtype=np.float32)
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """Room for a llama_token_data_array, which samplers work on in place."""

    def __init__(self, vocabulary: int) -> None:
        self._all = np.arange(vocabulary, dtype=np.int32)
        self._data = np.zeros(vocabulary, dtype=_TOKEN_DATA)
        self._ids, self._logits = self._data["id"], self._data["logit"]
        pointer: Any = ctypes.cast(self._data.ctypes.data, ctypes.POINTER(ll.llama_token_data))
        self._array = ll.llama_token_data_array(pointer, 0, -1, False)
        self._reference = ctypes.byref(self._array)

    def fill(self, values: Floats, ids: Ids | None) -> Floats:
        """Put tokens in, all of them if None. What is returned is their logits, which may be changed."""
        size = len(values) if ids is None else len(ids)
        self._ids[:size] = self._all if ids is None else ids
        self._logits[:size] = values if ids is None else values[ids]
        self._array.size = size
        self._array.selected = -1
        self._array.sorted = False
        return self._logits[:size]

    def fill_weights(self, weights: Floats) -> None:
        """Put in numbers from 0 on in place of tokens, as probable as their weights."""
        with np.errstate(divide="ignore"):
            self.fill(np.log(weights), np.arange(len(weights)))

    def fill_one(self, token: int) -> None:
        """Put one token in."""
        self._ids[0], self._logits[0] = token, 0.0
        self._array.size = 1
        self._array.selected = -1
        self._array.sorted = False

    def apply(self, sampler: Any) -> None:
        """Let a sampler, or a chain of them, work on them."""
        ll.llama_sampler_apply(sampler, self._reference)

    @property
    def chosen(self) -> int:
        """The token that was chosen."""
        assert 0 <= self._array.selected < self._array.size, "no sampler has chosen"
        return int(self._ids[self._array.selected])

    @property
    def greatest(self) -> float:
        """The greatest logit, as samplers have made it."""
        return float(self._logits[: self._array.size].max())


class Chain:
    """Chooses the tokens of one candidate. `prompt` is what penalties look back on; `ends` are the tokens that end an
    answer. Raises InvalidRequest for a grammar or a token id that cannot be used."""

    def __init__(
        self, vocab: Any, vocabulary: int, params: SamplingParams, seed: int, prompt: Sequence[int], ends: Sequence[int]
    ) -> None:
        self._penalties: Any = None
        self._grammar: Any = None
        self._chain: Any = None
        self._chance: Any = None  # the last of the chain, which owns it
        self._greedy = params.temperature <= 0.0
        self._temperature = params.temperature
        self._keep = 1 if self._greedy else params.top_k  # 0: all
        self._from_all = not self._keep and params.top_p >= 1.0 and params.min_p <= 0.0
        # So far below the greatest logit, or a little more, min-p alone leaves tokens in.
        self._floor = -math.inf
        if params.top_p >= 1.0 and params.min_p > 0.0:
            self._floor = math.log(params.min_p) - 1e-3
        bias = dict(params.logit_bias)
        for token in bias:
            if token >= vocabulary:
                raise InvalidRequest(f"logit_bias names token {token}: the model has {vocabulary}")
        if params.ignore_eos:
            bias |= dict.fromkeys(ends, -math.inf)
        self._biased = np.array(sorted(bias), dtype=np.intp)
        self._bias = np.array([bias[t] for t in sorted(bias)], dtype=np.float32)
        self._window: deque[int] | None = None
        try:
            self._make(vocab, vocabulary, params, seed, prompt)
        except BaseException:
            self.close()
            raise

    def _make(self, vocab: Any, vocabulary: int, params: SamplingParams, seed: int, prompt: Sequence[int]) -> None:
        if (params.repeat_penalty, params.frequency_penalty, params.presence_penalty) != (1.0, 0.0, 0.0):
            self._penalties = ll.llama_sampler_init_penalties(
                vocabulary, PENALTY_WINDOW, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
            )
            self._window = deque(prompt[-PENALTY_WINDOW:], maxlen=PENALTY_WINDOW)
            for token in self._window:
                ll.llama_sampler_accept(self._penalties, token)
        grammar = _grammar(params)
        if grammar:
            check_grammar(grammar, vocabulary)
            native.forget_errors()
            self._grammar = ll.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
            if not self._grammar:
                raise InvalidRequest(f"the grammar cannot be parsed: {native.reason()}")
        settings = ll.llama_sampler_chain_default_params()
        settings.no_perf = True
        self._chain = ll.llama_sampler_chain_init(settings)
        if self._greedy:
            self._add(ll.llama_sampler_init_greedy())
            return
        if params.top_k > 0:
            self._add(ll.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1.0:
            self._add(ll.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0.0:
            self._add(ll.llama_sampler_init_min_p(params.min_p, 1))
        self._add(ll.llama_sampler_init_temp(params.temperature))
        self._chance = ll.llama_sampler_init_dist(seed)
        self._add(self._chance)

    def _add(self, sampler: Any) -> None:
        ll.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it from here

    def draw(self, logits: Logits, candidates: Candidates) -> int:
        """The next token; from now on it is part of what penalties and the grammar look back on.

        Raises InvalidRequest where the grammar can go on with no token of the vocabulary.
        """
        token = self._pick(logits, candidates)
        if self._grammar and not self._allows(token, candidates):
            token = self._pick_allowed(logits, candidates)
        if self._grammar:
            ll.llama_sampler_accept(self._grammar, token)
        if self._window is not None:
            ll.llama_sampler_accept(self._penalties, token)
            self._window.append(token)
        ll.llama_sampler_accept(self._chain, token)
        return token

    def _pick(self, logits: Logits, candidates: Candidates) -> int:
        changed = self._changed()
        if self._greedy and not len(changed):
            return logits.first
        if self._from_all and len(logits.values) > SMALL_VOCABULARY:
            return self._pick_from_all(logits, candidates, changed)
        ids = None
        if self._keep:
            ids = logits.best(self._keep + len(changed))
        elif self._floor > -math.inf and not len(changed):
            ids = logits.at_least(logits.greatest + self._floor)
        if ids is not None and len(changed):
            ids = np.union1d(ids, changed)
        self._offer(ids, logits, candidates)
        candidates.apply(self._chain)
        return candidates.chosen

    def _pick_from_all(self, logits: Logits, candidates: Candidates, changed: Ids) -> int:
        """From the plain distribution, where nothing filters: a group of tokens by its weight, then one of the group,
        each drawn by llama.cpp. Its sampler alone would take milliseconds for a large vocabulary."""
        greatest, new = logits.greatest, _NOTHING
        if len(changed):
            new = self._offer(changed, logits, candidates).copy()
            greatest = max(greatest, float(new.max()))
        weights = logits.weights(self._temperature, greatest)
        if len(changed):
            weights[changed] = np.exp((new - np.float32(greatest)) / np.float32(self._temperature))
        width = len(weights) // GROUP
        groups, rest = weights[: GROUP * width].reshape(GROUP, width), weights[GROUP * width :]
        candidates.fill_weights(np.append(groups.sum(axis=0), rest.sum()))
        candidates.apply(self._chance)
        group = candidates.chosen
        candidates.fill_weights(groups[:, group] if group < width else rest)
        candidates.apply(self._chance)
        return group + candidates.chosen * width if group < width else GROUP * width + candidates.chosen

    def _pick_allowed(self, logits: Logits, candidates: Candidates) -> int:
        self._offer(None, logits, candidates)
        candidates.apply(self._grammar)
        if candidates.greatest == -math.inf:  # llama.cpp would choose one all the same, and end the process for it
            raise InvalidRequest("the grammar allows nothing there that a token of the model could write: change it")
        candidates.apply(self._chain)
        return candidates.chosen

    def _allows(self, token: int, candidates: Candidates) -> bool:
        candidates.fill_one(token)
        candidates.apply(self._grammar)
        return candidates.greatest != -math.inf

    def _changed(self) -> Ids:
        """Tokens whose logits are not what the model says, ascending."""
        if not self._window:
            return self._biased
        return np.union1d(self._biased, np.fromiter(set(self._window), dtype=np.intp))

    def _offer(self, ids: Ids | None, logits: Logits, candidates: Candidates) -> Floats:
        """Put tokens in (None: all), with their biases and penalties. All biased ones must be among them. What is
        returned are their logits then."""
        values = candidates.fill(logits.values, ids)
        if len(self._biased):
            values[self._biased if ids is None else np.searchsorted(ids, self._biased)] += self._bias
        if self._penalties:
            candidates.apply(self._penalties)
        return values

    def close(self) -> None:
        """Free the native samplers. The second call does nothing."""
        for sampler in (self._penalties, self._grammar, self._chain):
            if sampler:
                ll.llama_sampler_free(sampler)
        self._penalties = self._grammar = self._chain = self._chance = None


def _grammar(params: SamplingParams) -> str:
    if not params.json_schema:
        return params.grammar
    check_schema(params.json_schema)
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        return str(json_schema_to_gbnf(params.json_schema))
    except Exception as e:  # The converter raises whatever a malformed schema makes it raise.
        raise InvalidRequest(f"json_schema cannot be used: {e or type(e).__name__}") from None
