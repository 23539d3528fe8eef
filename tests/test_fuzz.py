"""A short run of scripts/fuzz_snapshots.py, in processes of its own: what passes the checks reaches native code."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_mutated_snapshots_crash_nothing_and_nothing_wrong_passes() -> None:
    command = [sys.executable, "scripts/fuzz_snapshots.py", "--count", "2000", "--workers", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["mutations"], found["failed"]) == (2000, 0)
    # The mutations reach every check, and the sound and the forged ones the model behind them.
    reasons = ("malformed", "size", "checksum", "keys", "tokens", "cuts", "layout", "fingerprint", "missing", "numbers")
    assert all(found[reason] > 10 for reason in reasons)
    assert found["a lie with the secret, refuted by the probe"] > 10
    assert found["checksum, checksums put right without the secret"] > 50
