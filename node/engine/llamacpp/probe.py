"""Whether a model file loads and computes: what a child process tries first (`node.engine.trial`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import llama_cpp as ll

from node.engine.backend import Row
from node.engine.llamacpp import native
from node.engine.llamacpp.backend import LOAD_READ, LlamaBackend
from node.engine.llamacpp.options import LlamaOptions
from node.errors import BackendError
from node.types import Message, SamplingParams


def probe(options: LlamaOptions, progress: Callable[[float], None] | None = None) -> None:
    """Load a model for one sequence, compute a prompt and draw a token. Raises what `LlamaBackend` raises.

    Of one that is too big for this machine only the shapes, types and tokens are checked.
    """
    if options.spread:
        _inspect(options.path)
        return
    backend = LlamaBackend(replace(options, sequences=1), progress)
    try:
        prompt = backend.tokenize(backend.render([Message("user", "What is 1 + 1?")], ()))
        prompt = prompt[: min(backend.info.batch, backend.info.context)]
        if not prompt:
            raise BackendError(f"{options.path} has a tokenizer that makes nothing of a prompt")
        backend.decode([Row(t, i, 0, i == len(prompt) - 1) for i, t in enumerate(prompt)])
        sampler = backend.sampler(SamplingParams(), 1, prompt)
        token, _ = backend.sample(sampler, len(prompt) - 1)
        backend.piece(token)
        sampler.close()
    finally:
        backend.close()


def _inspect(path: Path) -> None:
    native.set_up()
    params = ll.llama_model_default_params()
    params.n_gpu_layers, params.no_alloc, params.load_mode = 0, True, LOAD_READ
    native.forget_errors()
    model = ll.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise BackendError(f"{path} could not be loaded: {native.reason()}; download it again or use another")
    ll.llama_model_free(model)
