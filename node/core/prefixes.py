"""Which topics' KV begins as a prompt does: a radix tree over the tokens of all that is held.

One look at every topic took 4 ms with a thousand of them and 40 with ten thousand, before each prompt. Here a prompt
goes down one path of the tree, as in SGLang's RadixAttention (Zheng et al., 2024), and its time depends on its own
length alone. vLLM and LMCache look up hashes of whole blocks instead, for KV that is kept in blocks; ours is kept by
topics, so a prefix counts to the token.

A node stands for a stretch of tokens that all topics below it share. Of those it knows the one that is brought back
soonest: of those in the context any, of those in memory and on disk the smallest. A topic's gain is the prefilling that
its common prefix saves less what bringing it back takes, so for each length of the path one look at these three finds
the best of all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from node.core.slots import MIN_SHARED, TAKEOVER, Held, Match, Speeds, common_prefix, restoring

_PLACES = 3  # in the context, in memory, on disk: each has its own price
# Entries of topics that moved on stay in a node's heaps until they come up, or are more than the others and these.
_SPARE_ENTRIES = 16
_Entry = tuple[int, int, str]  # bytes, a number that no other entry has, topic


class _Node:
    """Tokens `start` to `end` of `tokens`, which is some topic's below it; the first tells it from its siblings."""

    __slots__ = ("cheapest", "children", "end", "parent", "size", "start", "tokens", "topics")

    def __init__(self, parent: _Node | None, tokens: Sequence[int], start: int, end: int) -> None:
        self.parent = parent
        self.tokens, self.start, self.end = tokens, start, end
        self.children: dict[int, _Node] = {}
        self.topics: set[str] = set()  # that end here
        self.size = 0  # topics that end here or below
        self.cheapest: tuple[list[_Entry], ...] = ()  # a heap for each place; none where too few tokens are shared

    def up(self) -> Iterator[_Node]:
        """This node and those above it."""
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.parent


