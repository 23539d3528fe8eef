"""The first load of a model file, in a child process: a damaged one may end the process that loads it.

`node.models.gguf` reads the head of a file, and most of what is broken is found there. But llama.cpp asserts much else
(shapes, token ids, types it has no code for), and an assertion in native code is the end of the process. So a file that
is new here is loaded by a child first, which computes a few tokens; what worked is remembered in the node's data
directory, so later starts are as quick as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from node import disk, errors
from node.errors import BackendError, ConclaveError

if TYPE_CHECKING:
    from node.engine.llamacpp import LlamaOptions

MEMORY = "models.json"
REMEMBERED = 64
LEAST_S = 120.0  # for a small model on a slow machine
BYTES_A_SECOND = 20e6  # of a slow disk, for a big one
MOST_SAID = 1 << 20  # bytes of a line
PROGRESS = "progress "  # begins a line of the child's that says how much is loaded
REFUSED = 3  # the child's exit code for an error of ours; its line is on stdout
_PATH = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
_ERRORS: dict[str, type[ConclaveError]] = {e.code: e for e in (errors.InvalidRequest, errors.BackendError)}
# What ggml and the C++ runtime say before they give up.
_LAST_WORDS = re.compile(r"(?:GGML_ASSERT\(.*|what\(\): .*|GGML_ABORT.*|fatal error.*)")


async def ensure(
    options: LlamaOptions,
    directory: Path,
    version: str,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Load a file in a child, unless that worked before; `progress` hears how much is loaded (0..1). Raises
    BackendError or InvalidRequest with one line."""
    found = options.path.stat()
    key = [str(options.path.resolve()), found.st_size, found.st_mtime_ns, version]
    known = _remembered(directory / MEMORY)
    if key not in known:
        await _load(options, LEAST_S + found.st_size / BYTES_A_SECOND, progress)
        disk.remember(directory / MEMORY, [*known, key][-REMEMBERED:])


async def _load(options: LlamaOptions, within_s: float, progress: Callable[[float], None]) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the user's working directory is no place to import from
        "-m",
        "node.engine.trial",
        json.dumps(asdict(options), default=str),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MOST_SAID,
        # GGML_NO_BACKTRACE: or ggml would look for a debugger to show where it failed.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_PATH), "GGML_NO_BACKTRACE": "1"},
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await _said_by(child, progress)
    except TimeoutError:
        raise BackendError(f"{options.path} did not load within {within_s:.0f} s: use another file") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == REFUSED:
        code, _, message = out.decode(errors="replace").strip().partition(" ")
        raise _ERRORS.get(code, BackendError)(message)
    if child.returncode:
        raise BackendError(
            f"{options.path} is damaged, or of a kind that this llama.cpp does not know: loading it ended a trial "
            f"process with {_end(child.returncode)}{_said(err.decode(errors='replace'))}; download it again or use "
            "another"
        )


async def _said_by(child: asyncio.subprocess.Process, progress: Callable[[float], None]) -> tuple[bytes, bytes]:
    """What the child says to its end on stdout, but for its progress, and on stderr."""
    assert child.stdout is not None
    assert child.stderr is not None
    errors_said = asyncio.ensure_future(child.stderr.read())
    try:
        out = b""
        async for line in child.stdout:
            if line.startswith(PROGRESS.encode()):
                with contextlib.suppress(ValueError):
                    progress(float(line.removeprefix(PROGRESS.encode())))
            else:
                out += line
        err = await errors_said
        await child.wait()
        return out, err
    finally:
        errors_said.cancel()


def _end(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _said(text: str) -> str:
    words = _LAST_WORDS.findall(text)
    return f" ({' '.join(words[-1].split())[:160]})" if words else ""


def _remembered(path: Path) -> list[list[object]]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [k for k in known if isinstance(k, list)] if isinstance(known, list) else []


def main() -> int:
    """The child: 0 if the model loads and computes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here and worth no core dump
    from node.engine.llamacpp import LlamaOptions, probe

    said = json.loads(sys.argv[1])
    told = 0.0

    def tell(share: float) -> None:
        nonlocal told
        if share - told >= 0.01:
            told = share
            print(f"{PROGRESS}{share:.3f}", flush=True)

    try:
        probe(LlamaOptions(**{**said, "path": Path(said["path"])}), tell)
    except ConclaveError as e:
        print(e.code, e.message if said["path"] in e.message else f"{said['path']}: {e.message}")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
