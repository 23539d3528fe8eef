"""Caches of mlx-lm as bytes: a head in JSON, then the arrays (as mlx-lm's `save_prompt_cache`, without a file).

They never leave this process's own memory and disk: other nodes are sent none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.models.cache import KVCache
from numpy.typing import NDArray

# Copies of KV fit what made them: the version of mlx-lm, whose caches' state they are.
FORMAT = f"mlx-lm {mlx_lm.__version__}"
_MAGIC = b"CMLX"


def save(caches: Sequence[Any], length: int) -> NDArray[np.uint8]:
    """The state of a sequence's caches, one a layer, that hold `length` tokens."""
    layers: list[dict[str, Any]] = []
    data: list[NDArray[np.uint8]] = []
    for cache in caches:
        said: list[Any] = []
        for part in cache.state:
            if isinstance(part, mx.array):
                # Only what is in use: an array has room for some tokens more.
                part = part[..., :length, :] if isinstance(cache, KVCache) else part
                raw = np.array(mx.view(mx.contiguous(part).reshape(-1), mx.uint8))
                said.append({"dtype": str(part.dtype).rpartition(".")[2], "shape": list(part.shape)})
                data.append(raw)
            else:
                said.append(part)
        layers.append({"class": type(cache).__name__, "state": said})
    head = json.dumps({"length": length, "format": FORMAT, "layers": layers}).encode()
    begin = np.frombuffer(_MAGIC + len(head).to_bytes(4, "little") + head, dtype=np.uint8)
    return np.concatenate([begin, *data])


def load(caches: Sequence[Any], saved: Any) -> int | None:
    """Fill empty caches; the tokens that they then hold, or None if this is no state of such caches."""
    try:
        data: NDArray[np.uint8] = np.ascontiguousarray(saved, dtype=np.uint8)
        if data[:4].tobytes() != _MAGIC:
            return None
        at = 8 + int.from_bytes(data[4:8].tobytes(), "little")
        head = json.loads(data[8:at].tobytes())
        if head["format"] != FORMAT or len(head["layers"]) != len(caches):
            return None
        for cache, layer in zip(caches, head["layers"], strict=True):
            if layer["class"] != type(cache).__name__:
                return None
            parts: list[Any] = []
            for part in layer["state"]:
                if isinstance(part, dict):
                    dtype = getattr(mx, part["dtype"])
                    size = math.prod(part["shape"]) * dtype.size
                    parts.append(mx.view(mx.array(data[at : at + size]), dtype).reshape(part["shape"]))
                    at += size
                else:
                    parts.append(part)
            cache.state = tuple(parts)
        return int(head["length"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
