"""Set-up: its keys, its messages, and that interrupting it leaves nothing half-done."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from install import console, paths, steps, wheel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test touches the real cache."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "WHEELS", tmp_path / "cache" / "wheels")
    monkeypatch.setattr(paths, "LOGS", tmp_path / "cache" / "logs")
    monkeypatch.delenv("CMAKE_ARGS", raising=False)


@pytest.mark.parametrize("name", ["scripts/setup.py", "node/__main__.py", "node/__init__.py"])
def test_old_interpreters_can_parse_what_greets_them(name: str) -> None:
    """They get a line that says so, not a syntax error."""
    ast.parse((ROOT / name).read_text(), feature_version=(3, 6))


def test_the_wheel_key_follows_what_shapes_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, compiler and CPU each make another wheel; nothing else does."""
    keys = [wheel.key()]
    monkeypatch.setenv("UNRELATED", "1")
    assert wheel.key() == keys[0]
    for name, value in (("CMAKE_ARGS", "-DGGML_CUDA=on"), ("CXX", "clang++"), ("CFLAGS", "-O1")):
        monkeypatch.setenv(name, value)
        keys.append(wheel.key())
    monkeypatch.setattr(wheel, "_cpu", lambda: "another")
    keys.append(wheel.key())
    assert len(set(keys)) == len(keys)


def test_rpc_is_a_flag_that_comes_and_goes() -> None:
    """With the user's own flags kept; without a word it stays as it was."""
    cuda = "-DGGML_CUDA=on"
    assert wheel.with_rpc(cuda, "") == cuda
    built = wheel.with_rpc(cuda, "1")
    assert built.split() == [cuda, "-DGGML_RPC=ON", "-DGGML_RPC_RDMA=OFF"]
    assert wheel.with_rpc(built, "1") == wheel.with_rpc(built, "") == built
    assert wheel.with_rpc(built, "0") == cuda
    with pytest.raises(console.SetupError, match="write RPC=1"):
        wheel.with_rpc("", "yes")


def _put_wheel() -> Path:
    folder = paths.WHEELS / wheel.key()
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "llama.whl", "w") as archive:
        archive.writestr("x", "y")
    return folder / "llama.whl"


def test_a_cached_wheel_is_used_and_a_broken_one_is_not() -> None:
    """Half a file is not a wheel."""
    made = _put_wheel()
    assert wheel.ensure(Path(sys.executable)) == made
    made.write_bytes(made.read_bytes()[:10])
    assert wheel.cached() is None


def test_an_interrupted_build_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a wheel nor its build folder, not even that of an earlier build that was killed."""
    (paths.WHEELS / ".build-killed").mkdir(parents=True)

    def interrupted(*_: object) -> int:
        assert len(list(paths.WHEELS.glob(".build-*"))) == 1
        raise console.Stopped(signal.SIGTERM)

    monkeypatch.setattr(wheel, "_check_compiler", lambda: None)
    monkeypatch.setattr(wheel, "run", interrupted)
    with pytest.raises(console.Stopped):
        wheel.ensure(Path(sys.executable))
    assert list(paths.WHEELS.iterdir()) == []


def test_no_compiler_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line, before anything is downloaded."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(console.SetupError, match="no working C\\+\\+ compiler: ") as caught:
        wheel.ensure(Path(sys.executable))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("error: [Errno 28] No space left on device", "the disk is full"),
        ("WARNING: Retrying: NewConnectionError('…: Temporary failure in name resolution')", "check the network"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("working\nERROR: something of its own\n", "something of its own"),
        ("", "no output"),
    ],
)
def test_a_failed_program_is_explained_in_one_line(output: str, expected: str, tmp_path: Path) -> None:
    """The cause, what to do, and where to read more."""
    log = tmp_path / "log"
    log.write_text(output)
    message = str(console.explain("packages", log))
    assert expected in message
    assert str(log) in message
    assert "\n" not in message


def test_stopping_ends_the_whole_process_group(tmp_path: Path) -> None:
    """A compiler that a killed build started must not go on."""
    script = "import os, subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    seen: list[int] = []

    def on_line(line: str) -> None:
        seen.append(int(line))
        raise console.Stopped(signal.SIGINT)

    with pytest.raises(console.Stopped):
        console.run([sys.executable, "-c", script], dict(os.environ), tmp_path / "l", console.Progress("x"), on_line)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _alive(seen[0]):
        time.sleep(0.02)
    assert not _alive(seen[0])


def _alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


def test_progress_is_a_line_each_tenth_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    """A log of a build stays short."""
    progress = console.Progress("building")
    for line in (f"  [{n}/200] c++ x.cpp" for n in range(1, 201)):
        step = console.NINJA_STEP.match(line)
        assert step
        progress.step(int(step[1]), int(step[2]))
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_development_tools_satisfy_a_run_but_not_the_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` after `make test` has nothing to do."""
    monkeypatch.setattr(paths, "PYTHON", Path(sys.executable))
    run, test = steps._wanted(False), steps._wanted(True)
    assert steps._is_done(run, test)
    assert not steps._is_done(test, run)
    assert not steps._is_done(run, {})
    assert not steps._is_done(run, test | {"wheel": "another"})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tree with the entry point only."""
    root = tmp_path / "checkout"
    (root / "node").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(ROOT / "node" / name, root / "node")
    (root / "Makefile").touch()
    return root


def _bare(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point with an interpreter that has no packages."""
    argv = [sys.executable, "-S", "-m", "node", *arguments]
    return subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_without_set_up_the_entry_point_says_what_to_do(checkout: Path) -> None:
    """One line and exit status 1."""
    done = _bare(checkout)
    assert done.returncode == 1
    assert done.stderr == f"Conclave is not installed yet: run `make run` in {checkout}\n"


def test_the_entry_point_goes_on_in_the_environment_of_set_up(checkout: Path) -> None:
    """With the same arguments, once."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    assert _bare(checkout, "ask", "two words").stdout == "-m node ask two words\n"
    again = _bare(checkout, "ask", _CONCLAVE_VENV="1")
    assert again.returncode == 1
    assert "did not finish: run `make run`" in again.stderr
