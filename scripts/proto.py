"""Generated protobuf code and the rules for the .proto files: `proto.py generate | fresh | lint | breaking`.

protoc runs with `-I proto`, so that proto/node/v1/x.proto becomes node/v1/x_pb2.py and imports itself as
`from node.v1 import …`.

Generated code refuses a protobuf or grpcio runtime that is older than its generator. So the generators are the oldest
versions that pyproject.toml allows, and they live in an environment of their own beside the wheel cache: the newest
runtime and the oldest generator cannot be installed together.
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from install.paths import CACHE, ROOT, clean_env, lock

# grpcio-tools brings protoc 6.31.1, so these are the lower bounds in pyproject.toml. The plug-in runs on this protobuf.
GENERATORS = ("grpcio-tools==1.76.0", "mypy-protobuf==5.1.0", "protobuf==6.33.6")
BUF = "1.75.0"
PROTO = ROOT / "proto"
TARGET = ROOT / "node" / "v1"
INIT = '"""Generated from proto/node/v1 by `make proto`; do not edit."""\n'


class ProtoError(Exception):
    """One line: what, why, what to do."""


def _provide(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder in the cache, filled once; `ready` is written last, so an interrupted one is filled again."""
    folder = CACHE / name
    with lock(name, f"Another process is installing {name}: waiting for it."):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            fill(folder)
            (folder / "ready").touch()
    return folder


def _run(argv: list[str], what: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise ProtoError(f"{what}:\n{said}")


def _generators() -> Path:
    def fill(folder: Path) -> None:
        print("installing the protobuf generators (once) ...", flush=True)
        _run([sys.executable, "-m", "venv", str(folder)], "the generators' environment could not be made")
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run([*pip, *GENERATORS], "the protobuf generators could not be installed", clean_env())

    return _provide("generators-" + "-".join(each.split("==")[1] for each in GENERATORS), fill)


def _generate(out: Path) -> None:
    """Write node/v1 below `out`."""
    tools = _generators() / "bin"
    sources = sorted(str(path) for path in PROTO.glob("node/v1/*.proto"))
    if not sources:
        raise ProtoError(f"there are no .proto files in {PROTO}")
    env = clean_env() | {"PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
    flags = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    argv = [str(tools / "python"), "-m", "grpc_tools.protoc", "-I", str(PROTO), *flags, *sources]
    _run(argv, "protoc failed", env)
    (out / "node" / "v1" / "__init__.py").write_text(INIT)


def generate() -> str:
    """Replace node/v1 by what the .proto files say now."""
    with tempfile.TemporaryDirectory() as folder:
        _generate(Path(folder))
        made = Path(folder) / "node" / "v1"
        TARGET.mkdir(parents=True, exist_ok=True)
        for stale in TARGET.iterdir():
            if stale.is_file() and not (made / stale.name).exists():
                stale.unlink()
        for path in sorted(made.iterdir()):
            shutil.copyfile(path, TARGET / path.name)
        return f"node/v1: {len(list(made.iterdir()))} files"


def fresh() -> str:
    """Check that node/v1 is what the .proto files say."""
    with tempfile.TemporaryDirectory() as folder:
        _generate(Path(folder))
        made = Path(folder) / "node" / "v1"
        names = {path.name for path in made.iterdir()} | {path.name for path in TARGET.iterdir() if path.is_file()}
        _, different, missing = filecmp.cmpfiles(made, TARGET, sorted(names), shallow=False)
        if different or missing:
            raise ProtoError(f"node/v1 is not what proto/ says ({', '.join(different + missing)}): run `make proto`")
        return "node/v1 is up to date"


def _buf() -> Path:
    npm = shutil.which("npm")
    if not npm:
        raise ProtoError("npm was not found, and buf comes from it: install Node.js with npm, then run it again")

    def fill(folder: Path) -> None:
        print("installing buf (once) ...", flush=True)
        flags = ["--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(folder)]
        _run([str(npm), "install", *flags, f"@bufbuild/buf@{BUF}"], "buf could not be installed")

    return _provide(f"npm-buf-{BUF}", fill) / "node_modules" / ".bin" / "buf"


def lint() -> str:
    """Check the .proto files against buf's STANDARD rules."""
    _run([str(_buf()), "lint", str(PROTO)], "buf lint")
    return "buf lint passes"


def breaking(against: str | None = None) -> str:
    """Check that what a released version understood is still understood."""
    if not against:
        tags = ["git", "tag", "--list", "v*", "--sort=-v:refname"]
        found = subprocess.run(tags, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
        if not found:
            return "no released version to compare with"
        against = found[0]
    reference = f"{ROOT / '.git'}#ref={against},subdir=proto"
    _run([str(_buf()), "breaking", str(PROTO), "--against", reference], f"buf breaking, against {against}")
    return f"compatible with {against}"


def main() -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="proto.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=["generate", "fresh", "lint", "breaking"])
    parser.add_argument("--against", help="a git tag or commit for `breaking`; default: the newest v* tag")
    options = parser.parse_args()
    commands = {"generate": generate, "fresh": fresh, "lint": lint, "breaking": lambda: breaking(options.against)}
    try:
        print(commands[options.command]())
    except ProtoError as error:
        print(f"proto: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
