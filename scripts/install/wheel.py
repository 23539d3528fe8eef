"""The llama-cpp-python wheel: built once for this CPU and kept outside the tree.

PyPI has only its source. `lean.cmake` leaves out what the binding does not load and adds our kernels, and the result is
kept under a key of everything that shapes it, so that another checkout, a new .venv or another Python takes seconds.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from . import paths
from .console import NINJA_STEP, Progress, SetupError, explain, run

LEAN = paths.ROOT / "scripts" / "lean.cmake"
KERNELS = paths.ROOT / "scripts" / "kernels"
CONSTRAINTS = paths.ROOT / "scripts" / "constraints.txt"
FLAGS = ["-DLLAVA_BUILD=OFF"]
# What a compiler and CMake read from the environment.
SHAPING = ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAARCHS", "CMAKE_TOOLCHAIN_FILE")
# llama.cpp's RPC backend, for a model that is spread over machines (`make run RPC=1`). RDMA would leave the connection
# that we carry and encrypt for one of its own.
RPC_FLAGS = ("-DGGML_RPC=ON", "-DGGML_RPC_RDMA=OFF")
BUILD_BYTES = 1_000_000_000  # measured peak 0.35 GB for a CPU build; one for a GPU takes more


def version() -> str:
    """The version that set-up installs."""
    found = re.search(r"^llama[-_]cpp[-_]python==(\S+)", CONSTRAINTS.read_text(), re.M)
    if not found:
        raise SetupError(f"{CONSTRAINTS} does not pin llama-cpp-python: restore the file")
    return found[1]


def with_rpc(cmake_args: str, rpc: str) -> str:
    """CMAKE_ARGS with the RPC backend (`rpc` is 1), without it (0), or as they are (empty: as the last set-up)."""
    if rpc not in ("", "0", "1"):
        raise SetupError(f"RPC is {rpc!r}: write RPC=1 for llama.cpp's RPC backend, RPC=0 for a build without it")
    if not rpc:
        return cmake_args
    kept = [word for word in cmake_args.split() if word not in RPC_FLAGS]
    return " ".join(kept + list(RPC_FLAGS) * int(rpc))


def _cpu() -> str:
    """What this CPU can do: ggml is compiled for exactly that."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        names = ["machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
        return subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False).stdout
    wanted = ("flags", "Features", "model name", "CPU part", "isa")
    return "\n".join(
        sorted({line for line in info.splitlines() if line.split("\t")[0].split(":")[0].strip() in wanted})
    )


def key() -> str:
    """The name under which the wheel for this machine and these flags is kept."""
    shape = {
        "flags": FLAGS,
        "lean": LEAN.read_text(),
        "kernels": [source.read_text() for source in sorted(KERNELS.iterdir())],
        "env": {name: os.environ.get(name, "") for name in SHAPING},
        "cpu": _cpu(),
        "libc": platform.libc_ver(),
    }
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]
    return f"llama_cpp_python-{version()}-{platform.system().lower()}-{platform.machine()}-{digest}"


def cached() -> Path | None:
    """The wheel, if it is there and whole."""
    for wheel in (paths.WHEELS / key()).glob("*.whl"):
        if zipfile.is_zipfile(wheel):
            return wheel
    return None


def forget() -> None:
    """Drop the cached wheel: it does not work here."""
    shutil.rmtree(paths.WHEELS / key(), ignore_errors=True)


def ensure(python: Path) -> Path:
    """The wheel, built now if need be with this interpreter's pip."""
    found = cached()
    if found:
        return found
    with paths.lock("wheel", "Another set-up is building llama.cpp: waiting for it."):
        return cached() or _build(python)


def _check_compiler() -> None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        # macOS has a c++ that only says that the tools are missing, so it is run rather than looked up.
        program = shlex.split(name)[0] if name else ""
        found = shutil.which(program) if program else None
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return
    hints = {
        "apt-get": "sudo apt-get install build-essential",
        "dnf": "sudo dnf install gcc-c++",
        "pacman": "sudo pacman -S gcc",
    }
    hint = next((hint for tool, hint in hints.items() if shutil.which(tool)), "install g++ or clang++")
    if platform.system() == "Darwin":
        hint = "xcode-select --install"
    raise SetupError(f"llama.cpp must be compiled for this machine and there is no working C++ compiler: {hint}")


def _check_disk() -> None:
    free = shutil.disk_usage(paths.WHEELS).free
    if free < BUILD_BYTES:
        raise SetupError(
            f"building llama.cpp needs {BUILD_BYTES / 1e9:.1f} GB and {paths.WHEELS} has {free / 1e9:.1f} GB:"
            " free some space, or set XDG_CACHE_HOME to a larger disk"
        )


def _jobs() -> str:
    """Compilers at once: one a core, but no more than memory allows at about 1 GB each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(max(1, min(cores, memory // 1_000_000_000)))


def _build(python: Path) -> Path:
    """Build in a folder of its own and rename: the cache never holds half a wheel."""
    paths.WHEELS.mkdir(parents=True, exist_ok=True)
    for stale in paths.WHEELS.glob(".build-*"):  # we hold the lock, so whoever made it was killed
        shutil.rmtree(stale, ignore_errors=True)
    _check_compiler()
    _check_disk()
    if shutil.which("nvidia-smi") and not os.environ.get("CMAKE_ARGS"):
        print("For this machine's NVIDIA GPU, with the CUDA toolkit installed: CMAKE_ARGS=-DGGML_CUDA=on make run")
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=paths.WHEELS))
    try:
        (work / "tmp").mkdir()
        (work / "out").mkdir()
        env = paths.pip_env()
        hook = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={LEAN}"
        env["CMAKE_ARGS"] = " ".join([*FLAGS, shlex.quote(hook), os.environ.get("CMAKE_ARGS", "")]).strip()
        env["TMPDIR"] = str(work / "tmp")  # pip unpacks and compiles there, so one removal cleans all
        env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", _jobs())
        progress = Progress("building llama.cpp for this CPU (once)")
        log = paths.LOGS / f"wheel-{version()}.log"
        progress.detail = "fetching the source"

        def on_line(line: str) -> None:
            step = NINJA_STEP.match(line)
            if step:
                progress.detail = ""
                progress.step(int(step[1]), int(step[2]))
            elif "build dependencies" in line:
                progress.detail = "preparing"
            progress.tick()

        # No cache: pip would hand out a wheel that was built with other flags.
        argv = [
            str(python),
            "-m",
            "pip",
            "wheel",
            "-v",
            "--no-deps",
            "--no-cache-dir",
            "--no-binary",
            "llama-cpp-python",
        ]
        argv += ["--disable-pip-version-check", "--progress-bar", "off"]
        argv += ["-w", str(work / "out"), f"llama-cpp-python=={version()}"]
        status = run(argv, env, log, progress, on_line)
        wheels = list((work / "out").glob("*.whl"))
        if status != 0 or not wheels or not zipfile.is_zipfile(wheels[0]):
            progress.clear()
            raise explain("llama.cpp could not be built", log)
        final = paths.WHEELS / key()
        shutil.rmtree(final, ignore_errors=True)
        (work / "out").rename(final)
        progress.done("llama.cpp is built")
        return final / wheels[0].name
    finally:
        shutil.rmtree(work, ignore_errors=True)
