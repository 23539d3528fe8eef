"""Which KV to begin from, by the tree of what is held and by a look at all of it."""

from collections.abc import Iterable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node.core.prefixes import Prefixes, _Node
from node.core.slots import MIN_SHARED, Held, Match, Speeds, common_prefix, restoring

SPEEDS = Speeds(prefill_s=1e-3, restore_s=1e-3, restore_s_per_byte=1e-9)
# What conversations are like: a few beginnings, then each its own way, some past the point where sharing pays.
BEGINNINGS = tuple(tuple(t % 7 for t in range(n)) for n in (0, 5, 15, 16, 17, 40))
tokens = st.builds(
    lambda beginning, rest: (*beginning, *rest), st.sampled_from(BEGINNINGS), st.lists(st.integers(0, 2), max_size=30)
).map(tuple)
topics = st.sampled_from(["a", "b", "c", "d", "e", "~1", "~2"])
places = st.sampled_from(["context", "memory", "disk"])


def held(topic: str, tokens: Sequence[int], place: str = "context", size: int = 0) -> Held:
    return Held(topic, tokens, place == "context", 0 if place == "context" else size, place == "disk")


def match(all_held: Iterable[Held], topic: str, prompt: Sequence[int], speeds: Speeds = SPEEDS) -> Match | None:
    found = Prefixes()
    for each in all_held:
        found.put(each)
    return found.match(topic, prompt, speeds)


def gain(found: Match | None, topic: str, speeds: Speeds) -> float:
    if found is None:
        return 0.0
    dear = 0.0 if found.held.is_resident else restoring(found.held, speeds)
    own = speeds.prefill_s / 2 if topic and found.held.topic == topic else 0.0
    return found.length * speeds.prefill_s - dear + own


def best_of_all(all_held: Iterable[Held], topic: str, prompt: Sequence[int], speeds: Speeds) -> float:
    """The best gain by a look at every topic: the rule as it was before there was a tree."""
    best = 0.0
    for each in all_held:
        own = topic != "" and each.topic == topic
        length = 0
        while length < min(len(each.tokens), len(prompt) - 1) and each.tokens[length] == prompt[length]:
            length += 1
        if length >= (1 if own else MIN_SHARED):
            best = max(best, gain(Match(each, length, own), topic, speeds))
    return best


