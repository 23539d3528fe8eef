"""Swarms for the tests: those that tests only ask are shared, those that tests break are their own.

A test that shares nodes meets what others left: it asks for its own topics, and counts what grew. It finds the nodes
alive and in each other's view, whatever came before.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from swarm import Node, Swarm, slow, swarm, together

Pair = tuple[Swarm, list[Node]]
TOLD = 4000  # characters of a node's log that are shown with a test that failed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure what its nodes wrote: on another machine nobody can look."""
    report = yield
    if report.failed:
        given = getattr(item, "funcargs", {}).values()
        for path in dict.fromkeys(path for each in given for path in _logs(each) if path.exists()):
            report.sections.append((f"{path.parent.name}/{path.name}", path.read_text(errors="replace")[-TOLD:]))
    return report


def _logs(given: Any) -> list[Path]:
    """The logs of nodes that a fixture gave: a swarm, here or of hosts on a switch, or one with its nodes."""
    made = given[0] if isinstance(given, tuple) and given else given
    nodes = getattr(made, "nodes", None) or getattr(made, "machines", None)
    return [each.log for each in nodes if isinstance(each.log, Path)] if isinstance(nodes, list) else []


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Swarm]:
    """A home of the test's own, with no node in it yet."""
    with swarm(tmp_path / "home") as made:
        yield made


@pytest.fixture(scope="session")
def shared_llamas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with swarm(tmp_path_factory.mktemp("llamas")) as made:
        yield made, made.up(2, "--join", "auto")


@pytest.fixture(scope="session")
def shared_fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with swarm(tmp_path_factory.mktemp("fakes")) as made:
        yield made, made.up(2, "--backend", "fake")


@pytest.fixture(scope="session")
def shared_slows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with swarm(tmp_path_factory.mktemp("slows")) as made:
        yield made, made.up(2, *slow(1200, 20, "42", "41"))


@pytest.fixture
def llamas(shared_llamas: Pair) -> Pair:
    """Two nodes with the bundled model, started by the one command that everyone starts with."""
    together(*shared_llamas[1])
    return shared_llamas


@pytest.fixture
def fakes(shared_fakes: Pair) -> Pair:
    """Two nodes whose answers come at once and do not matter."""
    together(*shared_fakes[1])
    return shared_fakes


@pytest.fixture
def slows(shared_slows: Pair) -> Pair:
    """Two nodes that need a minute for an answer; no test waits for one."""
    together(*shared_slows[1])
    return shared_slows
