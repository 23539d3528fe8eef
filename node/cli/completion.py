"""`completion`: a script by which a shell completes commands, flags and their values; the parser knows them."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import fields

from node.cli import parser
from node.config import Config
from node.errors import InvalidRequest
from node.types import Strategy

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "conclave"


def run(options: Namespace) -> int:
    """Print the script. Raises InvalidRequest for an unknown shell."""
    shell = options.shell or ""
    if shell not in SHELLS:
        known = f"there are {', '.join(SHELLS)}, as in `source <(conclave completion bash)`"
        raise InvalidRequest(f"completion {shell!r}: {known}")
    sys.stdout.write(script(shell))
    return 0


def script(shell: str) -> str:
    """The script for one of `SHELLS`."""
    return _fish() if shell == "fish" else _bash(is_zsh=shell == "zsh")


def _flags() -> dict[str, dict[str, str]]:
    """The flags of each command, with what they are for."""
    return {name: parser.flags(command) for name, command in parser.COMMANDS.items()}


def _values() -> dict[str, tuple[str, ...]]:
    """The values of flags that have a few."""
    found = {f"--{f.name.replace('_', '-')}": f.metadata["choices"] for f in fields(Config) if f.metadata["choices"]}
    return found | {"--strategy": tuple(Strategy)}


def _bash(*, is_zsh: bool) -> str:
    flags = _flags()
    names = " ".join(flags)
    lines = ["# conclave completion bash > ~/.local/share/bash-completion/completions/conclave"]
    if is_zsh:
        lines = [
            "# in ~/.zshrc: source <(conclave completion zsh)",
            "autoload -U +X bashcompinit && bashcompinit",
        ]
    lines += [
        f"_{PROGRAM}() {{",
        '  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=serve words=""',
        f"  case ${{COMP_WORDS[1]}} in {'|'.join(flags)}) command=${{COMP_WORDS[1]}};; esac",
        '  case "$before" in',
        *(f'    {flag}) words="{" ".join(values)}";;' for flag, values in _values().items()),
        '    *) case "$command" in',
        *(f'      {name}) words="{" ".join(known)}";;' for name, known in flags.items()),
        "    esac",
        f'    if [ "$COMP_CWORD" = 1 ]; then words="{names} $words"; fi;;',
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        f"complete -o default -F _{PROGRAM} {PROGRAM}",
    ]
    return "\n".join(lines) + "\n"


def _fish() -> str:
    lines = ["# conclave completion fish > ~/.config/fish/completions/conclave.fish"]
    for name, command in parser.COMMANDS.items():
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -a {name} -d {_quoted(command.help)}")
    values = _values()
    for name, known in _flags().items():
        condition = f"'__fish_seen_subcommand_from {name}'"
        for flag, help in known.items():
            some = f" -x -a {_quoted(' '.join(values[flag]))}" if flag in values else ""
            lines.append(f"complete -c {PROGRAM} -n {condition} -l {flag[2:]}{some} -d {_quoted(help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
