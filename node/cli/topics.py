"""`topics`: the conversations that a node holds; one of them in full; and letting one go, everywhere."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console

from node.cli import reach, render
from node.cli.readers import nearest
from node.client import Client
from node.errors import InvalidRequest, NotFound
from node.v1 import types_pb2

T = TypeVar("T")
ACTIONS = ("list", "show", "forget")


def run(options: Namespace) -> int:
    """Do one of them. Raises ConclaveError."""
    action = options.action or "list"
    if action not in ACTIONS:
        known = f"{', '.join(ACTIONS[:-1])} and {ACTIONS[-1]}"
        raise InvalidRequest(f"topics {action!r}: there are {known}{nearest(action, ACTIONS)}")
    if action == "list":
        if options.name:
            raise InvalidRequest(f"topics list takes no name: `topics show {options.name}` shows one")
        return _list(options)
    if not options.name:
        raise InvalidRequest(f"topics {action} needs the name of a topic: `topics list` has them")
    return _show(options) if action == "show" else _forget(options)


def _ask(options: Namespace, call: Callable[[Client], Awaitable[T]]) -> T:
    """One call of the first node that answers. Raises ConclaveError."""

    async def ask() -> T:
        async with Client(reach.addresses(options.address)) as client:
            return await call(client)

    try:
        return asyncio.run(ask())
    except NotFound as e:
        advice = "" if ":" in e.message else ": `topics list` has those that are known"
        raise NotFound(e.message + advice) from None


async def _named(client: Client, call: Awaitable[T]) -> tuple[T, dict[str, str]]:
    """What a call answers, and what to call the nodes."""
    answer = await call
    return answer, render.labels((await client.status()).nodes)


def _list(options: Namespace) -> int:
    response, names = _ask(options, lambda client: _named(client, client.topics()))
    if options.json:
        return _json(response)
    if not response.topics:
        print("no topics")
        return 0
    to = render.console(sys.stdout)
    rows = [
        (
            render.one_line(t.topic) + (f" (+{t.branches} apart)" if t.branches else ""),
            render.version(t.version),
            str(t.tokens),
            str(t.bytes),
            render.when(t.made_ms),
            render.holders(t, names),
        )
        for t in response.topics
    ]
    heads = ("topic", "version", "tokens", "bytes", "last turn", "held by")
    render.table(to, heads, rows, right=(1, 2, 3), spare=(3, 4))
    return 0


def _show(options: Namespace) -> int:
    response, names = _ask(options, lambda client: _named(client, client.show(options.name)))
    if options.json:
        return _json(response)
    to, info = render.console(sys.stdout), response.info
    facts = [
        ("turns", str(sum(m.role == "user" for m in response.messages))),
        ("version", _version(info.version, names)),
        ("tokens", str(info.tokens)),
        ("last turn", render.when(info.made_ms)),
        ("held by", render.holders(info, names)),
    ]
    if response.snapshot_tokens:
        facts.append(("KV", f"{response.snapshot_tokens} tokens on this node's disk"))
    render.facts(to, facts)
    _say(to, response.messages)
    for branch in response.branches:
        turns, rest = _apart(response.messages, branch.messages)
        parts = (
            f"parts from the above after {turns} turn{'s' if turns > 1 else ''}" if turns else "is apart from the start"
        )
        to.print(
            f"\nbranch {_version(branch.version, names)}, on a node that did not see the others then; "
            f"it {parts} and is no part of the conversation:"
        )
        _say(to, rest)
    return 0


def _apart(
    conversation: Sequence[types_pb2.Message], branch: Sequence[types_pb2.Message]
) -> tuple[int, Sequence[types_pb2.Message]]:
    """How many turns a branch has in common with the conversation, and what it has then."""
    same = next((i for i, (a, b) in enumerate(zip(conversation, branch, strict=False)) if a != b), len(branch))
    same = min(same, len(conversation), len(branch))
    while 0 < same < len(branch) and branch[same].role != "user":  # a turn is whole: what was asked, and its answer
        same -= 1
    return sum(m.role == "user" for m in branch[:same]), branch[same:]


def _forget(options: Namespace) -> int:
    response = _ask(options, lambda client: client.forget(options.name))
    if options.json:
        return _json(response)
    nodes = len(response.nodes)
    others = f" and on {nodes} other node{'s' if nodes > 1 else ''}" if nodes else ""
    print(f"topic {render.one_line(options.name)} is forgotten here{others}; those that are away do when they return")
    return 0


def _say(to: Console, messages: Iterable[types_pb2.Message]) -> None:
    for message in messages:
        to.print()
        to.print(render.shown(f"{message.role}: {message.content}", sys.stdout))
        for call in message.tool_calls:
            to.print(render.shown(f"  calls {call.name}({call.arguments})", sys.stdout))


def _version(v: types_pb2.Version, names: Mapping[str, str]) -> str:
    return f"{render.version(v)}, made by {names.get(v.node_id, render.one_line(v.node_id))}"


def _json(response: Message) -> int:
    print(
        json_format.MessageToJson(
            response,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            ensure_ascii=False,
        )
    )
    return 0
