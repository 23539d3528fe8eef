"""Downloads from a hub on loopback, by the command line in a process of its own: what arrives, resumes, is refused."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubserver import Hub

from node.errors import InvalidRequest, NotFound, NotReady
from node.models import hub, partial
from node.models.hub import Reference, RemoteFile
from node.models.resolve import BUNDLED

REPO = "someone/Tiny-GGUF"
MODEL = BUNDLED.read_bytes() + bytes(24 << 20)  # the library writes to the disk in pieces of 10 MB


@pytest.fixture
def server() -> Iterator[Hub]:
    running = Hub()
    running.repos[REPO] = {
        "README.md": b"# Tiny",
        "tiny-Q4_K_M.gguf": MODEL,
        "tiny-Q8_0.gguf": MODEL[:-1] + b"\1",
        "mmproj-tiny-Q4_K_M.gguf": b"GGUF",
    }
    yield running
    running.close()


class Command:
    """`python -m node models …` with a home and a hub of its own."""

    def __init__(self, server: Hub, home: Path) -> None:
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CONCLAVE_"))},
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "CONCLAVE_HOME": str(home / "conclave"),
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }

    def start(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "node", "models", *words],
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **environ: str) -> tuple[int, str, str]:
        child = self.start(*words, **environ)
        out, err = child.communicate(timeout=120)
        assert "Traceback" not in err
        return child.returncode, out, err


@pytest.fixture
def command(server: Hub, tmp_path: Path) -> Command:
    return Command(server, tmp_path)


def test_pull_list_and_remove(command: Command, server: Hub) -> None:
    code, out, err = command.run("pull", f"hf:{REPO}")
    assert code == 0, err
    path = Path(out.strip())
    assert path.name == "tiny-Q4_K_M.gguf"
    assert path.read_bytes() == MODEL
    assert f"{len(MODEL) / 1e9:.2f} GB" in err
    assert "--model tiny-Q4_K_M" in err
    asked = len(server.requests)
    code, again, _ = command.run("pull", f"hf:{REPO}")
    assert (code, again) == (0, out)
    assert not [r for r in server.requests[asked:] if r[0] == "GET" and r[1].endswith(".gguf")], "fetched twice"
    code, out, _ = command.run("list")
    assert f"{len(MODEL) / (1 << 20):.1f} MiB  here   hugging face  {path}" in out
    code, _, err = command.run("pull", f"hf:{REPO}:Q8_0", HF_HUB_OFFLINE="1")
    assert code == 1
    assert err.strip() == (
        f"error: HF_HUB_OFFLINE is set and {REPO} is not in the cache: unset it to download, or give a file"
    )
    code, out, _ = command.run("rm", "tiny-q4_k_m")
    assert (code, path.exists(), path.is_symlink()) == (0, False, False)
    assert not [p for p in path.parents[2].rglob("*") if p.is_file() and p.stat().st_size > 10_000]


def test_a_killed_download_goes_on_where_it_was(command: Command, server: Hub, tmp_path: Path) -> None:
    half = 22 << 20
    server.cut["tiny-Q4_K_M.gguf"] = half
    child = command.start("pull", f"hf:{REPO}")
    assert server.has_stopped.wait(60)
    until = time.monotonic() + 60
    while not [p for p in tmp_path.rglob("*.incomplete") if p.stat().st_size] and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    server.release.set()
    code, out, err = command.run("pull", f"hf:{REPO}")
    assert code == 0, err
    assert Path(out.strip()).read_bytes() == MODEL
    assert 0 < last_start(server) <= half


def test_a_pull_says_how_far_it_is(command: Command) -> None:
    code = (
        "from node.models import hub; "
        f"hub.pull(hub.parse('hf:{REPO}'), lambda _: None, lambda what, share: print(share, what))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command.environ, capture_output=True, text=True, timeout=120, check=True
    )
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert {what for _, what in told} == {"fetching tiny-Q4_K_M.gguf"}
    shares = [float(share) for share, _ in told]
    assert shares == sorted(shares)
    assert len(shares) > 2
    assert shares[-1] == 1.0
    assert done.stderr == "", "the library's own bar is not shown beside it"


def last_start(server: Hub) -> int:
    """Where the last download of the model began; 0 if from its beginning."""
    asked = [r for method, path, r in server.requests if method == "GET" and path.endswith("Q4_K_M.gguf")]
    return int(asked[-1].removeprefix("bytes=").split("-")[0] or 0)


def test_a_broken_connection_is_resumed(command: Command, server: Hub) -> None:
    half = 22 << 20
    server.cut["tiny-Q4_K_M.gguf"] = half
    server.release.set()  # it closes the connection in the middle
    code, out, err = command.run("pull", f"hf:{REPO}")
    assert code == 0, err
    assert Path(out.strip()).read_bytes() == MODEL
    assert 0 < last_start(server) <= half


def test_a_file_that_is_not_what_the_hub_says(command: Command, server: Hub) -> None:
    server.claims["tiny-Q4_K_M.gguf"] = "0" * 64
    code, _, err = command.run("pull", f"hf:{REPO}")
    assert code == 1
    assert "error: tiny-Q4_K_M.gguf came damaged" in err
    del server.claims["tiny-Q4_K_M.gguf"]
    code, out, _ = command.run("pull", f"hf:{REPO}")
    assert code == 0
    assert len([r for r in server.requests if r[0] == "GET" and r[1].endswith("Q4_K_M.gguf")]) == 2
    assert Path(out.strip()).read_bytes() == MODEL


def test_checksums_without_a_download(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a file's name; nothing where the hub does not answer."""
    from huggingface_hub import HfApi

    def at(url: str) -> None:
        monkeypatch.setattr(HfApi.__init__, "__defaults__", (url, *(HfApi.__init__.__defaults__ or (None,))[1:]))

    at(server.url)
    found = hub.sums(REPO)
    assert found["tiny-Q4_K_M.gguf"] == (len(MODEL), hashlib.sha256(MODEL).hexdigest())
    assert "README.md" not in found
    assert hub.sums("someone/nothing") == {}
    at("http://127.0.0.1:9")
    assert hub.sums(REPO) == {}


