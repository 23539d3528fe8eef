#!/usr/bin/env python3
"""Set Conclave up in .venv: `setup.py [--dev]`. Safe to run again, and to interrupt, at any time.

This file must parse on any Python 3, because it may be started by one that is too old: it looks for a newer one
and hands over to `install/`, which does the work.
"""

import glob
import os
import subprocess
import sys

MINIMUM = (3, 11)
PROBE = (
    "import importlib.util as u, sys; "
    "sys.exit(0 if sys.version_info >= (3, 11) and u.find_spec('venv') and u.find_spec('ensurepip') else 1)"
)


def _usable(python):
    """Whether this interpreter is new enough and can make virtual environments (a pyenv shim may exist and not run)."""
    try:
        done = subprocess.call([python, "-I", "-c", PROBE], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done == 0


def _candidates():
    """Interpreters to try, best first: the one that runs this, then newer names on PATH, then the usual places."""
    yield sys.executable
    names = ["python3.13", "python3.12", "python3.14", "python3.11"]
    places = os.environ.get("PATH", "").split(os.pathsep) + ["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin"]
    for name in names:
        for place in places:
            path = os.path.join(place, name)
            if place and os.access(path, os.X_OK):
                yield path
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for name in names:
        for path in sorted(glob.glob(os.path.join(pyenv, "versions", name[6:] + "*", "bin", name)), reverse=True):
            yield path


def _install_hint(package, formula):
    """The command that installs a package here."""
    if sys.platform == "darwin":
        return "brew install " + formula
    for tool, command in (
        ("apt-get", "sudo apt-get install "),
        ("dnf", "sudo dnf install "),
        ("pacman", "sudo pacman -S "),
    ):
        if any(os.access(os.path.join(place, tool), os.X_OK) for place in ("/usr/bin", "/bin")):
            return command + (package if tool == "apt-get" else "python")
    return "install it from python.org"


def main():
    """Find a usable interpreter and run the installer with it."""
    for python in _candidates():
        if python != sys.executable and _usable(python):
            os.execv(python, [python] + sys.argv)
        if python == sys.executable and _usable(python):
            sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
            from install.steps import main as install

            return install(sys.argv[1:])
    version = "{}.{}".format(*sys.version_info)
    if sys.version_info >= MINIMUM:
        package = "python{}-venv".format(version)
        message = "Python {} cannot make virtual environments (ensurepip is missing): {}".format(
            version, _install_hint(package, "python")
        )
    else:
        message = "Conclave needs Python 3.11 or newer, and only {} was found: {}".format(
            version, _install_hint("python3.11 python3.11-venv", "python@3.13")
        )
    sys.stderr.write("set-up: " + message + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
