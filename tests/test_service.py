"""The files for running it for real name flags, metrics and paths that exist."""

from __future__ import annotations

import configparser
import json
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from node import metrics
from node.cli import parser

SERVICE = Path(__file__).resolve().parents[1] / "scripts" / "service"
ROOT = SERVICE.parents[1]


def is_understood(command: str) -> bool:
    """Whether our command line takes what follows the program."""
    words = shlex.split(command)
    parser.parse(words[1:], {}, "conclave")
    return words[0].endswith("/.venv/bin/conclave")


def test_the_systemd_unit(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string((SERVICE / "conclave.service").read_text())
    assert is_understood(unit["Service"]["ExecStart"])
    if shutil.which("systemd-analyze"):
        # It looks for the program too: one that is there.
        text = (SERVICE / "conclave.service").read_text().replace("%h/conclave/.venv/bin/conclave", sys.executable)
        (tmp_path / "conclave.service").write_text(text)
        env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
        command = ["systemd-analyze", "verify", "--user", "--man=no", str(tmp_path / "conclave.service")]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert "conclave.service" not in done.stderr, done.stderr


def test_the_launchd_agent() -> None:
    agent = plistlib.loads((SERVICE / "conclave.plist").read_bytes())
    shell, flag, command = agent["ProgramArguments"]
    assert (shell, flag) == ("/bin/sh", "-c")
    assert is_understood(command.removeprefix("exec ").partition(" 2>>")[0])
    assert agent["Umask"] == 0o077


@pytest.mark.parametrize(("name", "starts"), [("conclave.service", "ExecStart="), ("conclave.plist", 'exec "')])
def test_what_they_say_installs_them_with_the_folder_of_the_clone(name: str, starts: str, tmp_path: Path) -> None:
    text = (SERVICE / name).read_text()
    commands = re.findall(r"^[# ]+((?:mkdir|sed) .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    env = os.environ | {"HOME": str(tmp_path), "PWD": str(ROOT)}
    subprocess.run(["sh", "-ec", "\n".join(commands)], cwd=ROOT, env=env, check=True, timeout=60)
    [installed] = tmp_path.rglob(name)
    made = installed.read_text()
    assert f"{starts}{ROOT}/.venv/bin/conclave" in made
    assert made.count(str(ROOT)) > 1, "the comment says where it is too"
    if name.endswith(".plist"):
        assert plistlib.loads(made.encode())["Label"] == "conclave"


def test_the_dockerfile() -> None:
    text = (SERVICE / "Dockerfile").read_text()
    [command] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    [entry] = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    assert is_understood(shlex.join(json.loads(entry) + json.loads(command)))
    [health] = re.findall(r"CMD (\[.*status.*\])$", text, re.MULTILINE)
    assert is_understood(shlex.join(json.loads(health)))
    assert "\nsetup" in (ROOT / "Makefile").read_text()
    left_out = (SERVICE / "Dockerfile.dockerignore").read_text().splitlines()
    assert {".git", ".venv"} <= set(left_out)


def test_the_dashboard_asks_for_what_there_is() -> None:
    board = json.loads((SERVICE / "grafana.json").read_text())
    known = {name for family in metrics.REGISTRY.collect() for name in names_of(family)}
    asked = set(re.findall(r"\b(?:conclave|process)_[a-z_]+", json.dumps(board["panels"])))
    assert asked <= known | {"process_resident_memory_bytes"}, asked - known
    labels = {name for e in re.findall(r"by \(([^)]*)\)", json.dumps(board)) for name in e.split(", ")}
    assert labels <= {"le", "outcome", "code", "state", "finish_reason", "strategy", "direction", "reason"}
    spots = [p["gridPos"] for p in board["panels"]]
    assert all(s["x"] + s["w"] <= 24 for s in spots)


def names_of(family: object) -> list[str]:
    name, kind = family.name, family.type  # type: ignore[attr-defined]
    if kind == "counter":
        return [f"{name}_total"]
    return [f"{name}_{end}" for end in ("bucket", "sum", "count")] if kind == "histogram" else [name]


BASH = """
source <("{python}" -m node completion {shell} | grep -v autoload)
complete_() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _conclave; echo "${{COMPREPLY[*]}}"; }}
"""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("to", {"token", "topics"}),
        ("--backend l", {"llama"}),
        ("ask --str", {"--strategy"}),
        ("ask --strategy maj", {"majority"}),
        ("status --w", {"--watch"}),
        ("--http-p", {"--http-port"}),
        ("topics s", {"show"}),
        ("models p", {"plan", "pull"}),
        ("completion z", {"zsh"}),
        ("--model --no", set()),  # any value may follow: the shell offers files
    ],
)
def test_bash_completes(shell: str, words: str, expected: set[str]) -> None:
    script = BASH.format(python=sys.executable, shell=shell) + f"complete_ conclave {words}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


def test_fish_and_what_is_no_shell() -> None:
    from node.cli import main

    assert main(["completion", "csh"]) == 2
    done = subprocess.run(
        [sys.executable, "-m", "node", "completion", "fish"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "complete -c conclave -n __fish_use_subcommand -a ask -d 'one question, one answer'" in done.stdout
    assert "-l http-port" in done.stdout
