"""The token of three nodes is replaced, one machine after the other, while somebody asks all the time."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
from swarm import Node, Swarm, slow, together, until

FLAGS = (*slow(4, 40, "42"), "--http-port", "0")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nobody_is_cut_off(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        homes = []
        for name in "abc":
            made = Swarm(tmp_path / name)  # a machine each: they share no files
            stack.callback(made.close)
            homes.append(made)
        a, b, c = homes
        first = a.run("token", "new").out.strip()
        nodes = {"a": start(a)}
        nodes["b"] = start(b, "--token", first, "--join", nodes["a"].mesh_address)
        nodes["c"] = start(c, "--token", first, "--join", nodes["a"].mesh_address)
        together(*nodes.values())
        over, wrong = threading.Event(), []

        def ask(name: str) -> int:
            """How many nodes took part."""
            answer = nodes[name].client.ask("What is 6 * 7?", candidates=3, strategy="quality")
            if not answer.text.endswith("42"):
                wrong.append(answer.text)
            return len({x.node for x in answer.candidates})

        def ask_on() -> None:
            while not over.is_set():
                for name in names:
                    ask(name)

        def replaced(name: str, home: Swarm, *flags: str) -> None:
            """Start a node again while the others are asked."""
            names[:] = sorted(nodes.keys() - {name})
            over.clear()
            asking = threading.Thread(target=ask_on)
            asking.start()
            try:
                home.end(nodes[name])
                nodes[name] = start(home, *flags)
                together(*nodes.values())
            finally:
                over.set()
                asking.join()
            for each in nodes:  # one that stood still for a moment is not asked until it is trusted again
                until(lambda each=each: ask(each) == 3, "all three take part")  # type: ignore[misc]

        names: list[str] = []
        done = a.run("token", "new", "--overlap", "1")
        second = done.out.strip()
        assert "1. start the nodes of this machine again" in done.err
        replaced("a", a, "--join", nodes["b"].mesh_address)
        for name, home in (("b", b), ("c", c)):  # at first b has the new one and c the old one
            replaced(name, home, "--token", second, "--join", nodes["a"].mesh_address)
        assert wrong == []


def start(home: Swarm, *flags: str) -> Node:
    node = home.start(*FLAGS, *(flags if "--join" in flags else (*flags, "--join", "none")))
    home.ready(node)
    return node
