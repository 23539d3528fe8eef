"""One turn: a request made of options, sent to a node, shown while it is answered. `ask` and `chat` share it."""

from __future__ import annotations

import contextlib
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.live import Live
from rich.text import Text

from node.cli import render
from node.cli.markdown import Paper
from node.cli.progress import PLAIN_EVERY_S, bar
from node.client import TIMEOUT_S, Client, Moved, request
from node.core import thoughts
from node.errors import ConclaveError, DeadlineExceeded
from node.v1 import generate_pb2, types_pb2

PREVIEW_LINES = 3
FRAMES, FRAMES_PER_S = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", 8
READING_S = 1.0  # a prompt that takes longer shows how far it is
# Fields of SamplingParams that are options of the same name, and that 0 does not leave to the node.
NUMBERS = "temperature top_p top_k min_p repeat_penalty presence_penalty frequency_penalty seed".split()


def asked(
    options: Namespace,
    messages: Sequence[types_pb2.Message],
    *,
    topic: str = "",
    append: bool = False,
    begin: bool = False,
    parent: types_pb2.Version | None = None,
    id: str = "",
) -> generate_pb2.GenerateRequest:
    """The request that the options of `ask` and `chat` mean."""
    params = types_pb2.SamplingParams(max_tokens=options.max_tokens or 0)
    for name in NUMBERS:
        value = getattr(options, name)
        if value is not None:
            setattr(params, name, value)
    # What only `ask` has.
    top = getattr(options, "top_logprobs", None)
    if top is not None:
        params.logprobs, params.top_logprobs = True, top
    params.ignore_eos = bool(getattr(options, "ignore_eos", None))
    return request(
        messages,
        topic=topic,
        append=append,
        begin=begin,
        parent=parent,
        candidates=options.candidates or 0,
        strategy=options.strategy or "",
        local=bool(options.local),
        params=params,
        model=options.model or "",
        request_id=id,
    )


async def answer(
    client: Client, options: Namespace, wish: generate_pb2.GenerateRequest, view: View
) -> generate_pb2.GenerateResponse:
    """Ask, and show what comes while it comes. Raises ConclaveError."""
    try:
        more = generate_pb2.Wishes(progress=True, leader=True)
        async with contextlib.aclosing(client.stream(wish, options.timeout or TIMEOUT_S, more)) as events:
            async for event in events:
                if isinstance(event, Moved):
                    view.restart(f"note: {event.reason}; going on at another node")
                    continue
                view.on_event(event)
                if event.WhichOneof("event") == "done":
                    return event.done
    except DeadlineExceeded as e:
        raise DeadlineExceeded(e.message + (": allow more with --timeout" if ":" not in e.message else "")) from None
    raise AssertionError("a stream ends with its result or an error")


def user(content: str) -> types_pb2.Message:
    """What a person said."""
    return types_pb2.Message(role="user", content=content)


def assistant(content: str) -> types_pb2.Message:
    """What was answered."""
    return types_pb2.Message(role="assistant", content=content)


def system(options: Namespace) -> list[types_pb2.Message]:
    """The system prompt, if there is one, as the start of a conversation."""
    return [types_pb2.Message(role="system", content=options.system)] if options.system else []