class Prefixes:
    """What is held, by topic, and found by its beginning."""

    def __init__(self) -> None:
        self._root = _Node(None, (), 0, 0)
        self._held: dict[str, Held] = {}
        self._ends: dict[str, _Node] = {}
        self._current: dict[str, int] = {}  # the number of each topic's entries; others are of the past
        self._last = 0

    def put(self, held: Held) -> None:
        """Take a topic in, or what has changed of it."""
        was = self._held.get(held.topic)
        if was is not None and was.tokens is not held.tokens:
            self.remove(held.topic)
            was = None
        self._held[held.topic] = held
        if was is None:
            self._insert(held)
        if was is None or (_place(was), was.bytes) != (_place(held), held.bytes):
            self._enter(held)

    def remove(self, topic: str) -> None:
        """Let a topic go; no error if there is none."""
        held = self._held.pop(topic, None)
        if held is None:
            return
        del self._current[topic]
        node = self._ends.pop(topic)
        node.topics.discard(topic)
        for each in node.up():
            each.size -= 1
            self._trim(each)
        for each in node.up():
            if each.parent is not None:
                self._tidy(each, each.parent, held)

    def match(self, topic: str, prompt: Sequence[int], speeds: Speeds, *, whole: bool = False) -> Match | None:
        """The best beginning for a prompt: the topic's own KV, else the longest prefix among others'; None: prefill
        all.

        At least the prompt's last token is always left to compute, since its logits are needed. A parked copy is used
        only where restoring it is quicker than prefilling what it saves. With `whole` only what the prompt has all
        tokens of can be begun from.
        """
        best: Match | None = None
        best_gain = 0.0
        for node, length in self._path(prompt):
            for held in self._candidates(node, length, whole=whole):
                if held is not None and (gain := _gain(held, length, speeds)) > best_gain:
                    best_gain = gain
                    is_unnamed = held.topic.startswith("~")
                    best = Match(held, length, is_unnamed and length >= TAKEOVER * len(held.tokens))
        own = self._held.get(topic) if topic else None
        if own is not None:
            length = min(common_prefix(own.tokens, prompt), len(prompt) - 1)
            # Of equal ones, its own: it need not be kept beside.
            if whole and length < len(own.tokens):
                length = 0
            if length >= 1 and _gain(own, length, speeds) + speeds.prefill_s / 2 > best_gain:
                best = Match(own, length, True)
        return best

    def shared(self, prompt: Sequence[int]) -> int:
        """Tokens that a prompt, without its last, has in common with anything that is held."""
        return max((length for _, length in self._path(prompt)), default=0)

    # ---- the tree ---------------------------------------------------------------------------------------------------

    def _path(self, prompt: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """The nodes that a prompt without its last token goes through, each with how many of its tokens they share."""
        node, at, end = self._root, 0, len(prompt) - 1
        while at < end and (child := node.children.get(prompt[at])) is not None:
            at = common_prefix(child.tokens, prompt, at, min(child.end, end))
            yield child, at
            if at < child.end:
                return
            node = child

    def _candidates(self, node: _Node, length: int, *, whole: bool) -> Iterator[Held | None]:
        """Topics below a node, or that end there, of which so many tokens are shared."""
        if length < MIN_SHARED or (whole and length < node.end):
            return iter(())
        if whole:
            return iter([self._held[topic] for topic in node.topics])
        return map(self._top, node.cheapest)

    def _insert(self, held: Held) -> None:
        tokens, node, at = held.tokens, self._root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = node.children[tokens[at]] = _Node(node, tokens, at, len(tokens))
                child.cheapest = _heaps(child)
            at = common_prefix(child.tokens, tokens, at, child.end)
            node = child if at == child.end else _split(child, at)
        node.topics.add(held.topic)
        self._ends[held.topic] = node
        for each in node.up():
            each.size += 1

    def _tidy(self, node: _Node, parent: _Node, gone: Held) -> None:
        """After a topic below a node went: a node without topics goes, and one that no longer branches."""
        first = node.tokens[node.start]
        if not node.size:
            del parent.children[first]
        elif len(node.children) == 1 and not node.topics:
            [child] = node.children.values()
            child.start, child.parent = node.start, parent
            parent.children[first] = child
        elif node.tokens is gone.tokens:  # else they would be kept for ever
            below = next(iter(node.children.values()), None)
            node.tokens = below.tokens if below is not None else self._held[next(iter(node.topics))].tokens

    # ---- the cheapest -----------------------------------------------------------------------------------------------

    def _enter(self, held: Held) -> None:
        """Into the heaps of all nodes on its path."""
        self._last += 1
        self._current[held.topic] = self._last
        entry = (held.bytes, self._last, held.topic)
        for node in self._ends[held.topic].up():
            if not node.cheapest:
                break  # nor has any above it
            heapq.heappush(node.cheapest[_place(held)], entry)
            self._trim(node)

    def _trim(self, node: _Node) -> None:
        for heap in node.cheapest:
            if len(heap) > 2 * node.size + _SPARE_ENTRIES:
                heap[:] = [entry for entry in heap if self._current.get(entry[2]) == entry[1]]
                heapq.heapify(heap)

    def _top(self, heap: list[_Entry]) -> Held | None:
        while heap:
            _, number, topic = heap[0]
            if self._current.get(topic) == number:
                return self._held[topic]
            heapq.heappop(heap)
        return None


def _gain(held: Held, length: int, speeds: Speeds) -> float:
    """Seconds that beginning from so many tokens of a topic saves."""
    return length * speeds.prefill_s - (0.0 if held.is_resident else restoring(held, speeds))


def _place(held: Held) -> int:
    return 0 if held.is_resident else 2 if held.is_on_disk else 1


def _heaps(node: _Node) -> tuple[list[_Entry], ...]:
    return tuple([] for _ in range(_PLACES)) if node.end >= MIN_SHARED else ()


def _split(node: _Node, at: int) -> _Node:
    """A new node above one, which begins at a later token from now on."""
    assert node.parent is not None
    above = _Node(node.parent, node.tokens, node.start, at)
    above.children[node.tokens[at]] = node
    above.size = node.size
    above.cheapest = tuple(list(heap) for heap in node.cheapest) if at >= MIN_SHARED else ()
    node.parent.children[node.tokens[node.start]] = above
    node.parent, node.start = above, at
    return above
