"""A model from a peer: how much of the link `models pull` uses, against a bare TCP copy and against curl.

    python scripts/bench/models.py [--rounds 3] [--links 100m,1g,unlimited] [--size MB] [--quick] [--json]

Hosts are network namespaces on a switch (Linux, as root); each sends at the rate that is given (tc tbf), and not
limited at all in the last row. On the first one or two runs a node whose own folder holds a model: the bundled one,
filled up with random bytes. The other pulls it into an empty home: the whole command counts, from its start to its end,
with finding the node, the hashes of every piece, and the file on disk. The nodes have described the model once before,
as they remember it; `first_extra_s` is what the first time takes more. Beside it, on the same link and paired:
`sendfile` into a socket and from there into a file, with nothing else (the floor); curl from Python's HTTP server; and
the same as who wants a file that is whole and on the disk does it, curl, then sha256sum, then sync. All files lie in
TMPDIR: where that is in memory, the disk does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.models.resolve import BUNDLED
from scripts.bench import running
from scripts.chaos.lan import Host, Lan, unavailable

NAME = "bench-Q8_0"
PORT, RAW, HTTP = 7421, 7501, 7502
_SEND = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[2])))
print("ready", flush=True)
while True:
    one, _ = listener.accept()
    with one, open(sys.argv[1], "rb") as file:
        one.sendfile(file)
"""
_TAKE = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as one, open(sys.argv[3], "wb", buffering=0) as file:
    room = memoryview(bytearray(1 << 20))
    while size := one.recv_into(room):
        file.write(room[:size])
"""


def write(path: Path, size: int) -> None:
    """A model of about so many bytes."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        left = size - file.write(BUNDLED.read_bytes())
        while left > 0:
            left -= file.write(os.urandom(min(left, 1 << 24)))


class Sender:
    """A host with the model: a node, and the two rivals."""

    def __init__(self, host: Host, home: Path, stack: contextlib.ExitStack) -> None:
        self.host, self.home = host, home
        self.file = home / "data" / "models" / f"{NAME}.gguf"
        self._stack = stack
        self.rival("-c", _SEND, str(self.file), str(RAW))
        self.rival("-m", "http.server", str(HTTP), "--directory", str(self.file.parent), "--bind", "0.0.0.0")

    def rival(self, *argv: str) -> None:
        self.start([sys.executable, *argv], {})

    def node(self, *flags: str) -> None:
        env = {"CONCLAVE_HOME": str(self.home), "HOME": str(self.home), "CONCLAVE_INTERFACE": self.host.ip}
        self.start(
            [sys.executable, "-m", "node", "--backend", "fake", "--mesh-port", str(PORT), "--http-port", "0", *flags],
            env,
        )
        until = time.monotonic() + 60
        while not any((self.home / "run" / "nodes").glob("*.json")):
            if time.monotonic() > until:
                sys.exit("a node did not start")
            time.sleep(0.1)

    def start(self, command: list[str], env: dict[str, str]) -> None:
        process = subprocess.Popen(
            self.host.command(*command), env={**os.environ, **env}, cwd=running.ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)


class Taker:
    """The host that has nothing."""

    def __init__(self, host: Host, where: Path, token: str) -> None:
        self.host, self.where, self.token = host, where, token

    def pull(self, sender: Sender) -> float:
        home = self.where / "pull"
        (home / "config").mkdir(parents=True)
        (home / "config" / "token").write_text(self.token)
        env = {"CONCLAVE_HOME": str(home), "HOME": str(home), "CONCLAVE_JOIN": f"{sender.host.ip}:{PORT}"}
        took = self._time([sys.executable, "-m", "node", "models", "pull", NAME], env)
        self._check(home / "data" / "models" / f"{NAME}.gguf", sender)
        shutil.rmtree(home)
        return took

    def raw(self, sender: Sender) -> float:
        target = self.where / "raw"
        took = self._time([sys.executable, "-c", _TAKE, sender.host.ip, str(RAW), str(target)], {})
        self._check(target, sender)
        target.unlink()
        return took

    def curl(self, sender: Sender) -> float:
        target = self.where / "curl"
        took = self._time(["curl", "-sS", "-o", str(target), f"http://{sender.host.ip}:{HTTP}/{NAME}.gguf"], {})
        self._check(target, sender)
        target.unlink()
        return took

    def checked(self, sender: Sender) -> float:
        target = self.where / "checked"
        get = f"curl -sS -o {target} http://{sender.host.ip}:{HTTP}/{NAME}.gguf && sha256sum {target} && sync {target}"
        took = self._time(["sh", "-c", get], {})
        self._check(target, sender)
        target.unlink()
        return took

    def _time(self, command: list[str], env: dict[str, str]) -> float:
        started = time.perf_counter()
        done = subprocess.run(
            self.host.command(*command), env={**os.environ, **env}, cwd=running.ROOT, capture_output=True, check=False
        )
        took = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"{command[:4]} failed: {done.stderr.decode(errors='replace')[-400:]}")
        return took

    def _check(self, path: Path, sender: Sender) -> None:
        if path.stat().st_size != sender.file.stat().st_size:
            sys.exit(f"{path} is not whole")


