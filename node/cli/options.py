"""The options of a command, on its line and in the environment behind it.

Every option `--max-tokens` may also stand in the environment as `CONCLAVE_MAX_TOKENS`. Values are read here and not by
argparse, so that one line can name the source at fault, flag or variable.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from node.cli import readers
from node.cli.readers import Reader
from node.errors import InvalidRequest

VARIABLE = "CONCLAVE_"


class Options(argparse.ArgumentParser):
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
        self.readers[name] = (flag, f"{VARIABLE}{name.upper()}", readers.switch)

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
        return f"{flag} is not a flag of this command{readers.nearest(flag, self._option_string_actions)}"


class _Format(argparse.RawDescriptionHelpFormatter):
    """Help with a wide first column and without the metavar twice."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=34, **kwargs)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        words = [a.metavar or a.dest for a in actions if not a.option_strings]
        return "usage: " + " ".join([self._prog, "[options]", *(f"[{w}]" for w in words)]) + "\n\n"
