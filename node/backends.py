"""From a configuration to what computes: which backend, which file, how much of it where."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from node.config import Config
from node.core.plan import GIB, LEAST_SLOTS, SLOTS, Fit, Room, fit, shared
from node.core.shape import CONTEXT, Shape, cells_for, kv_bytes_per_cell
from node.engine import trial
from node.engine.backend import Backend
from node.engine.fake import FakeBackend, FakeSpec
from node.errors import BackendError, InvalidRequest, NotFound
from node.hardware import cpu
from node.hardware.bandwidth import known_bytes_per_s
from node.hardware.cpu import Cpu
from node.hardware.idle import idle
from node.hardware.machine import detect
from node.hardware.rooms import rooms
from node.home import home
from node.models import library, resolve
from node.models.shape import is_repacked, shape
from node.pool.borrower import WAIT_S, Borrower, Wanted

LOST_S = 5.0


async def make(
    config: Config,
    directory: Path,
    notice: Callable[[str], None],
    progress: Callable[[str, float], None] = lambda what, share: None,
    fetch: Callable[[str], Awaitable[Path | None]] | None = None,
    borrower: Borrower | None = None,
    *,
    after_loss: bool = False,
) -> Callable[[], Backend]:
    """How to load what the configuration asks for; the file is checked here, the loading comes later. Raises
    ConclaveError.

    `directory` is where the node remembers what it checked; `notice` hears of a download, `progress` how far it is, and
    then how far the loading is. A name that is not on this machine is given to `fetch`, which may bring its file.

    What does not fit here is spread over nodes that the `borrower` finds. `after_loss` of a lender, where too few are
    left, the biggest model of this machine that fits it takes the place of what was asked for; where there is none,
    memory is looked for until somebody lends it.
    """
    if config.backend == "fake":
        spec = FakeSpec.parse(config.model)
        context = config.ctx or 4096
        return lambda: FakeBackend(spec, sequences=config.slots or SLOTS, context=context)
    if config.backend == "mlx" or (config.backend == "auto" and _is_directory(config.model)):
        return await asyncio.to_thread(_mlx, config)
    try:
        from node.engine import llamacpp
    except (ImportError, OSError) as e:
        raise BackendError(f"llama.cpp cannot be loaded ({e}): run `make run` again, or use --backend fake") from None
    machine = await asyncio.to_thread(detect)
    has_gpu = llamacpp.has_gpu()
    if unused := idle(machine, has_gpu):
        notice(f"{unused.found}: {unused.advice}")
    room, main = rooms(machine, has_gpu=has_gpu, most=config.max_memory_bytes)
    reads = 0.0
    if config.model == "auto" and room is not None and room is main and machine.cpu:
        reads = await asyncio.to_thread(_reads, machine.cpu, config.threads)
    file = await _file(config.model, room, notice, progress, fetch, reads)
    features = machine.cpu.features if machine.cpu else ()
    on_gpu = room is not None and room.where == "gpu"
    found = None if file.is_demo else _fit(config, shape(file.head, () if on_gpu else features), room, main)
    gpu_layers = found.gpu_layers if config.gpu_layers < 0 and on_gpu and found else config.gpu_layers
    slots, context = _sizes(config, found, is_demo=file.is_demo)
    spread: llamacpp.Spread | None = None
    if borrower is not None and room is not None and ((found is None and not file.is_demo) or config.borrow == "even"):
        wanted = shape(file.head, () if on_gpu else features)
        lenders = await _borrow(
            config, wanted, slots, context, room, borrower, notice, fits=found is not None, after_loss=after_loss
        )
        if isinstance(lenders, resolve.ModelFile):
            return await make(replace(config, model=str(lenders.path), borrow="no"), directory, notice, progress)
        if lenders:
            spread = llamacpp.Spread(wanted.layers, tuple(llamacpp.Lender(*each) for each in lenders))
    rotated = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "")  # whether quantized K and V are, which no state says
    kv = (config.kv_type, "flash-attention", *(["small window"] if config.swa == "small" else []), rotated)
    options = llamacpp.LlamaOptions(
        path=file.path,
        name=file.name,
        fingerprint=file.head.fingerprint("llama.cpp", llamacpp.STATE_FORMAT, *kv),
        sequences=slots,
        context=context,
        # Memory of a GPU is there for this; main memory is others' too, and idle topics are kept outside the context.
        cells=found.cells if on_gpu and found and (slots, context) == (found.slots, found.context) else 0,
        row=kv_bytes_per_cell(shape(file.head), config.kv_type),
        kv_type=config.kv_type,
        swa=config.swa,
        # More threads than a container's share would make every step slower.
        threads=config.threads or (machine.cpu.threads if machine.cpu else 0),
        gpu_layers=gpu_layers,
        is_demo=file.is_demo,
        mmap=on_gpu or not is_repacked(file.head, features),
        spread=spread,
    )
    if not file.is_demo:
        what = f"trying {options.name}, which is new here"
        version = llamacpp.STATE_FORMAT + (", spread" if spread else "")
        await trial.ensure(options, directory, version, lambda share: progress(what, share))
    return lambda: llamacpp.LlamaBackend(options, lambda share: progress(f"loading {options.name}", share))


def _reads(cpu: Cpu, threads: int) -> float:
    """Bytes a second at which weights are read, where there are models to choose from; 0: nothing is decided by it."""
    return known_bytes_per_s(cpu, threads) if library.find(os.environ, home().data) else 0.0


async def _file(
    model: str,
    room: Room | None,
    notice: Callable[[str], None],
    progress: Callable[[str, float], None],
    fetch: Callable[[str], Awaitable[Path | None]] | None,
    reads: float,
) -> resolve.ModelFile:
    try:
        return await asyncio.to_thread(resolve.resolve, model, None, room, notice, progress, reads)
    except (NotFound, InvalidRequest):
        path = await fetch(model) if fetch is not None and resolve.is_name(model) else None
        if path is None:
            raise
    return await asyncio.to_thread(resolve.resolve, str(path), None, room, notice)


async def _borrow(
    config: Config,
    wanted: Shape,
    slots: int,
    context: int,
    room: Room,
    borrower: Borrower,
    notice: Callable[[str], None],
    *,
    fits: bool,
    after_loss: bool,
) -> tuple[tuple[str, int], ...] | resolve.ModelFile:
    """(endpoint, layers) of each lender; none where nobody lends enough and the model is tried here all the same, or
    `fits`. After the loss of a lender it may be another model that is to be loaded instead.

    Raises NotFound if it was asked for, and nobody lends."""
    from node.engine import llamacpp

    is_wish = config.borrow == "even"
    here = f"{wanted.name} is more than this machine should hold ({room.usable / GIB:.1f} GiB: {room.rule})"
    if not llamacpp.has_rpc():
        hint = (
            "llama-cpp-python was built without RPC, so no other node's memory can be used: `make run RPC=1` builds it"
        )
        notice(f"--borrow even: {hint}" if is_wish else f"{here}; {hint}")
        return ()
    context = context or min(CONTEXT, wanted.context or CONTEXT)
    cells = cells_for(slots, context, kv_bytes_per_cell(wanted, config.kv_type))
    model = Wanted(wanted, cells, slots, config.kv_type, room.usable, even=is_wish)
    try:
        # What fits here need not wait for a machine that may never come back.
        return await borrower.borrow(model, LOST_S if after_loss and fits else WAIT_S)
    except NotFound as e:
        if after_loss and fits:
            notice(f"{wanted.name} is loaded here as a whole: nobody lends memory now")
            return ()
        if after_loss:
            smaller = await asyncio.to_thread(resolve.resolve, "auto", None, room)
            if smaller.is_demo:  # of no use to whoever asked for a model of that size
                return await borrower.borrow(model, math.inf)
            notice(f"this node goes on with {smaller.name} until it is started again: {e.message}")
            return smaller
        if is_wish:
            raise
        notice(f"{here}, and is loaded here all the same: {e.message}")
        return ()


def _fit(config: Config, wanted: Shape, room: Room | None, main: Room | None) -> Fit | None:
    """How a model fits this machine, with the precision and the windows that were asked for; None if it does not."""
    if room is None:
        return None
    kv_types, swa_full = (config.kv_type,), config.swa == "full"
    if room.where == "gpu" and main:
        return shared(wanted, room, main, kv_types=kv_types, swa_full=swa_full)
    return fit(wanted, room.usable, on_gpu=room.where == "gpu", kv_types=kv_types, swa_full=swa_full)


def _sizes(config: Config, found: Fit | None, *, is_demo: bool) -> tuple[int, int]:
    """Sequences, and tokens of each (0: the least of a plan, or what the model was trained for): what was told, else
    the plan's. What does not fit is tried with the fewest: llama.cpp has the last word."""
    if is_demo:
        return config.slots or SLOTS, config.ctx
    if found is None:
        return config.slots or LEAST_SLOTS, config.ctx
    return config.slots or found.slots, config.ctx or found.context


