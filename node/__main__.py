"""`python -m node`: find the environment that set-up made, then hand over to the command line.

Everything up to `main` must parse on any Python 3: an old interpreter should get one clear line, not a syntax error.
"""

import gc
import importlib.util
import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_VENV_PYTHON = os.path.join(_ROOT, ".venv", "bin", "python")
# Says that this process is already the one in .venv, so that a damaged .venv cannot start itself for ever.
# No CONCLAVE_ prefix: those are the names of options.
_GUARD = "_CONCLAVE_VENV"
_NEEDED = ("cryptography", "google", "grpc", "llama_cpp", "lz4", "msgpack", "numpy", "psutil", "rich", "zeroconf")


def _ready() -> bool:
    """Whether this interpreter can run Conclave."""
    return sys.version_info >= (3, 11) and all(importlib.util.find_spec(name) for name in _NEEDED)


def _enter_venv() -> None:
    """Replace this process by the same command under .venv, or say what is missing and exit."""
    is_checkout = os.path.exists(os.path.join(_ROOT, "Makefile"))
    if os.path.exists(_VENV_PYTHON) and _GUARD not in os.environ:
        os.environ[_GUARD] = "1"
        sys.stdout.flush()
        os.execv(_VENV_PYTHON, [_VENV_PYTHON, "-m", "node"] + sys.argv[1:])
    if _GUARD in os.environ:
        problem = "Conclave's set-up did not finish: run `make run` in {}".format(_ROOT)
    elif is_checkout:
        problem = "Conclave is not installed yet: run `make run` in {}".format(_ROOT)
    elif sys.version_info < (3, 11):
        problem = "Conclave needs Python 3.11 or newer, and this is {}: use a newer one".format(sys.version.split()[0])
    else:
        # No `pip install conclave` here: that name belongs to somebody else on PyPI.
        missing = ", ".join(name for name in _NEEDED if not importlib.util.find_spec(name))
        problem = "Conclave's dependencies are missing ({}): run `make run` in its clone".format(missing)
    sys.exit(problem)


def main() -> int:
    """Run the command line and return its exit code."""
    if not _ready():
        _enter_venv()
    os.environ.pop(_GUARD, None)
    gc.disable()  # until the command is loaded: modules are no garbage, and looking for some takes a tenth of the time
    from node.cli import main as run

    code = run()
    gc.freeze()  # what is left goes with the process: to take it apart first is a fifth of what a short command takes
    return code


if __name__ == "__main__":
    sys.exit(main())
