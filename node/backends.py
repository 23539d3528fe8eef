"""From a configuration to what computes: which backend, which file, how much of it where."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from node.config import Config
from node.core.plan import shared
from node.engine import trial
from node.engine.backend import Backend
from node.engine.fake import FakeBackend, FakeSpec
from node.errors import BackendError, InvalidRequest
from node.hardware.machine import detect
from node.hardware.rooms import rooms
from node.models import resolve
from node.models.shape import is_repacked, shape


async def make(config: Config, directory: Path, notice: Callable[[str], None]) -> Callable[[], Backend]:
    """How to load what the configuration asks for; the file is checked here, the loading comes later. Raises
    ConclaveError.

    `directory` is where the node remembers what it checked; `notice` hears of a download.
    """
    if config.backend == "fake":
        spec = FakeSpec.parse(config.model)
        context = config.ctx or 4096
        return lambda: FakeBackend(spec, sequences=config.slots, context=context)
    if config.backend == "mlx" or (config.backend == "auto" and _is_directory(config.model)):
        return await asyncio.to_thread(_mlx, config)
    try:
        from node.engine import llamacpp
    except (ImportError, OSError) as e:
        raise BackendError(f"llama.cpp cannot be loaded ({e}): run `make run` again, or use --backend fake") from None
    machine = await asyncio.to_thread(detect)
    room, main = rooms(machine, has_gpu=llamacpp.has_gpu())
    file = await asyncio.to_thread(resolve.resolve, config.model, None, room, notice)
    features = machine.cpu.features if machine.cpu else ()
    on_gpu = room is not None and room.where == "gpu"
    gpu_layers = config.gpu_layers
    if gpu_layers < 0 and on_gpu and room and main and (found := shared(shape(file.head), room, main)):
        gpu_layers = found.gpu_layers
    rotated = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "")  # whether quantized K and V are, which no state says
    kv = (config.kv_type, "flash-attention", *(["small window"] if config.swa == "small" else []), rotated)
    options = llamacpp.LlamaOptions(
        path=file.path,
        name=file.name,
        fingerprint=file.head.fingerprint("llama.cpp", llamacpp.STATE_FORMAT, *kv),
        sequences=config.slots,
        context=config.ctx,
        kv_type=config.kv_type,
        swa=config.swa,
        # More threads than a container's share would make every step slower.
        threads=config.threads or (machine.cpu.threads if machine.cpu else 0),
        gpu_layers=gpu_layers,
        is_demo=file.is_demo,
        mmap=on_gpu or not is_repacked(file.head, features),
    )
    if not file.is_demo:
        await trial.ensure(options, directory, llamacpp.STATE_FORMAT)
    return lambda: llamacpp.LlamaBackend(options)


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
    options = mlx.MlxOptions(path, path.name, mlx.fingerprint(path), config.slots, config.ctx)
    return lambda: mlx.MlxBackend(options)
