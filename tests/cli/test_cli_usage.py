"""Wrong usage is one line that says what is wrong, and exit code 2; help and version are there."""

import pytest
from fakenode import FakeNode, Run

from node import wire
from node.cli import commands, readers
from node.cli.commands import COMMANDS
from node.config import Config


def is_one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err


WRONG = {
    "unknown flag": (["ask", "x", "--candidats", "3"], "--candidats is not a flag", "did you mean --candidates?"),
    "unknown flag of serve": (["--joni", "auto"], "--joni is not a flag", "did you mean --join?"),
    "abbreviated flag": (["ask", "x", "--cand", "3"], "--cand is not a flag", ""),
    "a command of others": (["ps"], "'ps' is not a command", "python -m node status` does that"),
    "unlike any flag": (["status", "--bogus"], "--bogus is not a flag of this command; ", ""),
    "two ports": (["--port", "80", "--http-port", "80"], "--port and --http-port are both 80", ""),
    "threads": (["--threads", "-3"], "--threads is -3: it must be 0 (automatic) or 1 to 512", ""),
    "no port": (["pair", "123456", "--at", "localhost"], "'localhost' is not an address: its port is missing", ""),
    "no port, and a slip": (["status", "--address", "lacolhost"], "is not an address: its port is missing", ""),
    "unknown command": (["aks", "x"], "'aks' is not a command", "did you mean ask?"),
    "no value": (["ask", "x", "--seed"], "--seed", "expected one argument"),
    "candidates 0": (["ask", "x", "--candidates", "0"], "candidates is 0: it must be 1 to 64", ""),
    "candidates negative": (["ask", "x", "--candidates", "-1"], "candidates is -1: it must be 1 to 64", ""),
    "candidates many": (["ask", "x", "--candidates=10000"], "candidates is 10000: it must be 1 to 64", ""),
    "candidates a word": (["ask", "x", "-n", "many"], "candidates is 'many'", "whole number"),
    "max tokens": (["ask", "x", "--max-tokens", "-5"], "max-tokens is -5: it must be 1", ""),
    "seed": (["ask", "x", "--seed", "-1"], "seed is -1", ""),
    "temperature": (["ask", "x", "--temperature", "nan"], "temperature is nan: it must be 0 to 10", ""),
    "timeout": (["ask", "x", "--timeout", "0"], "timeout is 0", ""),
    "strategy": (["ask", "x", "--strategy", "majorty"], "strategy 'majorty' is unknown", "did you mean majority?"),
    "strategy unlike any": (["ask", "x", "--strategy", "zzz"], "strategy 'zzz' is unknown", "similarity"),
    "address": (["status", "--address", "here"], "'here' is not an address", "127.0.0.1:7420"),
    "port of an address": (["status", "--address", "127.0.0.1:99999"], "is not an address", ""),
    "topic empty": (["ask", "x", "--topic", " "], "topic is empty", ""),
    "topic with control characters": (["ask", "x", "--topic", "a\x1bb"], "control characters", ""),
    "empty prompt": (["ask", ""], "prompt is empty", ""),
    "blank prompt": (["ask", " \n "], "prompt is empty", ""),
    "no prompt": (["ask"], "prompt is empty", ""),
    "prompt not UTF-8": (["ask", "caf\udce9"], "the prompt is not valid UTF-8", ""),
    "system not UTF-8": (["ask", "x", "--system", "\udce9"], "--system is not valid UTF-8", ""),
    "word too many": (["status", "please"], "'please' is one word too many", ""),
    "token action": (["token", "nwe"], "'nwe'", "did you mean new?"),
    "serve: port": (["--port", "high"], "--port is 'high': it must be a whole number", ""),
    "serve: backend": (["serve", "--backend", "cuda"], "--backend is 'cuda'", "auto, llama, "),
    "serve: interface": (["serve", "--interface", "eth0"], "--interface is 'eth0'", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_line(name: str, run: Run) -> None:
    argv, what, advice = WRONG[name]
    done = run(*argv)
    assert (done.code, done.out) == (2, "")
    assert is_one_line(done.err), done.err
    assert what in done.err
    assert advice in done.err


def test_limits_are_those_of_the_wire() -> None:
    assert (commands.MAX_CANDIDATES, readers.MAX_NAME_BYTES) == (wire.MAX_CANDIDATES, wire.MAX_NAME_BYTES)


def test_a_variable_at_fault_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCLAVE_MAX_TOKENS", "lots")
    done = run("ask", "x")
    assert done.code == 2
    assert "CONCLAVE_MAX_TOKENS is 'lots'" in done.err
    monkeypatch.setenv("CONCLAVE_JSON", "maybe")
    assert "CONCLAVE_JSON is 'maybe': it must be 1 or 0" in run("status").err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_with_its_words(command: str, run: Run) -> None:
    done = run(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: python -m node {command} [options]")
    assert "\x1b" not in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 120


def test_serve_has_a_flag_for_every_option(run: Run) -> None:
    out = run("serve", "--help").out
    assert all(f"--{name.replace('_', '-')}" in out for name in Config.__dataclass_fields__)


def test_overview_and_version(run: Run) -> None:
    out = run("--help").out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert run("help").out == out
    assert {run(v).out for v in ("--version", "-V", "version")} == {"conclave 0.1.0\n"}
    assert run("help", "ask").out == run("ask", "--help").out


def test_options_come_from_the_environment_too(run: Run, monkeypatch: pytest.MonkeyPatch, node: FakeNode) -> None:
    monkeypatch.setenv("CONCLAVE_ADDRESS", node.address)
    monkeypatch.setenv("CONCLAVE_CANDIDATES", "3")
    monkeypatch.setenv("CONCLAVE_TEMPERATURE", "0.5")
    monkeypatch.setenv("CONCLAVE_LOCAL", "1")
    monkeypatch.setenv("CONCLAVE_MODEL", "/a/path.gguf")  # a node's option, not that of a question
    assert run("ask", "x", "--candidates", "2").code == 0
    asked = node.requests[0]
    assert (asked.candidates, asked.params.temperature, asked.scope, asked.model) == (2, 0.5, 1, "")
    monkeypatch.setenv("CONCLAVE_CANDIDATES", "0")  # to a node this means its default
    assert run("ask", "x").code == 0
    assert node.requests[1].candidates == 0
