"""The command line: one file a command. `main` is the only place that turns an error into a line and an exit code."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import cast

from node.errors import ConclaveError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 fine, 1 it failed, 2 wrong usage, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in words or "-v" in words or os.environ.get("CONCLAVE_VERBOSE", "") not in ("", "0")
    # gRPC's native part writes log lines to stderr by itself; it reads this when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR" if verbose else "NONE")
    _readable_streams()
    try:
        try:
            code = _run(words)
        except SystemExit as e:  # --help and --version
            code = int(e.code or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has enough (`| head`). What is still buffered must not raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except ConclaveError as e:
        if verbose:
            _traceback()
        _say(_elsewhere(e))
        return USAGE if e.code == "INVALID_ARGUMENT" else FAILED
    except OSError as e:
        if verbose:
            _traceback()
        where = f"{e.filename}: " if e.filename else ""
        _say(where + (e.strerror or str(e)) + _advice(e))
        return FAILED
    except Exception as e:
        if verbose:
            _traceback()
        hint = "" if verbose else "; --verbose shows where"
        _say(f"{type(e).__name__}: {e}{hint}")
        return FAILED


def _run(words: list[str]) -> int:
    from node.cli.parser import parse, program

    found = parse(words, os.environ, program(sys.argv[0]))
    # Imported by name, so that `status` does not pay for what `serve` needs.
    run = cast(Callable[[Namespace], int], importlib.import_module(f"node.cli.{found.command}").run)
    gc.enable()  # `python -m node` began without
    return run(found)


def _readable_streams() -> None:
    """Streams that always work: a closed one is nowhere, and what a terminal without UTF-8 cannot show becomes `?`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # `>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # for as long as the process lives
    for each in (sys.stdout, sys.stderr):
        reconfigure = getattr(each, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _say(problem: str) -> None:
    from node.cli.wrap import fitted

    print(fitted(f"error: {_line(problem)}", sys.stderr, 2), file=sys.stderr)


def _line(message: str) -> str:
    """One line, without what a terminal would act on: messages may quote what came from elsewhere."""
    return " ".join("".join(c if c.isprintable() else " " for c in message).split()) or "unknown"


def _elsewhere(e: ConclaveError) -> str:
    """The message; where no node answers, with where this machine's do: another of its ports was asked, say."""
    if type(e).__name__ != "NodeGone":  # its module would load grpc for every command
        return e.message
    from node.cli import reach

    return reach.elsewhere(e.message)


def _advice(e: OSError) -> str:
    """What to do about what the system refused."""
    from node.home import remedy

    if e.errno == errno.ENOSPC and not e.filename:  # what is full is where our output goes
        return "; free some space"
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    return f"; {remedy(e)}" if e.errno in known else ""


def _traceback() -> None:
    import traceback

    traceback.print_exc()
