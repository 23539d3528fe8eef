"""A pytest plugin for llama-server's own tests: where they start llama-server, a node of ours starts instead.

What a test wants of the server (context, slots, an API key) becomes our flags where we have one. The model is the
bundled one, under the name that the test asks for. Nothing of the tests is changed.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

START_S = 60.0
_found: list[dict[str, Any]] = []
_model = "conclave-demo"


def pytest_collection_finish(session: pytest.Session) -> None:
    import utils  # llama-server's, beside its conftest.py

    utils.ServerProcess.start = _start
    utils.ServerProcess.stop = _stop
    utils.ServerPreset.load_all = staticmethod(lambda: None)  # its models are on Hugging Face


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _model
    source = inspect.getsource(item.function)  # type: ignore[attr-defined]
    named = re.search(r'model ?= ?"([\w.-]+)"|"model": "([\w.-]+)"', source)
    _model = (named[1] or named[2]) if named else "conclave-demo"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        line = ""
        if report.failed:
            line = getattr(report.longrepr, "reprcrash", None)
            line = line.message.splitlines()[0] if line else str(report.longrepr).splitlines()[-1]
        _found.append({"test": report.nodeid, "when": report.when, "outcome": report.outcome, "line": line[:160]})


def pytest_sessionfinish() -> None:
    Path(os.environ["CONFORMANCE_OUT"]).write_text(json.dumps(_found))


def _start(self: Any, timeout_seconds: float = START_S) -> None:
    import utils

    home = tempfile.mkdtemp(prefix="conformance-")
    model = Path(home) / f"{_model}.gguf"
    python = os.environ["CONFORMANCE_PYTHON"]
    rename = [python, "-m", "gguf.scripts.gguf_new_metadata", "--general-name", _model]
    subprocess.run([*rename, os.environ["CONFORMANCE_MODEL"], str(model)], env=_env(), check=True, capture_output=True)
    context = max((self.n_ctx or 512) // (1 if self.kv_unified else self.n_slots or 1), 64)
    flags = ["--join", "none", "--model", str(model), "--candidates", "1", "--ctx", str(min(context, 2048))]
    flags += ["--slots", str(self.n_slots or 2), "--http-port", str(self.server_port)]
    env = _env() | {"CONCLAVE_HOME": home, "CONCLAVE_INTERFACE": "127.0.0.1", "CONCLAVE_API_KEY": self.api_key or ""}
    root = os.environ["CONFORMANCE_ROOT"]
    log = (Path(home) / "log").open("wb")
    self.process = subprocess.Popen([python, "-m", "node", *flags], cwd=root, env=env, stdout=log, stderr=log)
    utils.server_instances.add(self)
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if self.process.poll() is not None:
            raise AssertionError(f"the node did not start: {(Path(home) / 'log').read_text()}")
        try:
            if self.make_request("GET", "/health", headers={}).status_code == 200:
                return
        except Exception:
            time.sleep(0.1)
    raise AssertionError("the node did not start in time")


def _env() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def _stop(self: Any) -> None:
    import utils

    utils.server_instances.discard(self)
    if self.process:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.process = None
