"""Which of the models that peers have a name means. Decisions only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from node.core.manifest import File
from node.download.search import Has
from node.errors import InvalidRequest
from node.models import catalogue, hub, library
from node.models.catalogue import Entry, plain


@dataclass(frozen=True, slots=True)
class Choice:
    """A model to fetch: its files, and the nodes that have files of these names and sizes."""

    name: str
    files: tuple[File, ...]
    nodes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


def choose(name: str, models: Sequence[Has]) -> Choice | None:
    """What a name (or NAME:QUANT) means among the models of peers; None if nobody has it. Raises InvalidRequest if it
    means several different ones.

    Of several quantizations that which the hub would give is taken, of equal names the one that most nodes have.
    """
    found = _meant(name, models)
    if not found:
        return None
    stems = {plain(_stem(model.name)) for model in found}
    if len(stems) > 1:
        names = ", ".join(sorted({model.name for model in found})[:8])
        raise InvalidRequest(f"{name!r} means several models of other nodes: {names}; give one whole name")
    groups: dict[tuple[File, ...], list[Has]] = {}
    for model in found:
        groups.setdefault(model.files, []).append(model)

    def rank(files: tuple[File, ...]) -> tuple[int, int, int, str]:
        best = next((i for i, q in enumerate(hub.PREFERRED) if hub.is_of(files[0].name, q)), len(hub.PREFERRED))
        return best, -len(groups[files]), -sum(f.size for f in files), files[0].name

    files = min(groups, key=rank)
    return Choice(groups[files][0].name, files, tuple(sorted({m.node for m in groups[files]})))


def _meant(name: str, models: Sequence[Has]) -> list[Has]:
    same = [m for m in models if plain(m.name) == plain(name)]
    if same:
        return same
    entry, quantization = catalogue.find_with_quantization(name)
    base = name.removesuffix(f":{quantization}") if quantization else name
    for wanted in (base, *([entry.name] if entry else [])):
        found = library.matching(wanted, models)
        if quantization:
            found = [m for m in found if hub.is_of(m.name, quantization)]
        if found:
            return found
    return []


def entry_of(name: str) -> Entry | None:
    """The catalogue's entry that a model of this name is a quantization of."""
    return catalogue.find(_stem(name))


def _stem(name: str) -> str:
    """A name without its quantization."""
    return re.sub(rf"[-._:]?{hub.QUANTIZATION}$", "", name, flags=re.IGNORECASE)
