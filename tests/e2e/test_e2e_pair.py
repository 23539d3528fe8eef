"""`pair` as two people at two machines use it."""

from __future__ import annotations

import re
from pathlib import Path

from swarm import SOON_S, Swarm


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
    done = there.run("pair", *code.split(), "--at", at)
    assert done.code == 0, done.err
    assert there.run("token", "show").out.strip() == token
    assert token not in done.out + done.err
    _, err = showing.communicate(timeout=SOON_S)
    assert showing.returncode == 0, err
    assert "a wrong code was typed" in err.decode()
    again = there.run("pair", *code.split(), "--at", at)
    assert (again.code, "has a token already" in again.err) == (2, True)
    again = there.run("pair", *code.split(), "--at", at, "--yes")
    assert (again.code, "nothing shows a code" in again.err) == (1, True)
    assert there.run("pair", "12345").err.startswith("error: a code has 6 digits")
