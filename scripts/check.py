"""What is checked without running Conclave: each check says ok, or what it found. All run, whatever fails."""

import os
import shutil
import subprocess
import sys
import time

from install.paths import ROOT

PYTHON = sys.executable
CHECKS: dict[str, list[str]] = {
    "lint": [PYTHON, "-m", "ruff", "check", "--quiet", "--output-format", "concise", "."],
    "format": [PYTHON, "-m", "ruff", "format", "--check", "."],
    "types": [PYTHON, "-m", "mypy", "--no-error-summary"],
    "generated code": [PYTHON, "scripts/proto.py", "fresh"],
    "proto rules": [PYTHON, "scripts/proto.py", "lint"],
    "proto changes": [PYTHON, "scripts/proto.py", "breaking"],
    "layers": [PYTHON, "-m", "pytest", "-q", "--no-header", "tests/test_layers.py"],
}
NEED_NPM = ("proto rules",)


def main() -> int:
    """Run all checks; 1 if any failed."""
    failed = []
    for name, argv in CHECKS.items():
        if name in NEED_NPM and not shutil.which("npm") and not os.environ.get("CI"):
            print(f"skip  {name}: npm was not found, and buf comes from it: install Node.js with npm to run this check")
            continue
        started = time.monotonic()
        done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        seconds = time.monotonic() - started
        if done.returncode == 0:
            print(f"ok    {name} ({seconds:.1f} s)", flush=True)
        else:
            failed.append(name)
            print(f"FAIL  {name} ({seconds:.1f} s)\n{done.stdout.rstrip()}", flush=True)
    if failed:
        print(f"check: {', '.join(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
