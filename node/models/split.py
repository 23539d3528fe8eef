"""Models that are split into several GGUF files: `NAME-00001-of-00003.gguf`, as llama-gguf-split names them.

llama.cpp is given the first and finds the others beside it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from node.errors import BackendError, NotFound
from node.models import gguf
from node.models.gguf import Gguf

_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")


def parts(path: Path) -> list[Path]:
    """All the files of the model that a file belongs to, the first one first; just itself for a whole model."""
    match = _NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]


def stem(name: str) -> str:
    """The name of a model's file without its ending and its part."""
    match = _NAME.match(name)
    return match["stem"] if match else name.removesuffix(".gguf")


def read(path: Path) -> Gguf:
    """The head of a model, of all its files together. Raises NotFound or BackendError with one line."""
    first, *others = parts(path)
    head = gguf.read(first)
    if not others:
        if head.parts > 1:
            raise BackendError(
                f"{path} is one of {head.parts} parts, and its name does not say which: give all of them the names "
                f"that they were made with (…-00001-of-{head.parts:05}.gguf)"
            )
        return head
    digest = hashlib.sha256(head.head_sha256.encode())
    for i, other in enumerate(others, start=2):
        if not other.exists():
            raise NotFound(f"{other} is missing: {first.name} is the first of {len(others) + 1} parts; fetch them all")
        part = gguf.read(other)
        if part.metadata.get("split.no") != i - 1 or part.parts != len(others) + 1:
            raise BackendError(f"{other} is not part {i} of {len(others) + 1} of this model: download it again")
        digest.update(part.head_sha256.encode())
        head = _joined(head, part)
    return replace(head, head_sha256=digest.hexdigest())


def _joined(a: Gguf, b: Gguf) -> Gguf:
    layers = {i: a.layer_bytes.get(i, 0) + b.layer_bytes.get(i, 0) for i in a.layer_bytes.keys() | b.layer_bytes.keys()}
    return replace(
        a,
        tensors=a.tensors + b.tensors,
        # Weights count as what lies behind the heads, so the head of the other part is taken off.
        size=a.size + b.size - b.data_offset,
        layer_bytes=layers,
        input_bytes=a.input_bytes + b.input_bytes,
        input_type=a.input_type or b.input_type,
        is_tied=a.is_tied and b.is_tied,
        matrix_types=a.matrix_types | b.matrix_types,
    )
