"""ggml's devices, which llama_cpp has no names for: GPUs, and other machines' memory over llama.cpp's RPC backend.

The functions are those of ggml/include/ggml-backend.h and ggml-rpc.h. Devices and backends are pointers that live as
long as the process.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp as ll
from llama_cpp import _ggml

from node.errors import BackendError

CPU, GPU, IGPU = 0, 1, 2  # ggml-backend.h: enum ggml_backend_dev_type
# What is computed before and after the layers. It stays with the processor: on the last lender the output would send
# back the logits of a whole vocabulary for each token (600 KB), instead of a row of the model's width (4 KB).
_AT_HOME = rb"^(token_embd|output)"


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_ggml.libggml, name)  # found in the libraries that libggml links to as well
    function.restype, function.argtypes = result, list(arguments)
    return function


def by_type(kind: int) -> int | None:
    """The first device of a kind; None if there is none."""
    device: int | None = _function("ggml_backend_dev_by_type", ctypes.c_void_p, ctypes.c_int)(kind)
    return device


def has_rpc() -> bool:
    """Whether llama.cpp was built with its RPC backend."""
    return bool(ll.llama_supports_rpc())


def remote(endpoint: str) -> int:
    """The memory behind 127.0.0.1:PORT as a device. The connection stays open, and the process ends if it breaks:
    llama.cpp calls abort(). Raises BackendError if the other end has no device."""
    where = endpoint.encode()
    # This first, and never freed: it keeps llama.cpp's one connection to the endpoint from being closed between calls.
    _function("ggml_backend_rpc_init", ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)(where, 0)
    registered = _function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)(where)
    if not registered:
        raise BackendError(f"the RPC server at {endpoint} has no device")
    get = _function("ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    device: int = get(registered, 0)
    return device


def serve(endpoint: str, threads: int, listed: Any) -> None:
    """llama.cpp's RPC server with these devices (a ctypes array), until its listener fails."""
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    start = _function("ggml_backend_rpc_start_server", None, ctypes.c_char_p, ctypes.c_char_p, size, size, pointer)
    start(endpoint.encode(), None, threads, len(listed), listed)


class _Override(ctypes.Structure):
    """llama.h: struct llama_model_tensor_buft_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Lender:
    """Where a lender's memory is found (127.0.0.1:PORT), and how many layers it holds."""

    endpoint: str
    layers: int


@dataclass(frozen=True, slots=True)
class Spread:
    """A model of so many `layers` over this machine, which holds the first, and lenders, in the order of the layers."""

    layers: int
    lenders: tuple[Lender, ...]


def spread(params: Any, over: Spread) -> tuple[Any, ...]:
    """Have llama_model_params say so; this machine's layers go to its GPU if llama.cpp was built for one. What is
    returned must be kept until the model is loaded."""
    devices = [remote(lender.endpoint) for lender in over.lenders]
    counts = [lender.layers for lender in over.lenders]
    gpu = by_type(GPU)
    if gpu:
        devices, counts = [gpu, *devices], [over.layers - sum(counts), *counts]
    counts[-1] += 1  # llama.cpp counts the output as a layer after the last
    listed = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
    split = (ctypes.c_float * max(int(ll.llama_max_devices()), len(counts)))(*counts)
    cpu_buffers = _function("ggml_backend_cpu_buffer_type", ctypes.c_void_p)()
    overrides = (_Override * 2)(_Override(_AT_HOME, cpu_buffers), _Override(None, None))
    params.devices = ctypes.cast(listed, ctypes.c_void_p)
    params.tensor_split = split
    params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    params.n_gpu_layers = sum(counts)
    return listed, split, overrides
