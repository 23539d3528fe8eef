"""A model's files to the wire and back."""

from __future__ import annotations

from collections.abc import Iterable

from node.core.manifest import File
from node.v1 import models_pb2


def model_file_pb(file: File) -> models_pb2.ModelFile:
    """A file for the wire."""
    return models_pb2.ModelFile(name=file.name, size=file.size, hashes=file.hashes)


def model_files(said: Iterable[models_pb2.ModelFile]) -> tuple[File, ...]:
    """Files as a peer says them; `node.core.manifest` checks them."""
    return tuple(File(f.name, f.size, f.hashes) for f in said)
