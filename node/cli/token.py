"""`token`: the secret that the machines of one mesh share."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from node import config, home
from node.cli.readers import nearest
from node.errors import InvalidRequest, NotFound
from node.mesh import identity


def run(options: Namespace) -> int:
    """Show the token, or make a new one. Raises ConclaveError."""
    action = options.action or "show"
    if action == "show":
        return _show()
    if action == "new":
        return _print() if options.print else _new(sure=bool(options.yes), overlap_h=options.overlap or 0.0)
    raise InvalidRequest(f"token {action!r}: there are show and new{nearest(action, ('show', 'new'))}")


def _show() -> int:
    directory = home.home().config
    # What a node started here would use: a token may also stand in the environment or the configuration file.
    override = config.load({}, os.environ, directory / "conclave.toml").token
    if not override and not (directory / "token").exists():
        raise NotFound("this machine has no token yet: the first `python -m node` makes one, or `token new` now")
    token = identity.load_token(directory, override)
    print(token)
    _hint(token)
    return 0


def _print() -> int:
    print(identity.new_token())
    return 0


def _new(*, sure: bool, overlap_h: float) -> int:
    directory = home.home().config
    has_one = (directory / "token").exists()
    if has_one and overlap_h and not sure:
        _check_one_at_a_time(directory)
    # With an overlap nobody is cut off now, so there is nothing to ask.
    if has_one and not sure and not overlap_h and not _confirmed():
        print("nothing was changed", file=sys.stderr)
        return 1
    token = identity.new_token()
    if has_one and overlap_h:
        until = time.time() + overlap_h * 3600
        identity.store_old_token(directory, identity.OldToken(identity.load_token(directory), until))
        print(
            f"The old token is accepted until {_shown(until)}; then machines that have it only are cut off. Nobody is "
            "before, in this order:\n"
            "  1. start the nodes of this machine again: they know both, and tell the others so\n"
            "  2. start each other machine's with the new token, one after the other",
            file=sys.stderr,
        )
    else:
        (directory / "token.old").unlink(missing_ok=True)
    identity.store_token(directory, token)
    print(token)
    _hint(token)
    print("Nodes that run now keep the old one until they are started again.", file=sys.stderr)
    return 0


def _check_one_at_a_time(directory: Path) -> None:
    """Raises InvalidRequest where an overlap that was promised would end early: two tokens are accepted, not three."""
    old = identity.load_old_token(directory, time.time())
    if old is not None:
        raise InvalidRequest(
            f"the token before this one is accepted until {_shown(old.until)}, and with a third one machines that have "
            "only that would be cut off: start them with what `python -m node token show` prints first, and say --yes"
        )


def _shown(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise InvalidRequest("this machine has a token, and machines that share it would be cut off: say --yes if so")
    print("This machine has a token. With a new one, machines that share the old one are cut off.", file=sys.stderr)
    try:
        print("Replace it? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return False


def _hint(token: str) -> None:
    """The line for another machine; on stderr, so that a script gets the token alone."""
    pair = "run `python -m node pair` here, then there"
    print(f"\nAnother machine joins with six digits: {pair}. Or, of the same network, run there:", file=sys.stderr)
    print(f"  python -m node --join auto --token {token}", file=sys.stderr)
