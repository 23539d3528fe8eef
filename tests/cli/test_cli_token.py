"""`token`: shown, made, and never replaced by mistake."""

import time
from pathlib import Path

import pytest
from fakenode import Run

from node.mesh import identity
from node.mesh.identity import new_token, parse_token


def test_there_is_none_at_first(run: Run, own_home: Path) -> None:
    done = run("token", "show")
    assert (done.code, done.out) == (1, "")
    assert "no token yet" in done.err
    assert not own_home.exists()


def test_made_shown_and_kept(run: Run, own_home: Path) -> None:
    made = run("token", "new")
    assert made.code == 0
    parse_token(made.out)
    assert (own_home / "config/token").stat().st_mode & 0o777 == 0o600
    shown = run("token")
    assert shown.out == made.out
    assert f"python -m node --join auto --token {made.out.strip()}" in shown.err
    again = run("token", "new")
    assert (again.code, again.out) == (2, "")
    assert "--yes" in again.err
    assert run("token", "show").out == made.out
    assert run("token", "new", "--yes").out != made.out
    assert run("token", "show").out != made.out


def test_print_stores_nothing(run: Run, own_home: Path) -> None:
    printed = run("token", "new", "--print")
    parse_token(printed.out)
    assert printed.err == ""
    assert not own_home.exists()


def test_the_one_that_a_node_would_use_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    token = new_token()
    monkeypatch.setenv("CONCLAVE_TOKEN", token)
    assert run("token", "show").out == token + "\n"


def test_a_damaged_one_is_said_to_be(run: Run, own_home: Path) -> None:
    (own_home / "config").mkdir(parents=True)
    (own_home / "config/token").write_text("clv1-short\n")
    done = run("token", "show")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "clv1-short" not in done.err


def test_a_new_one_with_an_overlap_cuts_nobody_off(run: Run, own_home: Path) -> None:
    first = run("token", "new").out.strip()
    done = run("token", "new", "--overlap", "24")
    assert (done.code, "The old token is accepted until" in done.err) == (0, True)
    assert "start the nodes of this machine again" in done.err
    assert "machines with the one before are taken until" in run("doctor").out
    old = identity.load_old_token(own_home / "config", time.time())
    assert old is not None
    assert old.token == first
    assert old.until == pytest.approx(time.time() + 86400, abs=60)
    assert run("token", "show").out.strip() == done.out.strip() != first
    again = run("token", "new", "--overlap", "24")
    assert (again.code, again.out, again.err.count("\n")) == (2, "", 1)
    assert "is accepted until" in again.err
    assert "--yes" in again.err
    assert identity.load_old_token(own_home / "config", time.time()) == old
    sure = run("token", "new", "--overlap", "1", "--yes")
    assert (sure.code, run("token", "show").out) == (0, sure.out)
    assert run("token", "new", "--yes").code == 0  # without an overlap nothing old is accepted any more
    assert identity.load_old_token(own_home / "config", 0.0) is None