class PrefixesMachine(RuleBasedStateMachine):
    """Topics come, move, grow and go; at any time the tree finds what a look at all of them finds."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Prefixes()
        self.model: dict[str, Held] = {}

    @rule(topic=topics, tokens=tokens, place=places, size=st.integers(1, 40_000_000))
    def hold(self, topic: str, tokens: tuple[int, ...], place: str, size: int) -> None:
        self.model[topic] = held(topic, tokens, place, size)
        self.tree.put(self.model[topic])

    @rule(topic=topics, place=places, size=st.integers(1, 40_000_000))
    def move(self, topic: str, place: str, size: int) -> None:
        if topic in self.model:
            self.model[topic] = held(topic, self.model[topic].tokens, place, size)
            self.tree.put(self.model[topic])

    @rule(topic=topics, more=st.lists(st.integers(0, 2), min_size=1, max_size=20))
    def go_on(self, topic: str, more: list[int]) -> None:
        if topic in self.model:
            self.model[topic] = held(topic, (*self.model[topic].tokens, *more))
            self.tree.put(self.model[topic])

    @rule(topic=topics)
    def leave(self, topic: str) -> None:
        self.model.pop(topic, None)
        self.tree.remove(topic)

    @rule(
        topic=st.one_of(topics, st.just("")),
        prompt=tokens,
        like=topics,
        more=st.lists(st.integers(0, 2), max_size=3),
        disk=st.sampled_from([0.0, 1e-9, 1e-7]),
    )
    def ask(self, topic: str, prompt: tuple[int, ...], like: str, more: list[int], disk: float) -> None:
        speeds = Speeds(1e-3, 1e-3, 1e-9, disk)
        going_on = (*self.model[like].tokens, *more) if like in self.model else ()
        for asked in (prompt, going_on):
            found = self.tree.match(topic, asked, speeds)
            expected = best_of_all(self.model.values(), topic, asked, speeds)
            assert abs(gain(found, topic, speeds) - expected) < 1e-12
            if found is not None:
                assert found.held is self.model[found.held.topic]
                assert 0 < found.length < len(asked)
                assert found.length == min(common_prefix(found.held.tokens, asked), len(asked) - 1)

    @invariant()
    def holds_no_more_than_it_must(self) -> None:
        nodes = list(below(self.tree._root))
        assert len(nodes) <= 2 * len(self.model) + 1
        assert self.tree._root.size == len(self.model)
        kept = {id(each.tokens) for each in self.model.values()}
        for node in nodes[1:]:
            assert node.size == len(node.topics) + sum(child.size for child in node.children.values())
            assert node.size > 0
            assert len(node.children) != 1 or node.topics
            assert id(node.tokens) in kept
            assert all(len(heap) <= 2 * node.size + 16 for heap in node.cheapest)


TestPrefixes = PrefixesMachine.TestCase
TestPrefixes.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def below(node: _Node) -> list[_Node]:
    return [node, *(each for child in node.children.values() for each in below(child))]


def test_what_moves_often_leaves_nothing_behind() -> None:
    system = tuple(range(64))
    tree = Prefixes()
    for turn in range(2000):
        topic = f"t{turn % 40}"
        said = (*system, turn % 40, *range(1000, 1000 + turn // 40))
        tree.put(held(topic, said))
        tree.put(held(topic, said, "memory", 100 * len(said)))
        found = tree.match("", (*system, 999), SPEEDS)
        assert found is not None
        assert found.length == 64
    assert sum(len(heap) for node in below(tree._root) for heap in node.cheapest) < 3 * (2 * 2 * 40 + 16 * 81)
    for topic in range(40):
        tree.remove(f"t{topic}")
    assert below(tree._root) == [tree._root]
    assert not tree._current
    assert not tree._ends


@given(st.lists(tokens, max_size=6), tokens)
def test_whatever_is_matched_is_a_real_prefix(all_tokens: list[tuple[int, ...]], prompt: tuple[int, ...]) -> None:
    found = match([held(str(i), each) for i, each in enumerate(all_tokens)], "1", prompt)
    if found is not None:
        assert tuple(found.held.tokens[: found.length]) == prompt[: found.length]


def test_its_own_topic_is_taken_over_and_another_is_shared() -> None:
    system = tuple(range(100))
    a = Held("a", (*system, 1, 2, 3), True)
    own = match([a], "a", (*system, 1, 2, 3, 4, 5), SPEEDS)
    assert own is not None
    assert (own.length, own.take) == (103, True)
    other = match([a], "b", (*system, 9, 9), SPEEDS)
    assert other is not None
    assert (other.length, other.take) == (100, False)


def test_a_short_prefix_of_another_topic_is_not_worth_it() -> None:
    assert match([Held("a", tuple(range(15)), True)], "b", tuple(range(30)), SPEEDS) is None
    assert match([Held("b", tuple(range(15)), True)], "b", tuple(range(30)), SPEEDS) is not None


def test_a_conversation_without_a_name_is_taken_over_when_it_goes_on() -> None:
    held = Held("~1", tuple(range(50)), True)
    going_on = match([held], "", tuple(range(60)), SPEEDS)
    assert going_on is not None
    assert going_on.take
    branched_early = match([held], "", (*range(20), *range(100, 150)), SPEEDS)
    assert branched_early is not None
    assert not branched_early.take


def test_a_parked_copy_is_used_only_where_restoring_is_quicker() -> None:
    prompt = tuple(range(200))
    cheap = Held("a", prompt[:100], False, bytes=1_000_000)  # 2 ms against 100 ms
    dear = Held("a", prompt[:100], False, bytes=200_000_000)  # 201 ms against 100 ms
    assert match([cheap], "a", prompt, SPEEDS) is not None
    assert match([dear], "a", prompt, SPEEDS) is None


@given(st.lists(tokens, max_size=6), tokens.filter(len), topics, places)
def test_a_model_that_cannot_go_back_begins_from_what_its_prompt_has_all_of(
    all_tokens: list[tuple[int, ...]], prompt: tuple[int, ...], topic: str, place: str
) -> None:
    names = ("a", "b", "c", "~1", "~2", "d")
    all_held = [held(name, each, place, 50) for name, each in zip(names, all_tokens, strict=False)]
    whole = [h for h in all_held if h.tokens and len(h.tokens) < len(prompt) and prompt[: len(h.tokens)] == h.tokens]
    tree = Prefixes()
    for each in all_held:
        tree.put(each)
    found = tree.match(topic, prompt, SPEEDS, whole=True)
    assert gain(found, topic, SPEEDS) == best_of_all(whole, topic, prompt, SPEEDS)
    assert found is None or found.length == len(found.held.tokens)
