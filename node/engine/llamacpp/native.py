"""What is done once a process, and what llama.cpp said last."""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from typing import Any

import llama_cpp as ll

from node.engine.llamacpp import devices

log = logging.getLogger(__name__)

_last_error: list[str] = []
_set_up = threading.Lock()
_is_set_up = False


def set_up() -> None:
    """Start llama.cpp, with its log going to ours. The second call does nothing."""
    global _is_set_up
    with _set_up:
        if not _is_set_up:
            ll.llama_log_set(_on_log, ctypes.c_void_p(0))
            ll.llama_backend_init()
            _is_set_up = True


def forget_errors() -> None:
    """Before a call whose `reason` for failing is wanted."""
    _last_error.clear()


def reason() -> str:
    """Why the last call failed, in llama.cpp's words."""
    lines = [line for line in _last_error if "failed to load model" not in line] or _last_error
    return re.sub(r"^\w+: (error loading model: )?", "", lines[0]) if lines else "no reason was given"


def version() -> str:
    """Version of the binding, and what llama.cpp was built with."""
    set_up()
    return f"llama-cpp-python {ll.__version__} ({ll.llama_print_system_info().decode().strip()})"


def has_gpu() -> bool:
    """Whether llama.cpp was built for a GPU, and sees one. (llama_supports_gpu_offload says yes to the RPC backend.)"""
    set_up()
    return bool(devices.by_type(devices.GPU) or devices.by_type(devices.IGPU))


@ll.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: Any) -> None:
    line = text.decode(errors="replace").rstrip()
    if level == 4 and line:  # ggml.h: GGML_LOG_LEVEL_ERROR (a comment in llama_cpp has an older order)
        _last_error.append(line)
        del _last_error[:-8]
    if line:
        log.debug("%s", line)