def test_what_the_hub_refuses(command: Command, server: Hub) -> None:
    server.gated.add(REPO)
    _, _, err = command.run("pull", f"hf:{REPO}")
    assert err.strip().startswith(
        f"error: {REPO} is gated: accept its terms at https://huggingface.co/{REPO}, then set"
    )
    code, _, _ = command.run("pull", f"hf:{REPO}", HF_TOKEN="hf_secret")
    assert code == 0
    _, _, err = command.run("pull", "hf:someone/nothing")
    assert err.strip().startswith("error: someone/nothing is not on the hub, or is private")
    _, _, err = command.run("pull", f"hf:{REPO}", HF_ENDPOINT="http://127.0.0.1:9")
    assert "could not be fetched" in err
    assert len(err.strip().splitlines()) == 1


FILES = [RemoteFile(f"m-{q}.gguf", 1) for q in ("Q8_0", "q4_k_m", "Q4_K_S", "F16", "IQ4_XS")]


@pytest.mark.parametrize(("asked", "chosen"), [
    ("hf:a/b", "m-q4_k_m.gguf"), ("hf:a/b:q8_0", "m-Q8_0.gguf"), ("hf:a/b:Q4_K_S", "m-Q4_K_S.gguf"),
    ("hf:a/b/m-F16.gguf", "m-F16.gguf"), ("hf:a/b:iq4_xs", "m-IQ4_XS.gguf"),
])  # fmt: skip
def test_which_file_is_meant(asked: str, chosen: str) -> None:
    assert [f.name for f in hub.choose(FILES, hub.parse(asked))] == [chosen]


def test_split_files_come_together() -> None:
    files = [RemoteFile(f"q4/m-Q4_K_M-0000{i}-of-00003.gguf", 1) for i in (3, 1, 2)]
    assert len(hub.choose(files, Reference("a/b"))) == 3


def test_what_a_repository_lacks() -> None:
    with pytest.raises(NotFound, match="has no Q5_K_M: it has F16, IQ4_XS"):
        hub.choose(FILES, Reference("a/b", "Q5_K_M"))
    with pytest.raises(NotFound, match="no GGUF file"):
        hub.choose([RemoteFile("model.safetensors", 1)], Reference("a/b"))
    only = [RemoteFile("odd-name.gguf", 1)]
    assert hub.choose(only, Reference("a/b")) == only


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/b:Q4 K", "hf:a/b\n"])
def test_no_repository(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no repository"):
        hub.parse(text)


def test_the_disk_is_looked_at_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing counts, not what an earlier attempt left."""
    blobs = tmp_path / "models--someone--Tiny-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    whole, begun, new = RemoteFile("a", 100, "a" * 64), RemoteFile("b", 100, "b" * 64), RemoteFile("c", 100, "c" * 64)
    (blobs / whole.sha256).write_bytes(bytes(100))
    (blobs / f"{begun.sha256}.conclave.incomplete").write_bytes(bytes(30))
    assert hub._missing(tmp_path, REPO, [whole, begun, new, RemoteFile("d", 5)]) == 175
    assert hub._missing(tmp_path / "none", REPO, [whole]) == 100
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, partial.RESERVE + 10**9))
    partial.check_space(tmp_path / "not" / "there", 10**9, REPO, "set HF_HOME to another")
    with pytest.raises(NotReady, match=r"needs 1\.00 GB more and the disk of .* has 1\.07 GB free: .*set HF_HOME"):
        partial.check_space(tmp_path, 10**9 + 1, REPO, "set HF_HOME to another")
