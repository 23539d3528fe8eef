"""Nodes of one machine in the runtime directory, and the directories of a user."""

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from meshnode import until

from node.errors import InvalidRequest
from node.home import DataDir, Home, home, private_dir, remedy
from node.mesh import local
from node.mesh.local import MAX_BYTES, Presence, RunningNode, network, running_nodes, starting_nodes, watch


def node(id: str = "a" * 10, started: float = 1.0) -> RunningNode:
    return RunningNode(id, os.getpid(), "0" * 16, "127.0.0.1:1", "127.0.0.1:2", started)


class TestPresence:
    def test_published_until_withdrawn(self, tmp_path: Path) -> None:
        a, b = Presence(tmp_path), Presence(tmp_path)
        b.publish(node("b" * 10, 2.0))
        a.publish(node())
        assert running_nodes(tmp_path) == [node(), node("b" * 10, 2.0)]
        file = tmp_path / "nodes" / ("a" * 10 + ".json")
        assert file.stat().st_mode & 0o777 == 0o600
        a.publish(node(started=3.0))
        assert running_nodes(tmp_path) == [node("b" * 10, 2.0), node(started=3.0)]
        a.withdraw()
        a.withdraw()
        b.withdraw()
        assert running_nodes(tmp_path) == []
        assert list((tmp_path / "nodes").iterdir()) == []

    def test_a_node_that_loads_its_model_is_no_running_one(self, tmp_path: Path) -> None:
        early, late = Presence(tmp_path), Presence(tmp_path)
        loading = replace(node(), mesh_address="", local_address="", is_starting=True)
        early.publish(loading)
        assert (running_nodes(tmp_path), starting_nodes(tmp_path)) == ([], [loading])
        late.publish(node())
        early.withdraw()
        assert (running_nodes(tmp_path), starting_nodes(tmp_path)) == ([node()], [])
        late.withdraw()

    def test_a_node_of_another_network_namespace_is_not_here(self, tmp_path: Path) -> None:
        """Its 127.0.0.1 is another one: containers of one user share /tmp."""
        presence = Presence(tmp_path)
        presence.publish(replace(node(), network="4:1"))
        assert running_nodes(tmp_path) == []
        assert len(list((tmp_path / "nodes").iterdir())) == 1, "it lives, so its file stays"
        presence.publish(replace(node(), network=network()))
        assert [n.node_id for n in running_nodes(tmp_path)] == ["a" * 10]
        presence.withdraw()

    @pytest.mark.skipif(sys.platform != "linux", reason="there are namespaces on Linux only")
    def test_namespaces_have_names(self) -> None:
        assert network() == network() != ""

    def test_a_killed_node_is_gone(self, tmp_path: Path) -> None:
        code = (
            "import os, sys, pathlib; from node.mesh.local import *\n"
            "p = Presence(pathlib.Path(sys.argv[1]))\n"
            "p.publish(RunningNode('a' * 10, os.getpid(), '', '', '', 1.0))\n"
            "assert len(running_nodes(pathlib.Path(sys.argv[1]))) == 1\n"
            "os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=90).returncode == -9
        assert len(list((tmp_path / "nodes").iterdir())) == 1
        assert running_nodes(tmp_path) == []
        assert list((tmp_path / "nodes").iterdir()) == []

    def test_removed_by_another_it_comes_back(self, tmp_path: Path) -> None:
        presence = Presence(tmp_path)
        presence.publish(node())
        (tmp_path / "nodes" / ("a" * 10 + ".json")).unlink()
        presence.keep()
        assert running_nodes(tmp_path) == [node()]
        presence.withdraw()

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", "{}", '{"node_id": 1}', "x" * (MAX_BYTES + 1), json.dumps({"node_id": ["a"]})]
    )
    def test_nonsense_is_not_shown(self, tmp_path: Path, text: str) -> None:
        import fcntl

        presence = Presence(tmp_path)
        presence.publish(node())
        with open(tmp_path / "nodes" / "b.json", "w") as f:
            f.write(text)
            f.flush()
            fcntl.flock(f, fcntl.LOCK_EX)
            assert running_nodes(tmp_path) == [node()]
        presence.withdraw()

    def test_no_directory_no_nodes(self, tmp_path: Path) -> None:
        assert running_nodes(tmp_path / "none") == []

    async def test_watch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local, "LOOK_S", 1e9)  # it looks because of what changed, and not in any case
        seen: list[RunningNode] = []
        task = asyncio.create_task(watch(tmp_path, seen.append))
        await asyncio.sleep(0.05)
        presence = Presence(tmp_path)
        presence.publish(node())
        await until(lambda: seen == [node()])
        other = Presence(tmp_path)
        other.publish(node("b" * 10))
        await until(lambda: len(seen) == 2)
        os.utime(tmp_path / "nodes", (time.time() - 60, time.time() - 60))
        await asyncio.sleep(1.2)  # it has looked at that
        other.publish(replace(node("b" * 10), http_address="127.0.0.1:1"))
        await until(lambda: len(seen) == 3)
        task.cancel()
        presence.withdraw()
        other.withdraw()


