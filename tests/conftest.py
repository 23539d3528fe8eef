"""Tests side by side: each worker of pytest-xdist has a network of its own, so that no node meets another worker's."""

from __future__ import annotations

import ctypes
import os
import subprocess

import pytest
from chaos.lan import CLONE_NEWNET, unavailable

# Nodes of the tests are processes of their own, and mostly wait: more workers than cores keep the cores busy. Beyond a
# few, tests that measure a second or two would be late.
MOST = 4


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many workers `make test` has: one a core and one more, or none beside each other where they would meet."""
    return 0 if unavailable() else min((os.cpu_count() or 1) + 1, MOST)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") and not unavailable():
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):  # of this thread, which is the one that tests
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
