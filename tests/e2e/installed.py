"""Clients of others, each installed once into an environment of its own under the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from install.paths import CACHE, clean_env, lock

INSTALL_S = 300.0


def python(name: str, *requirements: str) -> Path:
    """A Python with these requirements."""

    def make(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder / "venv")])
        pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *requirements])

    return _once(name, " ".join((sys.version, *requirements)), make) / "venv/bin/python"


def npm(name: str, package: Path) -> Path:
    """The folder of what a package.json asks for."""

    def make(folder: Path) -> None:
        shutil.copy(package, folder / "package.json")
        _run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], folder)

    return _once(name, package.read_text(), make) / "node_modules"


def _once(name: str, key: str, make: Callable[[Path], None]) -> Path:
    name = f"client-{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder = CACHE / name
    with lock(name, f"Another process is installing {name}: waiting for it."):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            make(folder)
            (folder / "ready").touch()
    return folder


def _run(argv: Sequence[str], cwd: Path | None = None) -> None:
    # A worker of the tests has a network of its own (tests/conftest.py); packages come through its parent's.
    out = ["nsenter", f"--net=/proc/{os.getppid()}/ns/net", "--"] if "PYTEST_XDIST_WORKER" in os.environ else []
    done = subprocess.run(
        [*out, *argv], cwd=cwd, env=clean_env(), capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    assert done.returncode == 0, done.stderr
