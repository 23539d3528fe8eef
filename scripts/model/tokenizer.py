"""A byte-level BPE tokenizer that makes copying easy, in the form llama.cpp calls `gpt2` with `pre=qwen2`.

Merges of letters never take the space along, so a word has the same pieces after a space, a quote or a line break.
Digits stand alone. Only the last merges join a space with a frequent word that is one piece already.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from scripts.model import words as vocabulary
from scripts.model.chat import conversation
from scripts.model.template import MARKUP, SPECIAL, render

# The split of llama.cpp's `qwen2` pre-tokenizer (llama-vocab.cpp), which is Qwen2.5's own.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTER_MERGES = 760
SPACED_WORDS = 130
SPACE = "Ġ"  # the byte-level alphabet's sign for a space


def alphabet() -> dict[int, str]:
    """GPT-2's printable sign for every byte (the table of its encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = {b: chr(b) for b in plain}
    signs.update({b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in signs)})
    return signs


def build(tokens: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """The tokenizer for a token list (position = id) and merges in order of rank."""
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP])
    return made


def train(seed: int, conversations: int = 6000) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens (position = id) and merges, from conversations of the generator with this seed."""
    rng = random.Random(f"tokenizer {seed}")
    words: Counter[str] = Counter()
    signs = alphabet()
    splitter = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    for _ in range(conversations):
        made = conversation(rng)
        text = render(made.messages, made.tools)
        for part in re.split("|".join(map(re.escape, SPECIAL + MARKUP)), text):
            for piece, _ in splitter.pre_tokenize_str(part):
                # Line breaks stay single tokens: where one stands should not change the sign before it.
                words["".join(signs[b] for b in piece.rstrip("\r\n").encode())] += 1
    merges = _letter_merges(words, LETTER_MERGES)
    whole = {a + b for a, b in merges} | {'"'}
    copied = {v for v in vars(vocabulary).values() if isinstance(v, list) for v in v} - set(vocabulary.COMMON)
    spaced = Counter(
        {w[1:]: n for w, n in words.items() if w.startswith(SPACE) and w[1:] in whole and w[1:] not in copied}
    )
    merges += [(SPACE, w) for w, _ in sorted(spaced.items(), key=lambda x: (-x[1], x[0]))[:SPACED_WORDS]]
    # Two merges may make the same piece (a+ss, as+s); llama.cpp refuses a token that stands twice.
    tokens = list(dict.fromkeys([signs[b] for b in range(256)] + [a + b for a, b in merges]))
    return [*tokens, *SPECIAL, *MARKUP], merges


def _letter_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Plain BPE over runs of letters, and over runs of other signs: neither a space, a quote nor _ joins a word."""
    bare: Counter[str] = Counter()
    for word, n in words.items():
        # A long tail of made-up words would only spend merges on what is seen once.
        for run in re.findall(r"[^\W\d_Ġ]+|[\W_]+", word) if n > 1 else ():
            if len(run) > 1:
                bare[run] += n
    pieces = {w: list(w) for w in bare}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += bare[word]
        best = min(pairs.items(), key=lambda x: (-x[1], x[0]))[0]
        merges.append(best)
        for word, parts in pieces.items():
            if best[0] in parts:
                pieces[word] = _joined(parts, best)
    return merges


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out, i = [], 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out
