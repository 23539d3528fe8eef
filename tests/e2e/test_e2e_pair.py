"""`pair` as two people at two machines use it."""

from __future__ import annotations

import re
from pathlib import Path

from swarm import SOON_S, Swarm, swarm, together, until

from node.mesh import unshared
from node.mesh.identity import load_token


def test_six_digits_carry_the_token(tmp_path: Path) -> None:
    here, there = Swarm(tmp_path / "here"), Swarm(tmp_path / "there")
    token = here.run("token", "new").out.strip()
    showing = here.popen("pair")
    assert showing.stdout is not None
    assert showing.stderr is not None
    code = showing.stdout.readline().decode().strip()
    assert re.fullmatch(r"\d{3} \d{3}", code)
    at = ""
    while not at:
        found = re.search(r"--at (\S+)", showing.stderr.readline().decode())
        at = found[1] if found else ""
    wrong = "111 111" if code != "111 111" else "222 222"
    refused = there.run("pair", *wrong.split(), "--at", at)
    assert (refused.code, refused.err) == (1, "error: the code is wrong: 2 of 3 tries are left\n")
    own = load_token(there.home / "config")  # as `make run` makes one, which no other machine has
    done = there.run("pair", *code.split(), "--at", at)
    assert done.code == 0, done.err
    assert "no other machine had" in done.err
    assert there.run("token", "show").out.strip() == token
    assert token not in done.out + done.err
    assert own not in done.out + done.err
    _, err = showing.communicate(timeout=SOON_S)
    assert showing.returncode == 0, err
    assert "a wrong code was typed" in err.decode()
    again = there.run("pair", *code.split(), "--at", at)
    assert (again.code, "has a token already" in again.err) == (2, True)
    again = there.run("pair", *code.split(), "--at", at, "--yes")
    assert (again.code, "nothing shows a code" in again.err) == (1, True)
    assert there.run("pair", "12345").err.startswith("error: a code has 6 digits")


def test_a_token_that_was_given_once_is_kept(own: Swarm, tmp_path: Path) -> None:
    """The line that the first node prints, on a machine that ran alone before; then both know of each other."""
    first = own.start("--backend", "fake", "--join", "none")
    own.ready(first)
    token = own.run("token", "show").out.strip()
    assert unshared.is_unshared(own.home / "config")
    with swarm(tmp_path / "other") as other:
        load_token(other.home / "config")
        second = other.start("--backend", "fake", "--join", first.mesh_address, "--token", token)
        other.ready(second)
        together(first, second)
        assert "the token is kept, in the place of its own" in second.said()
        assert other.run("token", "show").out.strip() == token
        assert not unshared.is_unshared(other.home / "config")
        until(lambda: not unshared.is_unshared(own.home / "config"), "the first knows that it shares its token")
