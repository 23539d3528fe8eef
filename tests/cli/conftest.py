"""A home of its own for each test, and a node made of canned messages."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakenode import FakeNode, Ran, Run

from node import cli


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees this machine's configuration, or leaves something in it."""
    for name in list(os.environ):
        if name.startswith("CONCLAVE_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CONCLAVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONCLAVE_INTERFACE", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def node() -> Iterator[FakeNode]:
    """A node that answers."""
    made = FakeNode()
    yield made
    made.stop()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, with a pipe for its input."""

    def command(*argv: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return command
