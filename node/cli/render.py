"""What a person sees: tables with colour on a terminal, plain aligned lines anywhere else."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.cli.wrap import fitted, wrapped
from node.core import thoughts
from node.types import SamplingParams
from node.v1 import generate_pb2, mesh_pb2, types_pb2

ANSWER_WIDTH = 48
GAP = 2  # between columns
BAR_WIDTH = 16
DEFAULT_TOKENS = SamplingParams().max_tokens
TOPICS = 40  # more of them hide the nodes
MODELS = 16
NARROW = 64  # columns; below, a bar is no use beside its number
SHORT_ID = 4  # characters of an id, where that tells the nodes apart
# Control characters but newline and tab, and what reverses the direction of text: models and peers choose these bytes,
# and a terminal would act on them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ID = re.compile(r"\b[a-z2-7]{10}\b")  # a node's, in a message
_STATE_STYLE = {"alive": "green", "suspect": "yellow", "draining": "yellow", "dead": "red"}


def console(stream: TextIO) -> Console:
    """A console on a stream. Escape codes only on a terminal, whatever the environment forces; markup never."""
    is_terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=is_terminal,
        no_color=None if is_terminal else True,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
    )


def clean(text: str) -> str:
    """A text without what a terminal would act on."""
    return _CONTROL.sub("", text)


def shown(text: str, stream: TextIO) -> str:
    """An answer as it is written to a stream: as it is for a program, without control characters for a terminal."""
    return clean(text) if stream.isatty() else text


def one_line(text: str, width: int = ANSWER_WIDTH) -> str:
    """A text in one line of at most `width` characters."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def note(text: str) -> None:
    """A line beside the output, for a person: on stderr."""
    console(sys.stderr).print(Text(fitted(one_line(text, 400), sys.stderr, 2), style="dim"))


def prose(to: Console, text: str, indent: int = 2) -> None:
    """A sentence, whose further lines on a narrow terminal are indented."""
    to.print(Text(wrapped(text, to.width, indent) if to.is_terminal else text))


class _Named(Protocol):
    """A node as a message, or as `node.types` has it."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def name(self) -> str:
        """Its name for people."""


def labels(nodes: Iterable[_Named]) -> dict[str, str]:
    """What to call each node: its name where no other has the same, else name and as much of its id as tells it."""
    known = list(nodes)
    names = Counter(n.name for n in known)
    lengths = range(SHORT_ID, max((len(n.id) for n in known), default=0))
    short = next((k for k in lengths if len({n.id[:k] for n in known}) == len(known)), None)

    def label(n: _Named) -> str:
        is_known = n.name and names[n.name] == 1
        return one_line(n.name, 24) if is_known else one_line(f"{n.name}/{n.id[:short]}".strip("/"), 36)

    return {n.id: label(n) for n in known}


def called(text: str, names: Mapping[str, str]) -> str:
    """A message of a node, with the nodes in it called as everywhere else."""
    return _ID.sub(lambda found: names.get(found[0], found[0]), text)


def version(v: types_pb2.Version) -> str:
    """A topic's version: each turn makes the next, and so does a question that is asked again."""
    return str(v.turn) + (f" (epoch {v.epoch})" if v.epoch else "")


def holders(topic: types_pb2.TopicInfo, names: Mapping[str, str]) -> str:
    """The nodes that hold a topic, and which of them are away."""
    away = set(topic.away)
    return ", ".join(names.get(r, one_line(r)) + (" (away)" if r in away else "") for r in topic.replicas) or "-"


