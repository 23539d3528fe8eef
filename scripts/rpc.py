"""A llama-cpp-python with llama.cpp's RPC backend, beside the one in .venv: prints the folder, for PYTHONPATH.

The wheel is that of `make run RPC=1`, built if need be and kept in the same cache; here it is only unpacked.
"""

import os
import shutil
import sys
import zipfile
from pathlib import Path

from install import paths, wheel
from install.console import SetupError


def folder() -> Path:
    """The unpacked wheel. Raises SetupError."""
    os.environ["CMAKE_ARGS"] = wheel.with_rpc(os.environ.get("CMAKE_ARGS", ""), "1")
    built = wheel.ensure(Path(sys.executable))
    target = paths.CACHE / "rpc" / wheel.key()
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(built) as archive:
            archive.extractall(part)
        try:
            part.rename(target)
        except OSError:  # another run was quicker
            shutil.rmtree(part)
    return target


def main() -> int:
    """Print where it is; progress goes to stderr."""
    real, sys.stdout = sys.stdout, sys.stderr
    try:
        print(folder(), file=real)
    except SetupError as error:
        print(f"rpc: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
