"""The order of set-up, and how it recovers: every step is either done and recorded, or done again."""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

from . import paths, wheel
from .console import Progress, SetupError, Stopped, explain, run, watch_signals

STAMP = paths.VENV / "conclave-setup.json"  # written last: what is installed here
BUSY = paths.VENV / "conclave-setup.busy"  # there while pip changes the environment
IMPORTS = "import cryptography, google.protobuf, grpc, llama_cpp, lz4, msgpack, numpy, psutil, rich, zeroconf, node"
INSTALL_BYTES = 800_000_000  # measured 360 MB with the development tools, and as much again while pip unpacks


def _wanted(dev: bool) -> dict[str, object]:
    """What the stamp says when this environment is right."""
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
    parts = {
        "project": {
            name: project["project"].get(name) for name in ("dependencies", "optional-dependencies", "scripts")
        },
        "constraints": wheel.CONSTRAINTS.read_text(),
        "root": str(paths.ROOT),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return {"packages": digest, "wheel": wheel.key(), "dev": dev, "cmake_args": os.environ.get("CMAKE_ARGS", "")}


def _stamp() -> dict[str, object]:
    try:
        found = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_done(wanted: dict[str, object], stamp: dict[str, object]) -> bool:
    same = all(stamp.get(name) == wanted[name] for name in ("packages", "wheel"))
    return same and bool(stamp.get("dev") or not wanted["dev"]) and paths.PYTHON.exists()


def _venv_works() -> bool:
    if not paths.PYTHON.exists() or BUSY.exists():
        return False
    probe = [str(paths.PYTHON), "-I", "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _ensure_venv() -> None:
    """A working, perhaps empty, .venv. One that was interrupted while it was made or filled is made again."""
    if _venv_works():
        return
    if paths.VENV.is_symlink() or (paths.VENV.exists() and not paths.VENV.is_dir()):
        raise SetupError(f"{paths.VENV} is not a folder: move it away, then run it again")
    if shutil.disk_usage(paths.ROOT).free < INSTALL_BYTES:
        raise SetupError(
            f"set-up needs {INSTALL_BYTES / 1e9:.1f} GB in {paths.ROOT}: free some space, then run it again"
        )
    progress = Progress("making .venv")
    shutil.rmtree(paths.VENV, ignore_errors=True)
    log = paths.LOGS / f"venv-{paths.root_id()}.log"
    base = getattr(sys, "_base_executable", sys.executable)  # this may be the very .venv that is being replaced
    try:
        status = run([base, "-I", "-m", "venv", str(paths.VENV)], paths.clean_env(), log, progress)
        if status != 0:
            raise explain(".venv could not be made", log)
    except BaseException:
        shutil.rmtree(paths.VENV, ignore_errors=True)
        raise
    progress.done(f".venv is made with Python {sys.version.split()[0]}")


def _pip(arguments: list[str], progress: Progress, what: str) -> None:
    log = paths.LOGS / f"packages-{paths.root_id()}.log"
    base = [str(paths.PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]

    def on_line(line: str) -> None:
        words = line.split()
        if words[:1] in (["Collecting"], ["Installing"], ["Downloading"]) and len(words) > 1:
            progress.detail = " ".join(words[:2])[:60]
        progress.tick()

    status = run([*base, "--progress-bar", "off", *arguments], paths.pip_env(), log, progress, on_line)
    if status != 0:
        progress.clear()
        if "Installing collected packages" not in log.read_text(errors="replace"):
            BUSY.unlink(missing_ok=True)  # it failed before it changed anything
        raise explain(what, log)


def _install(built: Path, dev: bool, replace_wheel: bool) -> None:
    """Fill .venv. Interrupted while pip was changing things, BUSY stays and the next set-up starts afresh."""
    progress = Progress("installing packages")
    STAMP.unlink(missing_ok=True)
    BUSY.touch()
    if replace_wheel:
        # pip takes an installed wheel of the same version for the same thing, whatever its flags were.
        _pip(["--no-deps", "--force-reinstall", str(built)], progress, "llama-cpp-python could not be installed")
    target = f"{paths.ROOT}[dev]" if dev else str(paths.ROOT)
    _pip(["-c", str(wheel.CONSTRAINTS), str(built), "-e", target], progress, "the packages could not be installed")
    progress.done("packages are installed")


def _verify() -> None:
    """Import what was installed: a wheel for another CPU dies here, not in front of a user."""
    done = subprocess.run(
        [str(paths.PYTHON), "-c", IMPORTS], capture_output=True, text=True, check=False, cwd=paths.ROOT
    )
    if done.returncode == -signal.SIGILL:
        wheel.forget()
        raise SetupError(
            "the cached llama.cpp was built for another CPU and is dropped: run it again to build a new one"
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SetupError(f"what was installed does not work: {last}: remove {paths.VENV}, then run it again")


def set_up(dev: bool) -> None:
    """Bring .venv to what pyproject.toml and constraints.txt say."""
    if "CMAKE_ARGS" not in os.environ:
        # Who once built for a GPU means it for the next `make` as well. An empty CMAKE_ARGS goes back.
        os.environ["CMAKE_ARGS"] = str(_stamp().get("cmake_args", ""))
    os.environ["CMAKE_ARGS"] = wheel.with_rpc(os.environ["CMAKE_ARGS"], os.environ.get("RPC", ""))
    if _is_done(_wanted(dev), _stamp()):
        return
    with paths.lock(f"root-{paths.root_id()}", "Another set-up is running here: waiting for it."):
        stamp = _stamp()
        dev = dev or bool(stamp.get("dev"))  # do not lose the development tools on `make run`
        wanted = _wanted(dev)
        if _is_done(wanted, stamp):
            return
        _ensure_venv()
        built = wheel.ensure(paths.PYTHON)
        installed = any(paths.VENV.glob("lib/python*/site-packages/llama_cpp_python-*.dist-info"))
        _install(built, dev, replace_wheel=installed and stamp.get("wheel") != wanted["wheel"])
        _verify()
        part = STAMP.with_suffix(".part")
        part.write_text(json.dumps(wanted))
        part.replace(STAMP)
        BUSY.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """Run set-up; 0 when Conclave is ready."""
    parser = argparse.ArgumentParser(prog="setup.py", description="Set Conclave up in .venv.")
    parser.add_argument("--dev", action="store_true", help="with what the tests and checks need")
    options = parser.parse_args(arguments)
    watch_signals()
    try:
        set_up(options.dev)
    except Stopped as stopped:
        print("\nset-up: stopped; nothing half-done is left, run it again to go on", file=sys.stderr)
        return 128 + stopped.number
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"set-up: {os.strerror(error.errno) if error.errno else error}{where}", file=sys.stderr)
        return 1
    return 0