class View:
    """What is seen of an answer while it is written: progress on stderr, one candidate as Markdown on a terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._out = sys.stdout
        self._paper = Paper(render.console(sys.stdout)) if sys.stdout.isatty() and not quiet else None
        self._progress = sys.stderr.isatty() and not quiet
        self._plain = not self._progress and not quiet
        self._live: Live | None = None
        self.has_moved = False
        self._begin()

    def _begin(self) -> None:
        self._planned = 0
        self._texts: dict[int, str] = {}
        self._finished: dict[int, str] = {}
        self._leader: generate_pb2.Leader | None = None
        self._reading: generate_pb2.Progress | None = None
        self._started = self._said = time.monotonic()

    def __enter__(self) -> View:
        if self._progress:
            self._live = Live(
                get_renderable=self._picture,
                console=render.console(sys.stderr),
                transient=True,
                refresh_per_second=8,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_progress()
        if self._paper is not None:
            self._paper.stop()

    def on_event(self, event: generate_pb2.StreamResponse) -> None:
        """Take in one event of the stream."""
        kind = event.WhichOneof("event")
        if kind == "plan":
            self._planned = sum(len(s.candidates) for s in event.plan.shares)
        elif kind == "progress":
            self._reading = event.progress
            if self._plain and time.monotonic() - self._said >= PLAIN_EVERY_S:
                self._said = time.monotonic()
                render.note(f"note: {_read(event.progress)}")
        elif kind == "token":
            id = event.token.candidate_id
            self._texts[id] = self._texts.get(id, "") + event.token.text
            said = thoughts.answer(self._texts[id])  # what it thinks is seen in the picture, and no more afterwards
            if self._planned == 1 and self._paper is not None and said.strip():
                self._end_progress()
                # White space at the end waits: the finished answer may come without it.
                self._paper.write(render.clean(said).rstrip())
        elif kind == "candidate":
            self._finished[event.candidate.id] = event.candidate.text
            self._texts.pop(event.candidate.id, None)
        elif kind == "leader":
            self._leader = event.leader

    def finish(self, response: generate_pb2.GenerateResponse) -> None:
        """Print the answer, or what is still missing of it."""
        self._end_progress()
        text = render.shown(thoughts.answer(response.text), self._out)
        if self._paper is not None:
            self._paper.finish(text)
        else:
            self._out.write(text)
            if not text.endswith("\n"):
                self._out.write("\n")
            self._out.flush()

    def restart(self, reason: str) -> None:
        """The answer begins anew, on another node."""
        self.has_moved = True
        if self._paper is not None:
            self._paper.stop()
        if self._live is None:
            render.note(reason)
        else:
            self._live.console.print(Text(render.one_line(reason, 400), style="dim"))
        self._begin()

    def _end_progress(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self) -> Group:
        seconds = f"{time.monotonic() - self._started:.0f} s"
        parts = [f"{len(self._finished)}/{self._planned} candidates" if self._planned else "waiting", seconds]
        leading = self._finished.get(self._leader.candidate_id, "") if self._leader else ""
        if self._leader and leading:
            parts.insert(
                1, f"leading with {self._leader.share:.0%}: {render.answer(self._leader.answer or leading, leading)}"
            )
        first = Text(" · ".join(parts))
        if self._reading and not self._texts and not self._finished and time.monotonic() - self._started > READING_S:
            share = self._reading.computed_tokens / max(self._reading.prompt_tokens, 1)
            first = Text.assemble(bar(share), f" {_read(self._reading)} · {seconds}")
        frame = FRAMES[int((time.monotonic() - self._started) * FRAMES_PER_S) % len(FRAMES)]
        # rich's Spinner would let what is too long run on into a second line, which then is not taken away.
        lines = [Text.assemble(f"{frame} ", first, no_wrap=True, overflow="ellipsis")]
        # Who leads is what the answer will be, unless that changes; before there is one, who has written most.
        if leading or self._texts:
            shown = leading or max(list(self._texts.values()), key=len)
            tail = render.clean(shown).splitlines()[-PREVIEW_LINES:]
            lines += [Text("  " + line, style="dim", no_wrap=True, overflow="ellipsis") for line in tail]
        return Group(*lines)


def _read(progress: generate_pb2.Progress) -> str:
    """How far a prompt is, in words."""
    return f"reading the prompt: {progress.computed_tokens:,} of {progress.prompt_tokens:,} tokens"


async def after(
    response: generate_pb2.GenerateResponse, client: Client, options: Namespace, *, how: str = "--votes shows how"
) -> None:
    """What follows an answer: warnings, and the votes if they are asked for; `how` to ask for them else."""
    names: Mapping[str, str] = {}
    votes = bool(options.votes)
    if votes or response.outcome.lost or response.outcome.warnings:
        names = await node_names(client)
    most = options.max_tokens or render.DEFAULT_TOKENS
    render.warnings(response, names, how="" if votes else how, most=most)
    if votes:
        to = render.console(sys.stdout)
        to.print()
        render.votes(to, response, names)
    elif sys.stdout.isatty() and response.outcome.planned > 1:
        render.note(render.summary(response))
    sys.stdout.flush()


async def node_names(client: Client) -> dict[str, str]:
    """Names of the nodes by id; empty if the node does not say."""
    try:
        return render.labels((await client.status(2.0)).nodes)
    except ConclaveError:
        return {}
