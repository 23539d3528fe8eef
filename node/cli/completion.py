"""`completion`: a script by which a shell completes commands, flags and their values; the parser knows them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from dataclasses import fields

from node.cli import parser
from node.cli.commands import COMMANDS
from node.config import Config
from node.errors import InvalidRequest
from node.types import Strategy

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "conclave"


def run(options: Namespace) -> int:
    """Print the script, of the user's own shell if none is named. Raises InvalidRequest for an unknown shell."""
    shell = options.shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        known = f"there are {', '.join(SHELLS)}, as in `source <(conclave completion bash)`"
        raise InvalidRequest(f"completion {shell!r}: {known}")
    sys.stdout.write(script(shell))
    return 0


def script(shell: str) -> str:
    """The script for one of `SHELLS`."""
    return _fish() if shell == "fish" else _bash(is_zsh=shell == "zsh")


def _words() -> dict[str, parser.Words]:
    """What may follow each command."""
    return {name: parser.words(command) for name, command in COMMANDS.items()}


def _values() -> dict[str, tuple[str, ...]]:
    """The values of flags that have a few."""
    found = {f"--{f.name.replace('_', '-')}": f.metadata["choices"] for f in fields(Config) if f.metadata["choices"]}
    return found | {"--strategy": tuple(Strategy)}


def _bash(*, is_zsh: bool) -> str:
    known = _words()
    lines = ["# conclave completion bash > ~/.local/share/bash-completion/completions/conclave"]
    if is_zsh:
        lines = [
            "# in ~/.zshrc: source <(conclave completion zsh)",
            "autoload -U +X bashcompinit && bashcompinit",
        ]
    values = _values()
    # A flag that takes any value is followed by none of our words: the shell then offers files.
    free = sorted({flag for words in known.values() for flag in words.valued} - set(values))
    lines += [
        f"_{PROGRAM}() {{",
        '  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=serve words=""',
        f"  case ${{COMP_WORDS[1]}} in {'|'.join(known)}) command=${{COMP_WORDS[1]}};; esac",
        '  case "$before" in',
        *(f'    {flag}) words="{" ".join(some)}";;' for flag, some in values.items()),
        f"    {'|'.join(free)}) ;;",
        '    *) case "$command" in',
        *(f'      {name}) words="{" ".join((*words.actions, *words.flags))}";;' for name, words in known.items()),
        "    esac",
        f'    if [ "$COMP_CWORD" = 1 ]; then words="{" ".join(known)} $words"; fi;;',
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        f"complete -o default -F _{PROGRAM} {PROGRAM}",
    ]
    return "\n".join(lines) + "\n"


def _fish() -> str:
    lines = ["# conclave completion fish > ~/.config/fish/completions/conclave.fish"]
    for name, command in COMMANDS.items():
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -a {name} -d {_quoted(command.help)}")
    values = _values()
    for name, words in _words().items():
        condition = f"'__fish_seen_subcommand_from {name}'"
        if words.actions:
            lines.append(f"complete -c {PROGRAM} -n {condition} -f -a {_quoted(' '.join(words.actions))}")
        for flag, help in words.flags.items():
            some = f" -x -a {_quoted(' '.join(values[flag]))}" if flag in values else ""
            some = some or (" -r" if flag in words.valued else "")
            lines.append(f"complete -c {PROGRAM} -n {condition} -l {flag[2:]}{some} -d {_quoted(help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
