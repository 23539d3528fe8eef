"""`chat`: a conversation. It keeps the messages itself, so it can go on at another node when its node goes away."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Iterator

from node import home
from node.cli import client, render, turn
from node.cli.parser import utf8
from node.errors import ConclaveError, InvalidRequest, NotFound
from node.v1 import generate_pb2, types_pb2

HELP = """\
/topic         the name of this conversation
/topic NAME    continue another one, or begin it
/votes         how the last vote went
/retry         answer the last message again
/quit          leave (or ^D)
A line that begins with a space is sent as it is, whatever follows."""
COMMANDS = ("/topic", "/votes", "/retry", "/help", "/quit")
HISTORY_LINES = 1000


class Chat:
    """The conversation as this side knows it. `messages` holds acknowledged turns only."""

    def __init__(self, options: Namespace, addresses: list[str]) -> None:
        self.options = options
        self.given = addresses
        self.address = addresses[0]
        self.last: generate_pb2.GenerateResponse | None = None
        self.failed = ""  # the message whose turn failed, for /retry
        self.open(options.topic or f"chat-{secrets.token_hex(3)}", is_new=not options.topic)

    def open(self, topic: str, *, is_new: bool) -> None:
        """Turn to a topic. One that was named may have a past that only its node knows."""
        self.topic = topic
        self.messages: list[types_pb2.Message] = turn.system(self.options)
        self.is_whole = is_new  # whether `messages` is all that the topic holds
        self.is_held = not is_new  # whether our node's topic ends with `messages`, so that a turn may continue it
        self.last, self.failed = None, ""

    def say(self, text: str) -> None:
        """One turn: ask, print the answer, keep both. Raises ConclaveError, and then nothing was kept."""
        self.failed = text
        message = turn.user(text)
        id = turn.new_id()  # the same on every node that is tried, so that no turn counts twice
        timeout = self.options.timeout or turn.DEFAULT_TIMEOUT
        try:
            with turn.View() as view:
                response = self._anywhere(message, id, timeout, view)
                view.finish(response)
        except BaseException:
            # The node may have kept a turn that we never saw; the whole conversation, if we have it, is right anyway.
            self.is_held = not self.is_whole
            raise
        self.messages += [message, turn.assistant(response.text)]
        self.is_held = True
        self.last, self.failed = response, ""
        turn.after(response, self.address, votes=bool(self.options.votes))

    def retry(self) -> None:
        """The last turn again: the one that failed, or the one that was answered. Raises ConclaveError."""
        if self.failed:
            self.say(self.failed)
            return
        if len(self.messages) < 2 or self.messages[-1].role != "assistant":
            raise InvalidRequest("nothing was said yet")
        if not self.is_whole:
            raise InvalidRequest(
                "this topic began before this chat, so only its node knows what comes before: say it anew"
            )
        kept, self.messages, self.is_held = self.messages, self.messages[:-2], False
        try:
            self.say(kept[-2].content)
        except BaseException:
            self.messages, self.failed = kept, ""
            raise

    def _anywhere(
        self, message: types_pb2.Message, id: str, timeout: float, view: turn.View
    ) -> generate_pb2.GenerateResponse:
        """Ask our node, and when it is gone the others in turn. Raises the first error if none is left."""
        tried: list[str] = []
        gone: client.NodeGone | None = None
        while True:
            try:
                return self._here(message, id, timeout, view)
            except client.NodeGone as e:
                gone = gone or e
                tried.append(self.address)
                known = dict.fromkeys([*self.given, *client.local_addresses()])
                following = next((a for a in known if a not in tried), None)
                if following is None:
                    self.address = tried[0]
                    raise gone from None
                self.address = following
                # The other node may know the topic as it was some turns ago: then the whole conversation is right.
                self.is_held = not self.is_whole
                view.restart(f"{e.message.split(': start one')[0]}; going on at {self.address}")

    def _here(
        self, message: types_pb2.Message, id: str, timeout: float, view: turn.View
    ) -> generate_pb2.GenerateResponse:
        if self.is_held:
            asked = turn.request(self.options, [message], topic=self.topic, append=True, id=id)
            try:
                return client.stream(self.address, asked, timeout, view.on_event)
            except NotFound:
                if not self.is_whole and self.last is not None:
                    what = f"note: {self.address} does not know topic {self.topic}: going on with what was said here"
                    render.note(what)
                self.is_whole = True
        asked = turn.request(self.options, [*self.messages, message], topic=self.topic, id=id)
        return client.stream(self.address, asked, timeout, view.on_event)


def run(options: Namespace) -> int:
    """Talk until the input ends. Raises ConclaveError if there is nobody to talk to, or a turn of a script fails."""
    chat = Chat(options, client.addresses(options.address))
    if not sys.stdin.isatty():
        return _script(chat)
    chat.address, status = client.first(chat.given, lambda address: (address, client.status(address)))
    _greet(chat, status.nodes[0] if status.nodes else types_pb2.NodeInfo())
    with _history():
        return _converse(chat)


def _script(chat: Chat) -> int:
    """Lines of a pipe: each one a message or a command. The first failure ends it, as what follows builds on it."""
    for raw in sys.stdin.buffer:
        try:
            line = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as e:
            raise InvalidRequest(f"standard input is not valid UTF-8 (byte {e.start} of a line)") from None
        if not line.strip():
            continue
        if not _act(chat, line):
            return 0
    return 0


def _converse(chat: Chat) -> int:
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
            if not _act(chat, line):
                return 0
        except KeyboardInterrupt:
            render.note("stopped; /retry asks again")
        except ConclaveError as e:
            render.note(f"error: {e.message}" + ("; /retry asks again" if chat.failed else ""))


def _act(chat: Chat, line: str) -> bool:
    """Do what a line says; False to leave. Raises ConclaveError."""
    if not line.startswith("/"):
        chat.say(line.removeprefix(" ") if line.startswith(" /") else line)
        return True
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/quit":
        return False
    if command == "/help":
        print(HELP)
    elif command == "/topic":
        if rest:
            chat.open(rest, is_new=False)
        print(f"topic {chat.topic}")
    elif command == "/retry":
        chat.retry()
    elif command == "/votes":
        if chat.last is None:
            raise InvalidRequest("nothing was voted on yet")
        render.votes(render.console(sys.stdout), chat.last, turn.node_names(chat.address))
    else:
        raise InvalidRequest(f"{command} is not a command: there are {', '.join(COMMANDS)}")
    sys.stdout.flush()
    return True


def _greet(chat: Chat, node: types_pb2.NodeInfo) -> None:
    name, model = render.one_line(node.name or node.id), render.one_line(node.model)
    print(f"{model} on {name} ({chat.address}), topic {chat.topic}. /help lists the commands.")


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
