"""The command line as a process: signals, pipes, a terminal, and how soon it is there."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fakenode import FakeNode

NODE = [sys.executable, "-m", "node"]
# Makes the pseudo-terminal the controlling one, so that typing ^C in it interrupts; then becomes the command.
TERMINAL = [
    sys.executable,
    "-c",
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])",
]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def start(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*NODE, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def in_terminal(
    argv: Sequence[str], typed: Sequence[tuple[str, bytes | Callable[[], None]]] = (), **environ: str
) -> tuple[int, str]:
    """Run on a pseudo-terminal, typing or doing each thing once its cue was seen; exit code and all that was shown."""
    here, there = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"} | environ
    process = subprocess.Popen(
        [*TERMINAL, *NODE, *argv], stdin=there, stdout=there, stderr=there, env=environment, start_new_session=True
    )
    os.close(there)
    seen, at, waiting = b"", 0, list(typed)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([here], [], [], 0.1)[0]:
            try:
                part = os.read(here, 65536)
            except OSError:  # Linux says EIO when the other end is closed
                break
            if not part:
                break
            seen += part
        if waiting and waiting[0][0].encode() in seen[at:]:
            at = len(seen)
            then = waiting.pop(0)[1]
            if isinstance(then, bytes):
                os.write(here, then)
            else:
                then()
    code = process.wait(60)
    os.close(here)
    return code, seen.decode(errors="replace")


def test_interrupt_cancels_the_call_and_exits_130() -> None:
    node = FakeNode(hang=True)
    try:
        asking = start("ask", "x", "--address", node.address)
        assert node.hanging.wait(60)
        asking.send_signal(signal.SIGINT)
        out, err = asking.communicate(timeout=60)
        assert (asking.returncode, out, err) == (130, b"", b"")
        assert node.cancelled.wait(60)
    finally:
        node.stop()


def test_a_closed_pipe_is_quiet(node: FakeNode) -> None:
    node.text = "word " * 100_000
    with start("ask", "x", "--address", node.address) as asking:
        assert asking.stdout is not None
        assert asking.stderr is not None
        asking.stdout.read(10)
        asking.stdout.close()
        assert asking.stderr.read() == b""
        assert asking.wait(60) == 1


@pytest.mark.parametrize(
    ("prompt", "code"), [(b"caf\xe9", 2), (b"\xed\xa0\x80", 2), ("naïve".encode(), 0), ("\U0001f600".encode(), 0)]
)
def test_bytes_of_a_prompt_count_whatever_the_locale(node: FakeNode, prompt: bytes, code: int) -> None:
    for locale in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        argv: list[str | bytes] = [*NODE, "ask", prompt, "--address", node.address]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=os.environ | locale, text=True
        )
        assert (done.returncode, done.stderr) == (code, "error: the prompt is not valid UTF-8\n" if code else "")
    assert {r.messages[0].content for r in node.requests} == ({prompt.decode()} if not code else set())


def test_closed_and_full_streams_are_no_traceback(node: FakeNode) -> None:
    ask = " ".join([*NODE, "ask", "x", "--address", node.address])
    for redirected, code, err in (
        ("<&-", 0, ""),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 1, "error: No space left on device; free some space\n"),
    ):
        if "/dev/full" in redirected and not os.path.exists("/dev/full"):
            continue
        done = subprocess.run(["sh", "-c", f"{ask} {redirected}"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, err), redirected


def test_a_killed_node_is_left_for_the_next(node: FakeNode) -> None:
    script = os.path.join(os.path.dirname(__file__), "fakenode.py")
    with subprocess.Popen([sys.executable, script, "--hang"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        address = victim.stdout.readline().decode().strip()
        argv = ["ask", "x", "-n", "1", "--address", f"{address},{node.address}"]
        code, seen = in_terminal(argv, [("The answer is", victim.kill)])
    assert code == 0, seen
    said = "note: the node went away in the middle of the answer; going on at another node"
    assert said in seen
    assert "The answer is 42." in ESCAPE.sub("", seen.partition(said)[2])


def test_pipes_get_no_escape_codes_even_when_colour_is_forced(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    for argv in (["ask", "x", "--votes"], ["status"]):
        out, err = start(*argv, "--address", node.address).communicate(timeout=60)
        assert out
        assert b"\x1b" not in out + err


def test_ask_on_a_terminal(node: FakeNode) -> None:
    node.text = "The answer is 42.\x1b]0;owned\x07 \x1b[2J"
    code, seen = in_terminal(["ask", "x", "--votes", "--address", node.address])
    assert code == 0, seen
    assert "\x1b[2J" not in seen
    assert "\x1b]0" not in seen
    assert "\x1b[1;32m42" in seen  # the winner, in bold green
    assert "█" in seen
    plain = ESCAPE.sub("", seen)
    assert "hal: 1 2 3; bob: 4" in plain


def test_one_candidate_streams_on_a_terminal() -> None:
    node = FakeNode(hang=True)
    try:
        code, seen = in_terminal(["ask", "x", "-n", "1", "--address", node.address], [("The answer is", b"\x03")])
        assert code == 130, seen
        assert "The answer is" in ESCAPE.sub("", seen)
        assert node.cancelled.wait(60)
    finally:
        node.stop()


def test_no_colour_when_it_is_not_wanted(node: FakeNode) -> None:
    _, seen = in_terminal(["status", "--address", node.address], NO_COLOR="1")
    assert "\x1b[32m" not in seen
    _, seen = in_terminal(["status", "--address", node.address])
    assert "\x1b[32malive" in seen


@pytest.mark.parametrize("colour", [True, False])
def test_a_long_prompt_has_a_bar_on_a_terminal(node: FakeNode, colour: bool) -> None:
    node.reads = 2.0
    code, seen = in_terminal(["ask", "x", "--address", node.address], **({} if colour else {"NO_COLOR": "1"}))
    assert code == 0, seen
    plain = ESCAPE.sub("", seen)
    assert "reading the prompt: 6,000 of 8,000 tokens" in plain
    assert "█" * 18 + "░" * 6 in plain
    assert ("\x1b[32m█" in seen) == colour
    assert plain.rstrip().splitlines()[-1].startswith("4 of 5 candidates agree")


def test_chat_on_a_terminal(node: FakeNode) -> None:
    typed = [(">>> ", b"Hello\n"), (">>> ", b"/nonsense\n"), (">>> ", b"/votes\n"), (">>> ", b"\x04")]
    code, seen = in_terminal(["chat", "--address", node.address, "--topic", "garden"], typed)
    assert code == 0, seen
    plain = ESCAPE.sub("", seen)
    assert f"tiny on hal ({node.address}), topic garden" in plain
    assert "The answer is 42." in plain
    assert "4 of 5 candidates agree, from 2 nodes" in plain
    assert "error: /nonsense is not a command" in plain
    assert "dissent     5" in plain


def test_interrupting_a_turn_of_chat_leaves_the_chat() -> None:
    node = FakeNode(hang=True)
    try:
        typed = [(">>> ", b"Hello\n"), ("The answer", b"\x03"), ("stopped; /retry asks again", b"/quit\n")]
        code, seen = in_terminal(["chat", "-n", "1", "--address", node.address], typed)
        assert code == 0, seen
        assert "Traceback" not in seen
        assert node.cancelled.wait(60)
    finally:
        node.stop()


def test_what_was_typed_in_chat_is_kept_for_this_user_only(node: FakeNode, own_home: Path) -> None:
    pytest.importorskip("readline")
    assert in_terminal(["chat", "--address", node.address], [(">>> ", b"secret\n"), (">>> ", b"\x04")])[0] == 0
    file = own_home / "data" / "chat_history"
    assert "secret" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_status_is_light() -> None:
    """A client command loads neither the engine nor the node, so that it is there at once."""
    heavy = "llama_cpp", "node.app", "node.mesh.identity", "zeroconf", "numpy"
    code = (
        "import sys; from node import cli; cli.main(['status', '--address', '127.0.0.1:1']);"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_serve_leaves_grpc_for_the_node_to_import() -> None:
    """Which TLS versions it takes is decided by the environment at that moment."""
    code = "import sys, node.cli.serve; print('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("command", "begin"),
    [
        ("completion", "from node.cli import completion; completion.run = lambda _: ask()"),
        (
            "serve",
            "from types import SimpleNamespace; sys.modules['node.app'] = SimpleNamespace(Node=lambda *_, **__: ask())",
        ),
    ],
    ids=["completion", "serve"],
)
def test_garbage_is_collected_again_once_the_command_is_loaded(command: str, begin: str) -> None:
    code = f"""
import gc, sys
from node import __main__
def ask():
    print(gc.isenabled(), flush=True)
    sys.exit(0)
{begin}
sys.argv[1:] = [{command!r}]
sys.exit(__main__.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
