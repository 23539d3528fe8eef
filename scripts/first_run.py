"""What `make run` does after set-up: start a node, ask it a question, say what to type next, stop it on ^C.

Arguments go to the node (`make run ARGS="--port 9000 --candidates 8"`).
"""

import atexit
import contextlib
import ipaddress
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

QUESTION = "Mia has 17 marbles. She gives 5 to Tom, then buys 8 more. How many marbles does Mia have now?"
NODE = [sys.executable, "-m", "node"]
PORTS = range(7420, 7500, 10)
STOP_SECONDS = 20.0


class Stopped(BaseException):
    """A signal asked for the end."""


_told: list[int] = []


def _stop(number: int, _frame: object) -> None:
    # The same end may be asked for twice, by a terminal or a timeout and by make: the second must not break the first.
    _told.append(number)
    if len(_told) == 1:
        raise Stopped


def _option(arguments: list[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.split("=", 1)[1]
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
    return None


def _give_terminal_back(group: int) -> None:
    with contextlib.suppress(OSError):  # it may be closed
        os.tcsetpgrp(0, group)


def _own_terminal() -> bool:
    """Take ^C for ourselves: make would report it as an error, though the node stopped as it should."""
    if not os.environ.get("MAKELEVEL"):
        return False
    with contextlib.suppress(OSError):
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp() and os.getpgrp() != os.getpid():
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # ^Z would stop us and leave make waiting for ever
            before = os.getpgrp()
            os.setpgid(0, 0)
            os.tcsetpgrp(0, os.getpgrp())
            atexit.register(_give_terminal_back, before)
            return True
    return False


def _is_closed() -> bool:
    """Whether our terminal is gone."""
    try:
        os.tcgetpgrp(0)
    except OSError:
        return True
    return False


def _is_up(client: list[str]) -> bool:
    """Whether a node answers there and serves."""
    return _status(client) is not None


def _status(client: list[str]) -> bytes | None:
    """What a node there says of itself, as JSON; None if none answers."""
    status = [*NODE, "status", "--json", *client]
    try:
        done = subprocess.run(status, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def _is_alone(client: list[str]) -> bool:
    """Whether no other machine can reach our node: it says that it is at an address of loopback."""
    try:
        address = json.loads(_status(client) or b"")["nodes"][0]["address"]
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
    except (ValueError, LookupError, TypeError):
        return False


def _is_taken(port: str | None) -> bool:
    """Whether somebody else listens on a port of loopback: whoever asks there asks them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port or 0)))
        except OSError:
            return True
        except (ValueError, OverflowError):  # the node says what is wrong with it
            return False
    return False


def _free_port() -> int:
    """The port that a node would take by itself, or any that is free."""
    for port in (*PORTS, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just given back counts as free
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    return 0


def _end(node: subprocess.Popen[bytes]) -> int:
    """Stop the node as ^C does; 0 when it went as asked."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    if node.poll() is None:
        node.send_signal(signal.SIGINT)
    try:
        status = node.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
        print(f"run: the node did not stop within {STOP_SECONDS:.0f} s and was killed", file=sys.stderr)
        return 1
    return 0 if status in (0, 130, -signal.SIGINT, -signal.SIGTERM) else _code(status)


def _code(status: int) -> int:
    return status if status >= 0 else 128 - status


def _demonstrate(client: list[str], model: str | None) -> None:
    """Ask one question and say what else there is to type."""
    # Some systems have only python3; node/__main__.py finds .venv from either.
    node = f"{'python' if shutil.which('python') else 'python3'} -m node"
    print(f"\n$ {node} ask {shlex.quote(QUESTION)} {' '.join(['--votes', *client])}", flush=True)
    done = subprocess.run([*NODE, "ask", QUESTION, "--votes", *client], stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        print(f"run: the question failed (exit status {done.returncode}); the node still runs", file=sys.stderr)
    suffix = "".join(f" {word}" for word in client)
    same = f" --model {shlex.quote(model)}" if model else ""
    rows = {
        f"{node} chat{suffix}": "a conversation",
        f"{node} status --watch{suffix}": "nodes, slots, topics",
        f"{node} --join auto{same}": "a second node: it finds this one, and they vote together",
    }
    width = max(map(len, rows)) + 3
    is_narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < width + 2 + max(map(len, rows.values()))
    line = "  {command}\n      {text}" if is_narrow else "  {command:{width}}{text}"
    print(f"\nThe node keeps running here; ^C stops it. In a second terminal, after `cd {shlex.quote(os.getcwd())}`:\n")
    print("\n".join(line.format(command=command, width=width, text=text) for command, text in rows.items()))
    if not _is_alone(client):
        print(f"\nOn another machine: `{node} pair`, first here, then there; or the line that the node printed above.")
    sys.stdout.flush()


def _wait_until_up(node: subprocess.Popen[bytes], client: list[str]) -> bool:
    """True once the node answers; False if it ended first."""
    while node.poll() is None:
        if _is_up(client):
            return node.poll() is None  # if it ended meanwhile, it was another one that answered
        time.sleep(0.2)
    return False


def _wait(node: subprocess.Popen[bytes], *, owns_terminal: bool) -> int:
    """The node's exit code. Raises Stopped when our terminal was closed: of that, only make may have been told."""
    while True:
        try:
            status = node.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if owns_terminal and _is_closed():
                raise Stopped from None
            continue
        if status < 0:
            print(f"run: the node was ended by {signal.Signals(-status).name}", file=sys.stderr)
        return _code(status)


def main(arguments: list[str]) -> int:
    """Run the node until it ends or is stopped."""
    owns_terminal = _own_terminal()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop)
    port = _option(arguments, "--port") or os.environ.get("CONCLAVE_PORT")
    try:
        is_taken = _is_taken(port)  # then our node will say so and end; the one that answers there is another
        if not port and _is_up([]):
            # The client commands would find that node and not ours, so ours gets an address that we know.
            port = str(_free_port())
            arguments = [*arguments, "--port", port]
            print(f"A node runs on this machine already; this is one more, on port {port}.", flush=True)
        client = ["--address", f"127.0.0.1:{port}"] if port else []
        join = [] if _option(arguments, "--join") else ["--join", "auto"]
        if not _option(arguments, "--model") and not os.environ.get("CONCLAVE_MODEL"):
            # A first run is the same everywhere, whatever models this machine has.
            arguments = [*arguments, "--model", "bundled"]
        model = _option(arguments, "--model")
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        # Its own group, so that ^C reaches it once, from us, and not in the middle of the question.
        node = subprocess.Popen([*NODE, *join, *arguments], stdin=subprocess.DEVNULL, env=environment, process_group=0)
    except Stopped:
        return 0
    try:
        if not is_taken and _wait_until_up(node, client):
            _demonstrate(client, model)
        return _wait(node, owns_terminal=owns_terminal)
    except (Stopped, OSError):  # what we print to may be closed while we print: nobody is left to stop the node
        return _end(node)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
