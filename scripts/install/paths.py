"""Where set-up keeps things, and its locks."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conclave"
WHEELS = CACHE / "wheels"
LOGS = CACHE / "logs"

# Files that we hold locked. The programs that we start inherit them, so a lock lasts as long as their work does, even
# when set-up itself was killed: the next set-up does not start beside them.
held: set[int] = set()


def root_id() -> str:
    """A short name for this checkout, so that two of them do not share logs and locks."""
    return hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]


def clean_env() -> dict[str, str]:
    """The environment without what would send pip's work somewhere else than into .venv."""
    unwanted = {"PYTHONHOME", "PYTHONPATH", "PIP_PREFIX", "PIP_ROOT", "PIP_TARGET", "PIP_USER", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def pip_env() -> dict[str, str]:
    """The environment for pip. By variable, because the pip inside pip that fetches build tools reads it too."""
    return {"PIP_RETRIES": "1", **clean_env()}


@contextlib.contextmanager
def lock(name: str, waiting: str) -> Iterator[None]:
    """Hold an exclusive lock, saying so once when someone else has it."""
    folder = CACHE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        held.add(file.fileno())
        try:
            yield
        finally:
            held.discard(file.fileno())
