"""`chat`: a conversation. It keeps the messages itself, so it can go on at a node that does not know them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator

from node import home
from node.cli import reach, render, turn
from node.cli.readers import utf8
from node.client import Client
from node.errors import ConclaveError, InvalidRequest, NotFound
from node.v1 import generate_pb2, kvsync_pb2, mesh_pb2, types_pb2

HELP = '''\
/topic         the name of this conversation
/topic NAME    continue another one, or begin it
/votes         how the last vote went
/retry         answer the last message again
/quit          leave (also /bye, /exit or ^D)
"""            begins a message of several lines, and ends it
A line that begins with a space is sent as it is, whatever follows.'''
COMMANDS = ("/topic", "/votes", "/retry", "/help", "/quit")
SAME = {"/bye": "/quit", "/exit": "/quit", "/?": "/help"}  # as in other programs
BLOCK = '"""'  # as in Ollama
HISTORY_LINES = 1000
PAST_WIDTH = 72


class Chat:
    """The conversation as this side knows it. `messages` holds acknowledged turns only."""

    def __init__(self, options: Namespace, client: Client) -> None:
        self.options = options
        self.client = client
        self.last: generate_pb2.GenerateResponse | None = None
        self.failed = ""  # the message whose turn failed, for /retry
        self.open(options.topic or f"chat-{secrets.token_hex(3)}", is_new=not options.topic)

    def open(self, topic: str, *, is_new: bool) -> None:
        """Turn to a topic. One that was named may have a past that only its node knows."""
        self.topic = topic
        self.messages: list[types_pb2.Message] = turn.system(self.options)
        self.is_whole = is_new  # whether `messages` is all that the topic holds
        self.is_held = not is_new  # whether the topic ends with `messages`, so that a turn may continue it
        self.last, self.failed = None, ""

    async def say(self, text: str) -> None:
        """One turn: ask, print the answer, keep both. Raises ConclaveError, and then nothing was kept."""
        self.failed = text
        message = turn.user(text)
        try:
            with turn.View() as view:
                response = await self._ask(message, view)
                view.finish(response)
        except BaseException:
            # The node may have kept a turn that we never saw; the whole conversation, if we have it, is right anyway.
            self.is_held = not self.is_whole
            raise
        if self.last is not None and response.version.node_id != self.last.version.node_id and not view.has_moved:
            now = response.version.node_id
            name = (await turn.node_names(self.client)).get(now, now)
            render.note(f"note: node {render.one_line(name)} answers now: another did before")
        self.messages += [message, turn.assistant(response.text)]
        self.is_held = True
        self.last, self.failed = response, ""
        await turn.after(response, self.client, self.options, how="/votes shows how")

    async def retry(self) -> None:
        """The last turn again: the one that failed, or the one that was answered. Raises ConclaveError."""
        if self.failed:
            await self.say(self.failed)
            return
        if len(self.messages) < 2 or self.messages[-1].role != "assistant":
            raise InvalidRequest("nothing was said yet")
        if not self.is_whole:
            raise InvalidRequest(
                "this topic began before this chat, so only its node knows what comes before: say it anew"
            )
        kept, self.messages, self.is_held = self.messages, self.messages[:-2], False
        try:
            await self.say(kept[-2].content)
        except BaseException:
            self.messages, self.failed = kept, ""
            raise

    async def _ask(self, message: types_pb2.Message, view: turn.View) -> generate_pb2.GenerateResponse:
        is_new = False
        if self.is_held:
            # Said with it is what it continues: a node that was not told the last turn must not go on without it.
            parent = self.last.version if self.last is not None else None
            asked = turn.asked(self.options, [message], topic=self.topic, append=True, parent=parent)
            try:
                return await turn.answer(self.client, self.options, asked, view)
            except NotFound:
                if not self.is_whole and self.last is not None:
                    what = (
                        f"note: the node now asked does not know topic {self.topic}: going on with what was said here"
                    )
                    render.note(what)
                self.is_whole = True
                is_new = self.last is None  # another chat may begin it meanwhile, and is not written over
        asked = turn.asked(self.options, [*self.messages, message], topic=self.topic, append=is_new, begin=is_new)
        return await turn.answer(self.client, self.options, asked, view)


def run(options: Namespace) -> int:
    """Talk until the input ends. Raises ConclaveError if there is nobody to talk to, or a turn of a script fails."""
    reach.wait_for_start(options.address)
    # One loop for the whole chat, so that its connection lasts; an interrupt cancels what it runs, and only that.
    with asyncio.Runner() as runner:
        client = Client(reach.addresses(options.address))
        try:
            chat = Chat(options, client)
            if not sys.stdin.isatty():
                return _script(runner, chat)
            status = runner.run(client.status())
            past = runner.run(_past(chat))
            _greet(chat, status, past)
            with _history():
                return _converse(runner, chat)
        finally:
            runner.run(client.close())


def _script(runner: asyncio.Runner, chat: Chat) -> int:
    """Lines of a pipe: each one a message or a command. The first failure ends it, as what follows builds on it."""

    def read() -> str:
        raw = sys.stdin.buffer.readline()
        if not raw:
            raise EOFError
        try:
            return raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as e:
            raise InvalidRequest(f"standard input is not valid UTF-8 (byte {e.start} of a line)") from None

    said = False
    with contextlib.suppress(EOFError):
        while True:
            line = read()
            if line.strip():
                said = True
                if not runner.run(_act(chat, _message(line, read))):
                    break
    if not said:
        raise InvalidRequest("there is nothing on standard input to say: type in a terminal, or give lines in a pipe")
    return 0


def _converse(runner: asyncio.Runner, chat: Chat) -> int:
    while True:
        try:
            line = utf8("what you typed", input(">>> "))
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(/quit or ^D to leave)")
            continue
        except ConclaveError as e:
            render.note(f"error: {e.message}")
            continue
        if not line.strip():
            continue
        try:
            line = _message(line, lambda: utf8("what you typed", input("... ")))
            if not runner.run(_act(chat, line)):
                return 0
        except KeyboardInterrupt:
            render.note("stopped; /retry asks again")
        except ConclaveError as e:
            render.note(f"error: {e.message}" + ("; /retry asks again" if chat.failed else ""))


def _message(line: str, read: Callable[[], str]) -> str:
    """The message that a line begins: more lines if it opens a block. A block is text, whatever it begins with."""
    if not line.lstrip().startswith(BLOCK):
        return line
    block = line.lstrip().removeprefix(BLOCK)
    while not block.rstrip().endswith(BLOCK):
        try:
            block += "\n" + read()
        except EOFError:
            break
    text = block.rstrip().removesuffix(BLOCK).strip("\n")
    return f" {text}" if text.startswith("/") else text


async def _act(chat: Chat, line: str) -> bool:
    """Do what a line says; False to leave. Raises ConclaveError."""
    if not line.startswith("/"):
        await chat.say(line.removeprefix(" ") if line.startswith(" /") else line)
        return True
    command, _, rest = line.partition(" ")
    command, rest = SAME.get(command, command), rest.strip()
    if command == "/quit":
        return False
    if command == "/help":
        print(HELP)
    elif command == "/topic":
        if rest:
            chat.open(rest, is_new=False)
        print(f"topic {chat.topic}")
        if rest and sys.stdin.isatty() and (known := await _past(chat)):
            print(known)
    elif command == "/retry":
        await chat.retry()
    elif command == "/votes":
        if chat.last is None:
            raise InvalidRequest("nothing was voted on yet")
        render.votes(render.console(sys.stdout), chat.last, await turn.node_names(chat.client))
    else:
        raise InvalidRequest(f"{command} is not a command: there are {', '.join(COMMANDS)}")
    sys.stdout.flush()
    return True


async def _past(chat: Chat) -> str:
    """What the node asked holds of a topic that was named; empty if that is nothing, or it does not say."""
    if chat.is_whole:
        return ""
    try:
        shown = await chat.client.show(chat.topic)
    except ConclaveError:
        return ""
    return past(shown, time.time())


def past(shown: kvsync_pb2.ShowResponse, now: float) -> str:
    """How long a topic is, when it was spoken to last, and its last turn. `now` is Unix time in seconds."""
    turns = sum(m.role == "user" for m in shown.messages)
    if not turns:
        return ""
    made = render.when(shown.info.made_ms)
    day, _, clock = made.rpartition(" ")
    last = clock if day == time.strftime("%Y-%m-%d", time.localtime(now)) else made
    lines = [f"It goes on: {turns} turn{'s' if turns > 1 else ''}, the last {last}."]
    begin = max(i for i, m in enumerate(shown.messages) if m.role == "user")
    for message in shown.messages[begin:]:
        if message.role in ("user", "assistant") and message.content.strip():
            lines.append(f"  {message.role}: {render.one_line(message.content, PAST_WIDTH)}")
    return "\n".join(lines)


def _greet(chat: Chat, status: mesh_pb2.StatusResponse, past: str) -> None:
    node = status.nodes[0] if status.nodes else types_pb2.NodeInfo()
    address = render.one_line(node.local_address) or chat.client.addresses[0]
    name, model = render.labels(status.nodes).get(node.id, ""), render.one_line(node.model)
    to = render.console(sys.stdout)
    render.prose(to, f"{model} on {name} ({address}), topic {chat.topic}. /help lists the commands.")
    if past:
        print(past)


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Line editing with the lines of earlier chats, kept for this user only."""
    try:
        import readline
    except ImportError:
        yield
        return
    file = home.home().data / "chat_history"
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ConclaveError):
            home.private_dir(file.parent)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))  # readline would make it readable for everyone
            readline.write_history_file(file)