@contextlib.contextmanager
def hosts(size: int, mbit: float) -> Iterator[tuple[Sender, Sender, Taker]]:
    """Two that have a model of `size` bytes, and one that has not."""
    with contextlib.ExitStack() as stack:
        lan = Lan(3, ipv6=False)
        stack.callback(lan.close)
        if mbit:
            lan.limit(mbit)
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conclave-bench-")))
        first = where / "0" / "data" / "models" / f"{NAME}.gguf"
        write(first, size)
        second = where / "1" / "data" / "models" / first.name
        second.parent.mkdir(parents=True)
        os.link(first, second)
        one, two = (Sender(lan.hosts[i], where / str(i), stack) for i in range(2))
        one.node("--join", "none")
        token = (one.home / "config" / "token").read_text().strip()
        time.sleep(1)  # the rivals
        yield one, two, Taker(lan.hosts[2], where, token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--links", default="100m,1g,unlimited")
    parser.add_argument("--size", type=int, default=0, help="of the model, MB, on the links that are not slow")
    parser.add_argument("--quick", action="store_true", help="small models, one round")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if why := unavailable() or ("" if shutil.which("curl") else "curl not installed"):
        sys.exit(f"this benchmark needs network namespaces and curl: {why}")
    rounds = 1 if args.quick else args.rounds
    small, large = (32, 256) if args.quick else (128, 1024)
    large = args.size or large
    links = [("100 Mbit/s", "100m", 100.0, small), ("1 Gbit/s", "1g", 1000.0, large), ("any", "unlimited", 0.0, large)]
    links = [link for link in links if link[1] in args.links.split(",")]
    rows: list[list[object]] = [
        [
            "link",
            "model, MB",
            "bare TCP, MB/s",
            "curl, MB/s",
            "curl, sha256sum, sync, MB/s",
            "models pull, MB/s",
            "of bare TCP",
            "from two nodes, MB/s",
        ]
    ]
    figures: dict[str, object] = {"rounds": rounds}
    for name, key, mbit, megabytes in links:
        size = megabytes * 1_000_000
        with hosts(size, mbit) as (one, two, taker):
            first = taker.pull(one)
            times: dict[str, list[float]] = {"raw": [], "curl": [], "checked": [], "pull": [], "two": []}
            kinds: list[tuple[str, Callable[[Sender], float]]] = [
                ("raw", taker.raw), ("curl", taker.curl), ("checked", taker.checked), ("pull", taker.pull),
            ]  # fmt: skip
            for _ in range(rounds):
                for kind, run in kinds:
                    times[kind].append(run(one))
            (two.home / "config").mkdir(parents=True, exist_ok=True)
            (two.home / "config" / "token").write_text(taker.token)
            two.node("--join", f"{one.host.ip}:{PORT}")
            time.sleep(3)  # until they know each other
            taker.pull(one)
            times["two"] = [taker.pull(one) for _ in range(rounds)]
        speed = {kind: size / 1e6 / statistics.median(found) for kind, found in times.items()}
        share = statistics.median(r / p for r, p in zip(times["raw"], times["pull"], strict=True))
        figures |= {
            f"link_share_{key}": share,
            f"over_curl_{key}": statistics.median(c / p for c, p in zip(times["curl"], times["pull"], strict=True)),
            f"over_checked_curl_{key}": statistics.median(
                c / p for c, p in zip(times["checked"], times["pull"], strict=True)
            ),
            f"two_over_one_{key}": speed["two"] / speed["pull"],
            f"mb_per_s_{key}": speed["pull"],
            f"first_extra_s_{key}": first - statistics.median(times["pull"]),
        }
        four = (f"{speed[kind]:.1f}" for kind in ("raw", "curl", "checked", "pull"))
        rows.append([name, megabytes, *four, f"{share:.0%}", f"{speed['two']:.1f}"])
    running.table(rows)
    running.finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