def llama_version() -> str:
    """The version of llama.cpp with its binding, which borrowers and lenders must share; empty if there is none.
    Nothing is loaded for it."""
    try:
        return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def lendable(config: Config, notice: Callable[[str], None]) -> tuple[int, int, Callable[[], int]]:
    """What --pool lends at most, in bytes (0 where llama.cpp cannot), the threads that compute on it, and what of it is
    free at the moment.

    Raises InvalidRequest."""
    has_rpc = False
    with contextlib.suppress(ImportError, OSError):
        from node.engine import llamacpp

        has_rpc = llamacpp.has_rpc()
    if not has_rpc:
        notice("--pool lends nothing: llama-cpp-python was built without RPC: `make run RPC=1` builds it")
        return 0, 0, int
    machine = detect()
    room, _ = rooms(machine, has_gpu=llamacpp.has_gpu())
    if room is None:
        raise InvalidRequest("the system does not say how much memory it has: state what to lend, as in --pool 4")
    if config.pool_bytes > room.total:
        raise InvalidRequest(f"--pool {config.pool}: {room.name} has {room.total / GIB:.1f} GiB in all")
    threads = config.threads or (machine.cpu.threads if machine.cpu else 1)
    most = config.pool_bytes or room.usable
    if room.where == "gpu":
        return (
            most,
            threads,
            lambda: most,
        )  # asking its driver takes too long for every time that somebody wants to know
    return most, threads, _free_memory


def _free_memory() -> int:
    found = cpu.detect()
    return found.available_bytes if found else 1 << 62


def _is_directory(model: str) -> bool:
    """Whether a model is one as MLX has them: a folder with a configuration."""
    return os.path.exists(os.path.join(os.path.expanduser(model), "config.json"))


def _mlx(config: Config) -> Callable[[], Backend]:
    """How to load an MLX model. Raises InvalidRequest or BackendError."""
    if not _is_directory(config.model):
        raise InvalidRequest(
            f"--model {config.model!r}: MLX takes the directory of a model, with config.json, tokenizer.json and "
            "*.safetensors in it"
        )
    try:
        from node.engine import mlx
    except (ImportError, OSError) as e:
        raise BackendError(
            f"MLX cannot be loaded ({e}): `pip install 'mlx-lm[cpu]'` on Linux, mlx-lm on a Mac"
        ) from None
    path = Path(config.model).expanduser().resolve()
    options = mlx.MlxOptions(path, path.name, mlx.fingerprint(path), config.slots or SLOTS, config.ctx)
    return lambda: mlx.MlxBackend(options)
