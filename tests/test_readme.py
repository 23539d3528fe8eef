"""What README.md names is there: flags, commands, targets of make, and files."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from node.cli import parser
from node.cli.commands import COMMANDS
from node.config import Config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# Of other programs: buf, pytest, the benchmarks.
FOREIGN = {"--protocol", "--http2-prior-knowledge", "--list-methods", "--reflect", "--quick"}


def flags() -> set[str]:
    """All flags of all commands."""
    of_commands = {flag for command in COMMANDS.values() for flag in parser.words(command).flags}
    return of_commands | {f"--{f.name.replace('_', '-')}" for f in fields(Config)}


def test_flags() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README)) - FOREIGN
    assert len(named) > 20
    assert named <= flags()


def test_variables() -> None:
    named = {v for v in re.findall(r"\bCONCLAVE_[A-Z_]+\b", README) if v not in ("CONCLAVE_HOME", "CONCLAVE_API_KEY")}
    assert named
    assert {f"--{v.removeprefix('CONCLAVE_').lower().replace('_', '-')}" for v in named} <= flags()


def test_commands() -> None:
    named = re.findall(r"(?:python -m node|conclave) ([a-z]+)\b", README)
    assert {"ask", "pair", "models", "token"} <= set(named) <= set(COMMANDS)


def test_targets_of_make() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "test", "check"} <= named <= there


@pytest.mark.parametrize("file", ["README.md", "scripts/bench/RESULTS.md", "node/models/bundled/README.md"])
def test_links_lead_to_files(file: str) -> None:
    found = re.findall(r"\]\((?!https?:)([^)#\s]+)", (ROOT / file).read_text())
    assert [link for link in found if not ((ROOT / file).parent / link).exists()] == []
