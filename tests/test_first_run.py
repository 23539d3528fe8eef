"""What `make run` shows, with a stand-in for the node."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import first_run
import pytest

from tests import loopback

# A node that is up once its file is there; `--fail` is a flag that it does not like.
STAND_IN = textwrap.dedent("""
    import os, pathlib, signal, sys, time
    arguments, up = sys.argv[1:], pathlib.Path("up")
    if "status" in arguments:
        sys.exit(0 if up.exists() else 1)
    if "ask" in arguments:
        print("asked with", *arguments[2:], flush=True)
    elif "--fail" in arguments:
        sys.exit("no such flag") if "1" in arguments else sys.exit(2)
    else:
        up.write_text(str(os.getpid()))
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            up.unlink()
            print("stopped", flush=True)
""")


_ARGV = [
    sys.executable,
    "-c",
    "import first_run as f, sys; f.NODE = [sys.executable, 'stand_in.py']; sys.exit(f.main(sys.argv[1:]))",
]


def _write(folder: Path) -> None:
    (folder / "stand_in.py").write_text(STAND_IN)


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "MAKELEVEL"}
    return environment | {"PYTHONPATH": str(Path(first_run.__file__).parent)}


def _start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    _write(folder)
    return subprocess.Popen(
        [*_ARGV, *arguments],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _shown(run: "subprocess.Popen[str]") -> str:
    """All that it says until the node is up and has answered."""
    assert run.stdout is not None
    seen = ""
    while "On another machine" not in seen:
        line = run.stdout.readline()
        assert line, f"it ended after {seen!r}"
        seen += line
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_asks_and_stops_the_node_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """The question is shown and answered, and ^C is success."""
    with _start(tmp_path, "--port", "7999") as run:
        seen = _shown(run)
        run.send_signal(number)
        rest, _ = run.communicate(timeout=60)
    assert "--votes --address 127.0.0.1:7999" in seen
    assert "asked with" in seen
    assert "stopped" in rest
    assert run.returncode == 0
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize(("arguments", "code", "said"), [((), 2, ""), (("1",), 1, "no such flag\n")])
def test_a_node_that_ends_passes_its_code_and_message(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """Nothing is added to what it says."""
    with _start(tmp_path, "--fail", *arguments) as run:
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out, err) == (code, "", said)


def test_a_second_node_gets_a_port_of_its_own(tmp_path: Path) -> None:
    """Else the client commands would find the first one."""
    (tmp_path / "up").touch()
    with _start(tmp_path) as run:
        assert run.stdout is not None
        first = run.stdout.readline()
        port = first.split("port ")[1].rstrip(".\n")
        assert f"127.0.0.1:{port}" in _shown(run)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
    assert run.returncode == 0


def test_a_port_that_another_node_has_is_not_asked(tmp_path: Path) -> None:
    """Else the answer of that node would be shown for one of ours, before ours says that it cannot start."""
    (tmp_path / "up").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with _start(tmp_path, "--fail", "1", f"--port={other.getsockname()[1]}") as run:
            out, err = run.communicate(timeout=60)
    assert (run.returncode, out, err) == (1, "", "no such flag\n")


def test_a_node_that_ends_while_another_answers_is_not_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port was taken between our look and its start."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as node:

        def answers(_: list[str]) -> bool:
            assert node.stdin is not None
            node.stdin.close()
            node.wait()
            return True

        monkeypatch.setattr(first_run, "_is_up", answers)
        assert not first_run._wait_until_up(node, [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "is_alone"),
    [
        ("127.0.0.1:7421", True),
        ("[::1]:7421", True),
        ("192.168.1.4:7421", False),
        ("[fd00::1]:7421", False),
        ("", False),
    ],
)
def test_another_machine_is_told_of_only_where_one_could_join(
    monkeypatch: pytest.MonkeyPatch, address: str, is_alone: bool
) -> None:
    monkeypatch.setattr(first_run, "_status", lambda _: json.dumps({"nodes": [{"address": address}]}).encode())
    assert first_run._is_alone([]) is is_alone


def test_the_port_is_the_one_that_a_node_would_take() -> None:
    """A person who starts the first node again while the second runs finds it where it was."""
    with socket.socket() as taken, contextlib.suppress(OSError):
        taken.bind(("127.0.0.1", 7420))
        taken.listen()
        assert first_run._free_port() != 7420
    free = loopback.spare()
    before, first_run.PORTS = first_run.PORTS, range(free, free + 1)
    try:
        assert first_run._free_port() == free
    finally:
        first_run.PORTS = before


def test_a_killed_node_is_said_to_be(tmp_path: Path) -> None:
    """Make would show a number only."""
    with _start(tmp_path, "--port", "7999") as run:
        _shown(run)
        os.kill(int((tmp_path / "up").read_text()), signal.SIGKILL)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 137
    assert err == "run: the node was ended by SIGKILL\n"


def test_a_closed_terminal_ends_the_node(tmp_path: Path) -> None:
    """Also where make is what the terminal started: it is told, waits for us, and tells nobody."""
    _write(tmp_path)
    make = f"import signal, subprocess, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); subprocess.run({_ARGV!r})"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-c", make], _environment() | {"MAKELEVEL": "1"})
    seen = b""
    while b"On another machine" not in seen:
        seen += os.read(terminal, 65536)
    assert (tmp_path / "up").exists()
    os.close(terminal)
    os.waitpid(pid, 0)
    assert not (tmp_path / "up").exists()


def test_being_told_twice_to_stop_is_being_told_once(tmp_path: Path) -> None:
    """As `timeout make run` does: make passes on what it is told, and the group is told too."""
    with _start(tmp_path, "--port", "7999") as run:
        _shown(run)
        for _ in range(20):
            run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (0, "")
    assert not (tmp_path / "up").exists()


def test_options_are_read_in_both_spellings() -> None:
    """`--port 1` and `--port=1`."""
    assert first_run._option(["--port", "1"], "--port") == "1"
    assert first_run._option(["--port=1"], "--port") == "1"
    assert first_run._option(["--join", "none"], "--port") is None
