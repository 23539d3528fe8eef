"""What every vendor's detection answers with."""

from __future__ import annotations

from dataclasses import dataclass


class Unusable(Exception):
    """A vendor's GPU is there, and nothing can be known of it: why, and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or a part of one that stands alone (MIG). Memory in bytes; `free_bytes` is what others leave.

    With `is_shared` it has no memory of its own worth the name: both figures are main memory that it may use.
    `build` is the ggml backend that llama.cpp needs for it. `problem` says why it cannot be used as things are.
    """

    vendor: str
    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    build: str
    driver: str = ""
    architecture: str = ""
    is_shared: bool = False
    problem: str = ""
