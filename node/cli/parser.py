"""The commands and their options, and how a command line, with the environment behind it, becomes values.

Every option `--max-tokens` may also stand in the environment as `CONCLAVE_MAX_TOKENS`. Values are read here and not by
argparse, so that one line can name the source at fault, flag or variable.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from node import __version__
from node.config import DEFAULT_PORT, SWA, Config, check_address
from node.errors import InvalidRequest
from node.types import Strategy

MAX_CANDIDATES = 64  # node.wire's; importing that would load grpc for `--help`.
MAX_NAME_BYTES = 256
VARIABLE = "CONCLAVE_"
# What people type who come from Ollama, llama.cpp and exo.
ELSEWHERE = {
    "run": "chat",
    "list": "models",
    "ls": "models",
    "ps": "status",
    "pull": "models pull NAME",
    "rm": "models rm NAME",
    "start": "serve",
}
Reader = Callable[[str, str], Any]


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what `--help` says about it, and its options."""

    name: str
    help: str
    add: Callable[[_Parser], None]
    example: str = ""


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for an error and a reader for each option's value."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Format, add_help=False, **kwargs)
        self.readers: dict[str, tuple[str, str, Reader | None]] = {}
        self.group = self.add_argument_group("options")
        self.group.add_argument("-h", "--help", action="help", help="show this help and exit")

    def error(self, message: str) -> NoReturn:
        """Raise InvalidRequest instead of printing the usage: the caller prints one line."""
        said = message.removeprefix("argument ")
        raise InvalidRequest(f"{said}{' ' if said.endswith('?') else '; '}`{self.prog} --help` lists what there is")

    def value(
        self,
        flag: str,
        help: str,
        metavar: str,
        read: Reader | None,
        *,
        variable: str = "",
        short: str = "",
        bare: str = "",
    ) -> None:
        """An option with a value, which is `bare` when it stands alone."""
        name = flag.removeprefix("--").replace("-", "_")
        alone: dict[str, Any] = {"nargs": "?", "const": bare} if bare else {}
        self.group.add_argument(
            *([short] if short else []), flag, metavar=metavar, help=help.replace("%", "%%"), **alone
        )
        self.readers[name] = (flag, variable or f"{VARIABLE}{name.upper()}", read)

    def switch(self, flag: str, help: str, *, short: str = "") -> None:
        """An option that is on or off."""
        name = flag.removeprefix("--").replace("-", "_")
        names = [short] if short else []
        self.group.add_argument(*names, flag, action="store_const", const="1", help=help.replace("%", "%%"))
        self.readers[name] = (flag, f"{VARIABLE}{name.upper()}", _switch)

    def values(self, argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
        """Parse, take from the environment what was not given, and read every value. Raises InvalidRequest."""
        found, rest = self.parse_known_args(list(argv))
        if rest:
            self.error(self._unknown(rest[0]))
        for name, (flag, variable, read) in self.readers.items():
            text, source = getattr(found, name), flag
            if text is None and environ.get(variable, "") != "":
                text, source = environ[variable], variable
                if name == "candidates" and text == "0":  # for the node this means its default; so it does here
                    text = None
            if read is not None:
                setattr(found, name, None if text is None else read(source, text))
        return found

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            hint = ": write the prompt in quotes" if self.prog.endswith(" ask") else ""
            return f"{word!r} is one word too many{hint}"
        flag = word.split("=", 1)[0]
        return f"{flag} is not a flag of this command{nearest(flag, self._option_string_actions)}"


class _Format(argparse.RawDescriptionHelpFormatter):
    """Help with a wide first column and without the metavar twice."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=34, **kwargs)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        words = [a.metavar or a.dest for a in actions if not a.option_strings]
        return "usage: " + " ".join([self._prog, "[options]", *(f"[{w}]" for w in words)]) + "\n\n"


def nearest(word: str, known: Any) -> str:
    """`: did you mean X?`, or nothing if nothing is like it."""
    bare = {name.lstrip("-"): name for name in known}  # dashes are like each other in all flags
    close = difflib.get_close_matches(word.lstrip("-"), list(bare), n=1, cutoff=0.6)
    return f": did you mean {bare[close[0]]}?" if close else ""


# ---- readers: (source, text) -> value, or InvalidRequest ------------------------------------------------------------


def _switch(source: str, text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise InvalidRequest(f"{source} is {text!r}: it must be 1 or 0")


def utf8(source: str, text: str) -> str:
    """A text that came as bytes: refused when they were not UTF-8 (Python then leaves lone surrogates)."""
    try:
        # Under LC_ALL=C Python may have read good UTF-8 as ASCII with such surrogates: the bytes count.
        return os.fsencode(text).decode()
    except UnicodeError:
        raise InvalidRequest(f"{source} is not valid UTF-8") from None


def _name(source: str, text: str) -> str:
    text = utf8(source, text)
    if not text.strip():
        raise InvalidRequest(f"{source} is empty: give a name")
    if len(text.encode()) > MAX_NAME_BYTES:
        raise InvalidRequest(f"{source} is {len(text.encode())} bytes long: at most {MAX_NAME_BYTES}")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise InvalidRequest(f"{source} {text!r} has control characters")
    return text


def _whole(low: int, high: int | None = None) -> Reader:
    def read(source: str, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise InvalidRequest(f"{source} is {text!r}: it must be a whole number") from None
        if value < low or (high is not None and value > high):
            bounds = f"{low} or more" if high is None else f"{low} to {high}"
            raise InvalidRequest(f"{source} is {value}: it must be {bounds}")
        return value

    return read


def _number(low: float, high: float) -> Reader:
    def read(source: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise InvalidRequest(f"{source} is {text!r}: it must be a number") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequest(f"{source} is {text}: it must be {low:g} to {high:g}")
        return value

    return read


def _strategy(source: str, text: str) -> str:
    if text not in tuple(Strategy):
        close = nearest(text, list(Strategy))
        raise InvalidRequest(f"{source} {text!r} is unknown{close or ': it must be one of ' + ', '.join(Strategy)}")
    return text


def _addresses(source: str, text: str) -> tuple[str, ...]:
    found = tuple(a.strip() for a in text.split(",") if a.strip())
    if not found:
        raise InvalidRequest(f"{source} is empty; write HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    for address in found:
        try:
            check_address(address, source)
        except InvalidRequest:
            lacks = ": its port is missing" if re.fullmatch(r"[\w.-]+", address) else ""
            raise InvalidRequest(
                f"{source}: {address!r} is not an address{lacks}; write HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}"
            ) from None
    return found


# ---- commands -------------------------------------------------------------------------------------------------------


def _verbose(p: _Parser) -> None:
    p.switch("--verbose", "log to stderr, and show where an error came from", short="-v")


def _address(p: _Parser) -> None:
    what = "the node to ask (default: this machine's); more with commas, for when it dies"
    p.value("--address", what, "HOST:PORT[,…]", _addresses)


def _serve(p: _Parser) -> None:
    for f in fields(Config):
        choices = f.metadata["choices"]
        metavar = "|".join(choices) if choices else f.metadata["metavar"]
        default = "" if f.default in ("", None, 0, -1) else f" (default {f.default})"
        # Unread: `config.load` checks it, whichever of its four sources it came from.
        flag = f"--{f.name.replace('_', '-')}"
        p.value(flag, f.metadata["help"] + default, metavar, None, bare=f.metadata["bare"])
    _verbose(p)


def _turns(p: _Parser) -> None:
    """What one turn may be asked with, in `ask` and in `chat`."""
    _address(p)
    p.value("--topic", "the conversation to continue; begun if it is new", "NAME", _name)
    p.value("--candidates", "answers to vote on, over the mesh", "N", _whole(1, MAX_CANDIDATES), short="-n")
    p.value("--strategy", "how votes are counted: " + ", ".join(Strategy), "NAME", _strategy)
    p.switch("--local", "only this node takes part")
    p.switch("--votes", "show how the vote went")
    p.value("--max-tokens", "longest answer, in tokens", "N", _whole(1, 2**31 - 1))
    p.value("--temperature", "0 is greedy", "T", _number(0, 10))
    p.value("--top-p", "nucleus: most probable tokens of so much probability; 1 is off", "P", _number(0.001, 1))
    p.value("--top-k", "so many most probable tokens; 0 is off", "N", _whole(0, 1_000_000))
    p.value("--min-p", "least probability relative to the best token; 0 is off", "P", _number(0, 1))
    p.value("--repeat-penalty", "above 1: discourages what is among the last 64 tokens", "X", _number(0.01, 10))
    p.value("--presence-penalty", "above 0: the same, subtracted once", "X", _number(-2, 2))
    p.value("--frequency-penalty", "above 0: the same, subtracted for each time", "X", _number(-2, 2))
    p.value("--seed", "for answers that can be repeated", "N", _whole(0, 2**64 - 1))
    p.value("--system", "a system prompt, at the start of the conversation", "TEXT", utf8)
    # CONCLAVE_MODEL is what a node serves, and that may be a path.
    p.value("--model", "refuse a node that serves another model", "NAME", _name, variable="CONCLAVE_ASK_MODEL")
    p.value("--timeout", "give up after so long (default 300)", "SECONDS", _number(0.001, 86400))


def _ask(p: _Parser) -> None:
    p.add_argument("prompt", nargs="*", metavar="PROMPT", help="the question; `-`, or none and a pipe: standard input")
    _turns(p)
    p.value("--top-logprobs", "show how probable each token was, and the N best in its place", "N", _whole(0, 20))
    p.switch("--ignore-eos", "for benchmarks: write --max-tokens tokens, whatever they are")
    p.switch("--json", "print the whole response as JSON")
    _verbose(p)


def _chat(p: _Parser) -> None:
    _turns(p)
    _verbose(p)


def _status(p: _Parser) -> None:
    _address(p)
    p.switch("--watch", "show it anew each second", short="-w")
    p.switch("--json", "print the whole response as JSON (one line each second with --watch)")
    _verbose(p)


def _token(p: _Parser) -> None:
    p.add_argument(
        "action", nargs="?", metavar="show|new", help="show this machine's token (default), or make a new one"
    )
    p.switch("--print", "with new: show a fresh token without storing it")
    p.value("--overlap", "with new: how long nodes here accept the old token as well", "HOURS", _number(0.01, 8760))
    p.switch("--yes", "with new: replace the token without asking", short="-y")
    _verbose(p)


def _memory(source: str, text: str) -> tuple[int, ...]:
    """Sizes such as 24GiB or 24GB (both binary, as graphics cards are sold), several with commas; bytes."""
    units = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    found = []
    for each in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(?:([kmgt])i?)?b?\s*", each.lower())
        size = int(float(match[1]) * units[match[2] or ""]) if match else 0
        if not 1 << 28 <= size <= 1 << 45:
            what = "write a size such as 24GiB (256MiB at least), for several GPUs 24GiB,24GiB"
            raise InvalidRequest(f"{source} is {text!r}: {what}")
        found.append(size)
    return tuple(found)


def _swa(source: str, text: str) -> str:
    if text not in SWA:
        raise InvalidRequest(f"{source} is {text!r}: it must be one of {', '.join(SWA)}")
    return text


def _models(p: _Parser) -> None:
    p.add_argument(
        "action", nargs="?", metavar="list|plan|pull|rm", help="what there is (default), what fits, fetch, remove"
    )
    p.add_argument(
        "name", nargs="?", metavar="NAME", help="a model: of the list, NAME:QUANT, hf:OWNER/NAME, with plan also a file"
    )
    p.value("--memory", "plan for GPUs of this size, not for this machine", "SIZE[,SIZE]", _memory)
    p.value("--lent", "plan NAME as if other nodes lent so much memory (--pool)", "SIZE[,SIZE]", _memory)
    p.value("--swa", "with plan: KV of sliding-window layers, as a node's --swa", "|".join(SWA), _swa)
    p.switch("--yes", "with rm: remove without asking", short="-y")
    p.switch("--json", "print it as JSON")


def _topics(p: _Parser) -> None:
    p.add_argument("action", nargs="?", metavar="list|show|forget", help="list them (default), show one, let one go")
    p.add_argument("name", nargs="?", metavar="NAME", help="of show and forget: the topic")
    _address(p)
    p.switch("--json", "print the whole response as JSON")
    _verbose(p)


def _pair(p: _Parser) -> None:
    p.add_argument(
        "code", nargs="*", metavar="CODE", help="six digits that another machine shows; none: show some here"
    )
    p.value("--at", "where the code is shown, if it is not found by itself", "HOST:PORT", _addresses)
    p.switch("--yes", "replace the token that this machine has without asking", short="-y")
    _verbose(p)


def _doctor(p: _Parser) -> None:
    p.switch("--json", "print the checks as JSON")
    _verbose(p)


def _completion(p: _Parser) -> None:
    p.add_argument("shell", nargs="?", metavar="bash|zsh|fish", help="the shell that is to complete")
    _verbose(p)


COMMANDS: dict[str, Command] = {
    c.name: c
    for c in (
        Command("serve", "run a node (the default)", _serve, "python -m node --join auto"),
        Command("ask", "one question, one answer", _ask, 'python -m node ask "What is 17 + 25?" --votes'),
        Command("chat", "a conversation", _chat, "python -m node chat --topic garden"),
        Command("status", "nodes, topics and slots", _status, "python -m node status --watch"),
        Command("topics", "the conversations that are kept", _topics, "python -m node topics show garden"),
        Command("token", "the secret that machines of one mesh share", _token, "python -m node token show"),
        Command("models", "models: what there is, what fits and why", _models, "python -m node models plan"),
        Command("pair", "bring the token to another machine with six digits", _pair, "python -m node pair"),
        Command("completion", "a script for your shell", _completion, "source <(conclave completion bash)"),
        Command("doctor", "check this machine, and say what to do", _doctor, "python -m node doctor"),
    )
}


@dataclass(frozen=True, slots=True)
class Words:
    """What may follow a command: `flags`, with what each is for; which of them take a value; words such as `show`."""

    flags: Mapping[str, str]
    valued: frozenset[str]
    actions: tuple[str, ...]


def words(command: Command) -> Words:
    """What may follow a command."""
    parser = _Parser(prog=command.name)
    command.add(parser)
    options = parser.group._group_actions
    return Words(
        {a.option_strings[-1]: str(a.help).replace("%%", "%") for a in options},
        frozenset(flag for a in options if a.nargs is None for flag in a.option_strings),
        tuple(w for a in parser._positionals._group_actions for w in str(a.metavar).split("|") if w.islower()),
    )


def parse(argv: Sequence[str], environ: Mapping[str, str], prog: str) -> argparse.Namespace:
    """The command and its values, as `command` and one attribute an option. Raises InvalidRequest; --help exits."""
    rest = list(argv)
    front: list[str] = []
    while rest and rest[0] in ("-v", "--verbose"):  # also before the command
        front.append(rest.pop(0))
    name = "serve"
    if rest and rest[0] in COMMANDS:
        name = rest.pop(0)
    elif rest and rest[0] in ("-h", "--help", "help"):
        if rest[1:2] and rest[1] in COMMANDS:
            return parse([rest[1], "--help"], environ, prog)
        print(overview(prog), end="")
        raise SystemExit(0)
    elif rest and rest[0] in ("--version", "-V", "version"):
        print(f"conclave {__version__}")
        raise SystemExit(0)
    elif rest and not rest[0].startswith("-"):
        known = ", ".join(COMMANDS)
        other = ELSEWHERE.get(rest[0])
        said = f": `{prog} {other}` does that" if other else nearest(rest[0], COMMANDS) or ": there are " + known
        raise InvalidRequest(f"{utf8('the command', rest[0])!r} is not a command{said}")
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"{prog} {name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=f"Options may be set in the environment too: --verbose as {VARIABLE}VERBOSE=1.\n\n"
        f"example: {command.example}",
    )
    command.add(parser)
    found = parser.values(front + rest, environ)
    found.command = name
    return found


def overview(prog: str) -> str:
    """The help of the program as a whole."""
    width = max(len(c) for c in COMMANDS)
    lines = [
        f"usage: {prog} [command] [options]",
        "",
        "Conclave: a swarm of local language models that vote.",
        "",
        "commands:",
        *(f"  {c.name:{width}}  {c.help}" for c in COMMANDS.values()),
        "",
        f"`{prog} COMMAND --help` lists a command's options; --version shows the version.",
        "",
        "examples:",
        *(f"  {c.example}" for c in list(COMMANDS.values())[:4]),
        "",
    ]
    return "\n".join(lines)


def program(argv0: str) -> str:
    """What the user typed to get here: `conclave`, or `python -m node`."""
    return "conclave" if os.path.basename(argv0) == "conclave" else "python -m node"
