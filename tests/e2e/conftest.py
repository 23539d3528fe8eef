"""Swarms for the tests: those that tests only ask are shared, those that tests break are their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from swarm import Node, Swarm, slow, swarm


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Swarm]:
    """A home of the test's own, with no node in it yet."""
    with swarm(tmp_path / "home") as made:
        yield made


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Swarm, list[Node]]]:
    """Two nodes with the bundled model, started by the one command that everyone starts with."""
    with swarm(tmp_path_factory.mktemp("llamas")) as made:
        yield made, made.up(2, "--join", "auto")


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Swarm, list[Node]]]:
    """Two nodes whose answers come at once and do not matter."""
    with swarm(tmp_path_factory.mktemp("fakes")) as made:
        yield made, made.up(2, "--backend", "fake")


@pytest.fixture(scope="session")
def slows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Swarm, list[Node]]]:
    """Two nodes that need about eight seconds for an answer; no test waits for one."""
    with swarm(tmp_path_factory.mktemp("slows")) as made:
        yield made, made.up(2, *slow(160, 20, "42", "41"))
