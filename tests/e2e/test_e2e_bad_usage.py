"""What a person may get wrong on the command line: one line on stderr, the right exit code, never a traceback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from swarm import Node, Swarm, until

Pair = tuple[Swarm, list[Node]]
USAGE, FAILED = 2, 1
ALONE = ("--backend", "fake", "--join", "none")

# (arguments, standard input, exit code, what the line says). {port} and {mesh_port} are taken, {data} is in use.
WRONG: list[tuple[tuple[str | bytes, ...], bytes, int, tuple[str, ...]]] = [
    (("--modle", "x"), b"", USAGE, ("--modle", "did you mean --model?")),
    (("sttaus",), b"", USAGE, ("sttaus", "did you mean status?")),
    (("--join", "nonsense"), b"", USAGE, ("nonsense", "HOST:PORT")),
    (("--join", "127.0.0.1:99999"), b"", USAGE, ("127.0.0.1:99999", "HOST:PORT")),
    ((*ALONE, "--port", "{port}"), b"", FAILED, ("--port {port}", "taken", "choose another")),
    ((*ALONE, "--mesh-port", "{mesh_port}"), b"", FAILED, ("--mesh-port {mesh_port}", "taken", "choose another")),
    ((*ALONE, "--port", "70000"), b"", USAGE, ("--port", "70000", "65535")),
    ((*ALONE, "--token", "nonsense"), b"", USAGE, ("token", "clv1-")),
    ((*ALONE, "--data-dir", "{data}"), b"", USAGE, ("{data}", "in use", "--data-dir")),
    ((*ALONE, "--data-dir", "/dev/null/x"), b"", USAGE, ("/dev/null",)),
    ((*ALONE, "--slots", "0"), b"", USAGE, ("--slots", "0", "1 to 256")),
    ((*ALONE, "--ctx", "-7"), b"", USAGE, ("--ctx", "-7")),
    ((*ALONE, "--interface", "eth0"), b"", USAGE, ("eth0", "IP address")),
    (("--backend", "quantum"), b"", USAGE, ("quantum", "llama")),
    (("--backend", "fake", "--model", "fake:colour=red"), b"", USAGE, ("colour",)),
    (("ask", ""), b"", USAGE, ("empty",)),
    (("ask",), b" \n", USAGE, ("empty",)),
    (("ask", "one", "two", "--votess"), b"", USAGE, ("--votess", "did you mean --votes?")),
    (("ask", "-n", "0", "hello"), b"", USAGE, ("--candidates", "0", "1 to 64")),
    (("ask", "-n", "10000", "hello"), b"", USAGE, ("--candidates", "10000", "1 to 64")),
    (("ask", "-n", "-1", "hello"), b"", USAGE, ("--candidates", "-1", "1 to 64")),
    (("ask", "--max-tokens", "-5", "hello"), b"", USAGE, ("--max-tokens", "-5")),
    (("ask", "--temperature", "nan", "hello"), b"", USAGE, ("--temperature", "nan")),
    (("ask", "--timeout", "0", "hello"), b"", USAGE, ("--timeout", "0")),
    (("ask", "--strategy", "majorty", "hello"), b"", USAGE, ("majorty", "did you mean majority?")),
    (("ask", "--model", "gpt-9", "hello"), b"", FAILED, ("gpt-9", "not loaded here", "fake")),
    (("ask", b"\xff\xfe"), b"", USAGE, ("not valid UTF-8",)),
    (("ask",), b"caf\xe9", USAGE, ("not valid UTF-8",)),
    (("ask",), b"word " * 5000, USAGE, ("5004", "4096")),
    (("ask", "--address", "nonsense", "hello"), b"", USAGE, ("nonsense", "HOST:PORT")),
    (("ask", "--address", "127.0.0.1:1", "hello"), b"", FAILED, ("no node answers at 127.0.0.1:1", "python -m node")),
    (("ask", "--address", "127.0.0.1:{mesh_port}", "hello"), b"", FAILED, ("127.0.0.1:{mesh_port}",)),
    (("status", "--address", "127.0.0.1:1"), b"", FAILED, ("no node answers at 127.0.0.1:1",)),
    (("status", "--address", "127.0.0.1:{web}"), b"", FAILED, ("127.0.0.1:{web}",)),
    (("token", "old"), b"", USAGE, ("old", "show", "new")),
]


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    """Something else that listens: a web server that knows nothing of HTTP/2."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.mark.parametrize(("argv", "stdin", "code", "says"), WRONG, ids=[" ".join(map(str, w[0])) for w in WRONG])
def test_one_line(
    fakes: Pair, web: int, argv: tuple[str | bytes, ...], stdin: bytes, code: int, says: tuple[str, ...]
) -> None:
    made, nodes = fakes
    values = {
        "port": nodes[0].address.rpartition(":")[2],
        "mesh_port": nodes[0].mesh_address.rpartition(":")[2],
        "data": str(made.home / "data" / "node-0"),
        "web": str(web),
    }
    done = made.run(*(a.format(**values) if isinstance(a, str) else a for a in argv), stdin=stdin)
    assert done.code == code, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    for part in says:
        assert part.format(**values) in line


def test_wrong_variables_are_named(fakes: Pair) -> None:
    made, _ = fakes
    done = made.run("serve", CONCLAVE_SLOTS="many", CONCLAVE_BACKEND="fake")
    assert (done.code, done.out) == (USAGE, "")
    (line,) = done.err.splitlines()
    assert "CONCLAVE_SLOTS" in line
    assert "many" in line


def test_a_wrong_configuration_file_is_named(own: Swarm) -> None:
    file = own.home / "config" / "conclave.toml"
    file.parent.mkdir(parents=True)
    for text, part in (("slots = ", "cannot be read"), ("colour = 1", "colour"), ("slots = true", "slots")):
        file.write_text(text)
        done = own.run("serve")
        assert (done.code, done.out) == (USAGE, "")
        (line,) = done.err.splitlines()
        assert str(file) in line
        assert part in line


def test_another_meshs_token(fakes: Pair, own: Swarm) -> None:
    """It says so and how to join, keeps running, and neither side takes the other for a peer."""
    _, (one, _) = fakes
    stranger = own.start("--backend", "fake", "--join", one.mesh_address)
    own.ready(stranger)
    said = until(lambda: stranger.said() if "is of another mesh" in stranger.said() else "", "a notice")
    assert one.mesh_address in said
    assert "--token" in said
    assert "token show" in said
    assert said.index("node pair") < said.index("--token")
    assert stranger.peers() == set()
    assert stranger.id not in {n.id for n in one.client.status().nodes}
    assert stranger.client.ask("hello").text == "echo: hello"


def test_an_address_for_clients_is_no_address_to_join(fakes: Pair, own: Swarm) -> None:
    _, (one, _) = fakes
    lost = own.start("--backend", "fake", "--join", one.address)
    own.ready(lost)
    said = until(lambda: lost.said() if "does not speak TLS" in lost.said() else "", "a notice")
    assert "mesh address" in said
