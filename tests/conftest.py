"""Tests side by side: each worker of pytest-xdist has a network of its own, so that no node meets another worker's.

What hypothesis tries is the same in every run, and takes as long as it takes: a run that fails can be repeated. New
examples, by chance, come with `make test ARGS=--hypothesis-profile=chance`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

import pytest
from chaos.lan import CLONE_NEWNET, unavailable
from hypothesis import HealthCheck, settings

settings.register_profile("chance", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("chance"), derandomize=True, database=None)
settings.load_profile("same")

# Tests start hundreds of processes: where the environment forbids bytecode, each would compile all of this anew, which
# takes a third of the tests' time. `make clean` removes it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What a script starts in its background ignores ^C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
