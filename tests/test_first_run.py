"""What `make run` shows, with a stand-in for the node."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import first_run
import pytest

# A node that is up once its file is there; `--fail` is a flag that it does not like.
STAND_IN = textwrap.dedent("""
    import pathlib, signal, sys, time
    arguments, up = sys.argv[1:], pathlib.Path("up")
    if "status" in arguments:
        sys.exit(0 if up.exists() else 1)
    if "ask" in arguments:
        print("asked with", *arguments[2:], flush=True)
    elif "--fail" in arguments:
        sys.exit("no such flag") if "1" in arguments else sys.exit(2)
    else:
        up.touch()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("stopped", flush=True)
        up.unlink()
""")


def _start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    (folder / "stand_in.py").write_text(STAND_IN)
    start = "import first_run as f, sys; f.NODE = [sys.executable, 'stand_in.py']; sys.exit(f.main(sys.argv[1:]))"
    environment = {name: value for name, value in os.environ.items() if name != "MAKELEVEL"}
    environment["PYTHONPATH"] = str(Path(first_run.__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", start, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_asks_and_stops_the_node_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """The question is shown and answered, and ^C is success."""
    with _start(tmp_path, "--port", "7999") as run:
        deadline = time.monotonic() + 30
        assert run.stdout is not None
        seen = ""
        while "On another machine" not in seen and time.monotonic() < deadline:
            seen += run.stdout.readline()
        run.send_signal(number)
        rest, _ = run.communicate(timeout=30)
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
        out, err = run.communicate(timeout=30)
    assert (run.returncode, out, err) == (code, "", said)


def test_a_second_node_gets_a_port_of_its_own(tmp_path: Path) -> None:
    """Else the client commands would find the first one."""
    (tmp_path / "up").touch()
    with _start(tmp_path) as run:
        assert run.stdout is not None
        first = run.stdout.readline()
        port = first.split("port ")[1].rstrip(".\n")
        assert f"127.0.0.1:{port}" in run.stdout.readline() + run.stdout.readline()
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=30)
    assert run.returncode == 0


def test_options_are_read_in_both_spellings() -> None:
    """`--port 1` and `--port=1`."""
    assert first_run._option(["--port", "1"], "--port") == "1"
    assert first_run._option(["--port=1"], "--port") == "1"
    assert first_run._option(["--join", "none"], "--port") is None
