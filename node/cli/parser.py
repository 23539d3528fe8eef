"""From a command line, with the environment behind it, to a command and its values."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from node import __version__
from node.cli import readers
from node.cli.commands import COMMANDS, Command
from node.cli.options import VARIABLE, Options
from node.cli.wrap import fitted
from node.errors import InvalidRequest

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


@dataclass(frozen=True, slots=True)
class Words:
    """What may follow a command: `flags`, with what each is for; which of them take a value; words such as `show`."""

    flags: Mapping[str, str]
    valued: frozenset[str]
    actions: tuple[str, ...]


def words(command: Command) -> Words:
    """What may follow a command."""
    parser = Options(prog=command.name)
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
        for line in overview(prog).splitlines():
            print(fitted(line, sys.stdout, 14 if line.startswith("  ") else 2))
        raise SystemExit(0)
    elif rest and rest[0] in ("--version", "-V", "version"):
        print(f"conclave {__version__}")
        raise SystemExit(0)
    elif rest and not rest[0].startswith("-"):
        known = ", ".join(COMMANDS)
        other = ELSEWHERE.get(rest[0])
        said = (
            f": `{prog} {other}` does that" if other else readers.nearest(rest[0], COMMANDS) or ": there are " + known
        )
        raise InvalidRequest(f"{readers.utf8('the command', rest[0])!r} is not a command{said}")
    command = COMMANDS[name]
    parser = Options(
        prog=f"{prog} {name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=f"Options may be set in the environment too: --verbose as {VARIABLE}VERBOSE=1.\n\n"
        f"example: {command.example}",
    )
    command.add(parser)
    found = parser.values(front + rest, environ)
    found.command = name
    return found


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """Lines about variables that look like an option's and are none's, so that nobody believes that they count."""
    known = set()
    for command in COMMANDS.values():
        options = Options(prog="")
        command.add(options)
        known |= {variable for _, variable, _ in options.readers.values()}
    strange = sorted(name for name in set(environ) - known if name.startswith(VARIABLE))
    near = {name: difflib.get_close_matches(name.removeprefix(VARIABLE), _words(known), 1, 0.75) for name in strange}
    return [f"{name} is no option: did you mean {VARIABLE}{found[0]}?" for name, found in near.items() if found]


def _words(variables: Iterable[str]) -> list[str]:
    return sorted(v.removeprefix(VARIABLE) for v in variables)


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