def when(ms: int) -> str:
    """A moment, Unix time in milliseconds, by this machine's clock; 0 is not known."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(ms / 1000)) if ms else "-"


def milliseconds(value: float) -> str:
    """A duration for a person."""
    if value >= 10_000:
        return f"{value / 1000:.0f} s"
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 or value < 0.05 else f"{value:.1f} ms"


# ---- tables ---------------------------------------------------------------------------------------------------------


def table(
    to: Console,
    headers: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    right: Iterable[int] = (),
    spare: Iterable[int] = (),
) -> None:
    """Rows under headers; columns in `right` are numbers. Where a terminal is too narrow, those in `spare` go, in that
    order: a column less is read more easily than words in pieces."""
    numbers = set(right)
    if to.is_terminal:
        texts = [[c if isinstance(c, Text) else Text(c) for c in row] for row in rows]
        widths = [max(len(header), *(r[i].cell_len for r in texts), 0) for i, header in enumerate(headers)]
        kept = list(range(len(headers)))
        for column in spare:
            if sum(widths[i] + GAP for i in kept) - GAP <= to.width:
                break
            kept.remove(column)
        made = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold", pad_edge=False)
        for i in kept:
            made.add_column(headers[i], justify="right" if i in numbers else "left", overflow="fold")
        for row in texts:
            made.add_row(*(row[i] for i in kept))
        to.print(made, soft_wrap=False)
        return
    lines = [list(headers), *([str(c) for c in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    for line in lines:
        cells = (c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        to.print(Text("  ".join(cells).rstrip()))


def facts(to: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """A name and a value each line; pairs without a value are left out."""
    kept = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        head = name.ljust(width) + "  "
        text = wrapped(head + value, to.width, len(head)) if to.is_terminal else head + value
        to.print(Text.assemble((text[: len(head)], "dim"), text[len(head) :]))


# ---- a vote ---------------------------------------------------------------------------------------------------------


def votes(to: Console, response: generate_pb2.GenerateResponse, names: Mapping[str, str]) -> None:
    """How a vote went: clusters with their share, then what was decided and what it cost."""
    outcome = response.outcome
    nodes = {c.id: names.get(c.node, c.node) for c in response.candidates}
    if outcome.models:
        nodes |= {c.id: f"{nodes[c.id]} ({one_line(c.model, 32)})" for c in response.candidates}
    total = sum(c.weight for c in outcome.clusters)
    width = min(ANSWER_WIDTH, max(to.width - 40, 12)) if to.is_terminal else ANSWER_WIDTH
    rows = []
    for cluster in outcome.clusters:
        share = cluster.weight / total if total else 0.0
        is_winner = outcome.winner in cluster.members
        rows.append(
            (
                Text(answer(cluster.key, cluster.medoid, width), style="bold green" if is_winner else ""),
                str(cluster.count),
                _bar(share, is_winner, to.width >= NARROW) if to.is_terminal else f"{share:.2f}",
                _members(cluster.members, nodes),
            )
        )
    if rows:  # an answer that was kept comes without them
        table(to, ("answer", "votes", "share", "candidates"), rows, right=(1,))
    facts(to, _facts(response, names))


def answer(key: str, text: str, width: int = ANSWER_WIDTH) -> str:
    """A candidate's answer in a line: its key, or the text where that is the key before it was lowered and stripped for
    comparing."""
    return one_line(text if _letters(text) == _letters(key) else key, width) or "(empty)"


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _bar(share: float, is_winner: bool, has_room: bool) -> Text:
    if not has_room:
        return Text(f"{share:.0%}", style="green" if is_winner else "yellow")
    full = round(share * BAR_WIDTH)
    style = "green" if is_winner else "yellow"
    return Text.assemble(("█" * full, style), ("░" * (BAR_WIDTH - full), "dim"), f" {share:4.0%}")


def _members(ids: Iterable[int], nodes: Mapping[int, str]) -> str:
    by_node: dict[str, list[str]] = {}
    for member in ids:
        by_node.setdefault(nodes.get(member, "?"), []).append(str(member))
    return "; ".join(f"{node}: {' '.join(members)}" for node, members in by_node.items())


def _facts(response: generate_pb2.GenerateResponse, names: Mapping[str, str]) -> list[tuple[str, str]]:
    o, u, t = response.outcome, response.usage, response.timings
    counted = f"{o.finished} of {o.planned} finished" + (", stopped early" if o.stopped_early else "")
    return [
        ("strategy", o.strategy),
        ("confidence", f"{o.confidence:.2f}" + (" (the candidates disagree)" if o.disagreement else "")),
        ("margin", f"{o.margin:.2f}"),
        ("dissent", " ".join(str(i) for i in o.dissent) or "none"),
        ("candidates", counted + ("" if o.quorum else "; fewer than half of them: no quorum")),
        *(("model", _model(m)) for m in o.models),
        *(("lost", _loss(loss, names)) for loss in o.lost),
        ("topic", f"{one_line(response.topic)}, version {version(response.version)}" if response.topic else ""),
        (
            "tokens",
            f"prompt {u.prompt_tokens} ({u.cached_tokens} cached), answer {u.completion_tokens}, "
            f"all candidates {u.candidate_tokens}",
        ),
        (
            "time",
            f"queue {milliseconds(t.queue_ms)}, prefill {milliseconds(t.prefill_ms)}, "
            f"first token {milliseconds(t.first_token_ms)}, total {milliseconds(t.total_ms)}",
        ),
    ]


def _model(m: types_pb2.ModelVote) -> str:
    count = len(m.candidates)
    return f"{one_line(m.model, 32)}, {count} candidate{'s' if count > 1 else ''} of weight {m.weight:.2f}"


def _loss(loss: types_pb2.Loss, names: Mapping[str, str]) -> str:
    ids = " ".join(str(i) for i in loss.candidates)
    return f"{ids} of {names.get(loss.node, one_line(loss.node))}: {one_line(loss.reason, 200)}".strip()


def tokens(to: Console, response: generate_pb2.GenerateResponse) -> None:
    """Each token of the winner with its probability, and the most probable ones in its place."""

    def share(logprob: float) -> str:
        return f"{math.exp(logprob):.1%}"

    def others(t: types_pb2.TokenLogprob) -> str:
        return "  ".join(f"{one_line(repr(o.token))} {share(o.logprob)}" for o in t.top_logprobs)

    winner = [c for c in response.candidates if c.id == response.outcome.winner]
    rows = [(one_line(repr(t.token)), share(t.logprob), others(t)) for c in winner for t in c.logprobs]
    to.print()
    table(to, ("token", "probability", "most probable"), rows, right=(1,))


def warnings(
    response: generate_pb2.GenerateResponse, names: Mapping[str, str], *, how: str, most: int = DEFAULT_TOKENS
) -> None:
    """What a person should know of an answer, on stderr. `how` says where the votes are seen; empty, their table is
    shown, and what it says is not said again. `most` is how many tokens were asked for."""
    o = response.outcome
    for line in o.warnings:
        note(f"note: {called(line, names)}")
    if response.finish_reason == "length":
        note(f"note: {_cut(response.usage, most)}")
    elif response.finish_reason == "deadline":
        note("note: the answer was cut off by the deadline: allow more with --timeout")
    if not thoughts.answer(response.text).strip() and not response.tool_calls:
        note("note: the answer is empty")
    if not how:
        return
    for loss in o.lost:
        note(f"note: lost {_loss(loss, names)}")
    if o.disagreement:
        note(f"note: the candidates disagree (confidence {o.confidence:.2f}): {how}")


def _cut(usage: types_pb2.Usage, most: int) -> str:
    if usage.completion_tokens >= most:
        return f"the answer was cut off after {most} tokens: allow more with --max-tokens"
    held = usage.prompt_tokens + usage.completion_tokens
    return (
        f"the answer was cut off after {usage.completion_tokens} of {most} tokens, for with the prompt a sequence is "
        f"full at {held}: start the node with a larger --ctx, or ask in a new conversation"
    )


def summary(response: generate_pb2.GenerateResponse) -> str:
    """One line on how the vote went."""
    o = response.outcome
    agree = o.finished - len(o.dissent)
    nodes = len({c.node for c in response.candidates})
    where = f", from {nodes} nodes" if nodes > 1 else ""
    early = ", stopped early" if o.stopped_early else ""
    return f"{agree} of {o.finished} candidates agree{where}{early} · {milliseconds(response.timings.total_ms)}"


# ---- a mesh ---------------------------------------------------------------------------------------------------------


def _speed(response: mesh_pb2.StatusResponse) -> str:
    """What the node asked measured: reading prompts, and from which length on KV is brought back."""
    here = response.speeds
    if not here.prefill_tokens_per_s:
        return ""
    read = f"{here.prefill_tokens_per_s:.0f} tokens/s of a prompt"
    if not here.worth_tokens:
        return read
    memory, disk = here.worth_tokens, here.worth_tokens_disk
    longer = f" of {memory} tokens or more" if memory > 1 else ""
    if not disk:
        where = " from memory, not from disk"
    else:
        where = f" (from disk: of {disk} or more)" if disk > max(memory, 1) else ""
    return f"{read}; an idle topic{longer} is brought back, not computed again{where}"


def count_of_tokens(count: int) -> str:
    """So many tokens."""
    return f"{count} token{'' if count == 1 else 's'}"


def _pooled(nodes: Iterable[types_pb2.NodeInfo], names: Mapping[str, str]) -> Iterator[str]:
    """Who lends memory to whom."""
    for n in nodes:
        if n.lends_bytes and n.state != "dead":
            to = f"to {names.get(n.lent_to, one_line(n.lent_to))}" if n.lent_to else "(to nobody now)"
            yield f"{names[n.id]} lends {n.lends_bytes / (1 << 30):.1f} GiB {to}"


def status(to: Console, response: mesh_pb2.StatusResponse) -> None:
    """Nodes, topics and slots, as one node sees them."""
    names = labels(response.nodes)
    rows = []
    for i, n in enumerate(response.nodes):
        is_there = n.state != "dead"  # of a dead one, what it last said of itself means nothing
        rows.append(
            (
                Text(names[n.id] + (" *" if i == 0 else "")),
                Text(n.state, style=_STATE_STYLE.get(n.state, "")),
                one_line(n.model, 32),
                n.backend,
                f"{n.load:.0%}" if is_there else "-",
                f"{n.free_sequences}/{n.sequences}" if is_there else "-",
                f"{n.decode_tokens_per_s:.0f}" if n.decode_tokens_per_s and is_there else "-",
                milliseconds(n.round_trip_ms) if i and is_there else "-",
                one_line(n.address, 48),
                one_line(n.id, 16),
            )
        )
    heads = ("node", "state", "model", "backend", "load", "free", "tokens/s", "round trip", "address", "id")
    table(to, heads, rows, right=(4, 5, 6, 7), spare=(9, 8, 3, 7, 5, 4))
    to.print()
    if response.topics:
        listed = [
            (one_line(t.topic), version(t.version), str(t.tokens), when(t.made_ms), holders(t, names))
            for t in response.topics[:TOPICS]
        ]
        table(to, ("topic", "version", "tokens", "last turn", "held by"), listed, right=(1, 2), spare=(3,))
        if len(response.topics) > TOPICS:
            to.print(Text(f"and {len(response.topics) - TOPICS} more: --json lists all"))
        to.print()
    if response.models:
        known = [
            (
                one_line(m.model, 32),
                one_line(m.fingerprint[:8]),
                f"{m.votes:.0f}",
                f"{m.agreement:.0%}",
                f"{m.weight:.2f}",
            )
            for m in response.models[:MODELS]
        ]
        table(to, ("model", "fingerprint", "votes", "agreed", "weight"), known, right=(2, 3, 4))
        to.print()
    s = response.slots
    facts(
        to,
        [
            ("slots", f"{s.used} used, {s.free} free; {s.parked} idle prompts kept outside them"),
            ("speed", _speed(response)),
            ("pool", "; ".join(_pooled(response.nodes, names))),
            ("topics", "" if response.topics else "none"),
            ("mesh", one_line(response.mesh_id)),
            ("version", one_line(response.version)),
            *(("problem", called(one_line(p, 400), names)) for p in response.problems),
        ],
    )