class TestHome:
    def test_all_under_one_directory(self, tmp_path: Path) -> None:
        here = home({"CONCLAVE_HOME": str(tmp_path)})
        assert here == Home(tmp_path / "config", tmp_path / "data", tmp_path / "run")

    def test_what_can_be_no_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "file"
        file.write_text("")
        for own in (file, file / "below"):
            with pytest.raises(InvalidRequest, match=f"^CONCLAVE_HOME is {own}, and {file} is no directory: set it to"):
                home({"CONCLAVE_HOME": str(own)})
        monkeypatch.setenv("CONCLAVE_HOME", "/proc/x")
        with pytest.raises(InvalidRequest, match="CONCLAVE_HOME is /proc/x: set it to a directory"):
            private_dir(file / "below")
        monkeypatch.delenv("CONCLAVE_HOME")
        with pytest.raises(InvalidRequest, match="or set CONCLAVE_HOME to a directory"):
            private_dir(file / "below")
        assert "free some space" in remedy(OSError(errno.ENOSPC, "full"))

    @pytest.mark.skipif(sys.platform != "linux", reason="XDG")
    def test_xdg(self, tmp_path: Path) -> None:
        env = {"HOME": "/home/u", "XDG_DATA_HOME": "/data", "XDG_CONFIG_HOME": "relative"}
        here = home({**env, "XDG_RUNTIME_DIR": str(tmp_path)})
        assert here == Home(Path("/home/u/.config/conclave"), Path("/data/conclave"), tmp_path / "conclave")
        assert str(os.getuid()) in str(home(env).runtime)

    def test_private(self, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir(mode=0o755)
        assert private_dir(tmp_path / "open").stat().st_mode & 0o777 == 0o700
        (tmp_path / "link").symlink_to(tmp_path / "open")
        with pytest.raises(InvalidRequest, match="link"):
            private_dir(tmp_path / "link")
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidRequest, match="CONCLAVE_HOME"):
            private_dir(tmp_path / "file" / "below")

    def test_each_node_takes_the_next_free_data_directory(self, tmp_path: Path) -> None:
        here = Home(tmp_path, tmp_path / "data", tmp_path)
        first, second = DataDir(here), DataDir(here)
        assert (first.path.name, second.path.name) == ("node-0", "node-1")
        first.release()
        first.release()
        third = DataDir(here)
        assert third.path.name == "node-0"
        with pytest.raises(InvalidRequest, match=f"process id {os.getpid()}: stop that node"):
            DataDir(here, third.path)
        own = DataDir(here, tmp_path / "own")
        assert own.path == tmp_path / "own"
        for d in (second, third, own):
            d.release()
