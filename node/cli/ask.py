"""`ask`: one question, one answer."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
import sys
import termios
from argparse import Namespace

from node import wire
from node.cli import reach, render, turn
from node.cli.readers import utf8
from node.client import Client
from node.errors import InvalidRequest, NotFound
from node.v1 import generate_pb2


def run(options: Namespace) -> int:
    """Ask, print the answer. Raises ConclaveError."""
    prompt = _prompt(options.prompt)
    reach.wait_for_start(options.address)
    return asyncio.run(_run(options, prompt))


async def _run(options: Namespace, prompt: str) -> int:
    async with Client(reach.addresses(options.address)) as client:
        with turn.View(quiet=bool(options.json)) as view:
            response = await _ask(client, options, prompt, view)
            if not options.json:
                view.finish(response)
        if not options.json:
            await turn.after(response, client, options)
            if options.top_logprobs is not None:
                render.tokens(render.console(sys.stdout), response)
            return 0
    from google.protobuf import json_format

    sys.stdout.write(
        json_format.MessageToJson(
            response,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            ensure_ascii=False,
        )
        + "\n"
    )
    return 0


async def _ask(client: Client, options: Namespace, prompt: str, view: turn.View) -> generate_pb2.GenerateResponse:
    message = turn.user(prompt)
    if options.topic:
        try:
            asked = turn.asked(options, [message], topic=options.topic, append=True)
            response = await turn.answer(client, options, asked, view)
        except NotFound:
            if view.has_moved:  # it is known where we asked first, and that node is gone
                raise
            # A new topic: the same question begins it, if no other has meanwhile.
        else:
            if options.system:
                render.note(f"note: topic {options.topic} exists already: --system counts only where one begins")
            return response
    is_new = bool(options.topic)
    messages = [*turn.system(options), message]
    asked = turn.asked(options, messages, topic=options.topic or "", append=is_new, begin=is_new)
    return await turn.answer(client, options, asked, view)


def _has_input() -> bool:
    """Whether a pipe with something in it is the standard input."""
    with contextlib.suppress(OSError, ValueError):
        fd = sys.stdin.fileno()
        waiting = bytearray(4)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            fcntl.ioctl(fd, termios.FIONREAD, waiting)
        return any(waiting)
    return False


def _prompt(words: list[str]) -> str:
    """The prompt from the command line, standard input, or both (`ask "Summarise:" - < file`)."""
    is_piped = not sys.stdin.isatty() if sys.stdin is not None else False
    reads = words[-1:] == ["-"] or (not words and is_piped)
    if is_piped and not reads and _has_input():
        # Read unasked it would eat the rest of a `while read …; do ask …; done`.
        render.note('note: what was piped in is not read: `ask "…" -` adds it to the prompt')
    given = utf8("the prompt", " ".join(words[:-1] if words[-1:] == ["-"] else words))
    if reads:
        raw = sys.stdin.buffer.read(wire.MAX_MESSAGE_BYTES + 1)
        try:
            text = raw.decode()
        except UnicodeDecodeError as e:
            raise InvalidRequest(f"standard input is not valid UTF-8 (byte {e.start})") from None
        given = f"{given}\n\n{text}" if given else text
    if not given.strip():
        raise InvalidRequest('the prompt is empty: write it in quotes, `ask "…"`, or pipe it in')
    if len(given.encode()) > wire.MAX_MESSAGE_BYTES - (1 << 16):
        raise InvalidRequest(f"the prompt is longer than {wire.MAX_MESSAGE_BYTES >> 20} MiB")
    return given.rstrip("\n")
