"""The models that Conclave knows by name: catalogue.toml, read and turned into shapes."""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from node.core import quantization
from node.core.quantization import QUANTIZATIONS, Facts
from node.core.shape import Shape

_FILE = Path(__file__).parent / "catalogue.toml"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the catalogue. `size_class` is its size as its authors say it; `tools` the form of its calls.

    `checked` says what its sizes were compared with (catalogue.toml explains it), `read` is a page where its licence
    and context were read ("": none), `file_bytes` is the size of the Q4_K_M file of `repo` where that is known (0:
    not), `output_apart` that its files hold a tied output all the same.
    """

    key: str
    name: str
    size_class: str
    parameters: int
    licence: str
    source: str
    repo: str
    template: str
    tools: str
    facts: Facts
    checked: str
    read: str = ""
    file_bytes: int = 0
    output_apart: bool = False

    def shape(self, quantization_: str) -> Shape:
        """Its shape in a quantization."""
        facts = replace(self.facts, is_tied=self.facts.is_tied and not self.output_apart)
        return quantization.shape(self.name, facts, quantization_, self.parameters)


@functools.cache
def entries() -> tuple[Entry, ...]:
    """The catalogue, in its order."""
    table = tomllib.loads(_FILE.read_text("utf-8"))
    return tuple(
        Entry(
            key=key,
            name=said["name"],
            size_class=said["class"],
            parameters=round(said["parameters"] * 1e9),
            licence=said["licence"],
            source=f"https://huggingface.co/{said['source']}/blob/main/config.json",
            repo=said["repo"],
            template=said["template"],
            tools=said["tools"],
            checked=said["checked"],
            read=said.get("read", ""),
            file_bytes=said.get("file_bytes", 0),
            output_apart=said.get("output_apart", False),
            facts=Facts(
                layers=said["layers"],
                embedding=said["embedding"],
                heads=said["heads"],
                kv_heads=said["kv_heads"],
                head=said["head"],
                feed_forward=said["feed_forward"],
                vocabulary=said["vocabulary"],
                context=said["context"],
                is_tied=said.get("tied", False),
                window=said.get("window", 0),
                window_every=said.get("window_every", 0),
                experts=said.get("experts", 0),
                experts_used=said.get("experts_used", 0),
            ),
        )
        for key, said in table.items()
    )


def shapes() -> list[Shape]:
    """Every model in every quantization that a plan may propose."""
    return [entry.shape(each) for entry in entries() for each in QUANTIZATIONS]


def classes() -> dict[str, str]:
    """Name -> class."""
    return {entry.name: entry.size_class for entry in entries()}


def plain(name: str) -> str:
    """A name as it is compared: small letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find(name: str) -> Entry | None:
    """The entry that a name means: its name or key, however it is written; `-Instruct` and `-it` may be left out. So
    Ollama's names are known where they say a model's size: qwen2.5:7b, llama3.2:3b, gemma3:4b."""
    wanted = plain(name)
    for entry in entries():
        said = plain(entry.name)
        if wanted in (said, plain(entry.key), _short(said)):
            return entry
    return None


def find_with_quantization(name: str) -> tuple[Entry | None, str]:
    """The entry of NAME or NAME:QUANT, and the quantization if one is named. NAME may be Ollama's, with a colon."""
    if entry := find(name):
        return entry, ""
    base, colon, quantization = name.rpartition(":")
    return (find(base), quantization) if colon else (None, "")


def near(name: str, also: Iterable[str] = (), most: int = 4) -> list[str]:
    """Names of the catalogue, and of `also`, that may have been meant: those that the words of `name` begin (llama3),
    else those that contain it, else those that are spelled like it."""
    names = list(dict.fromkeys((*also, *(entry.name for entry in entries()))))
    wanted = plain(name.removesuffix(":latest"))
    if len(wanted) < 2:
        return []
    found = [each for each in names if plain(each).startswith(wanted)]
    found = found or [each for each in names if wanted in plain(each)]
    if not found:
        matcher = difflib.SequenceMatcher(b=wanted[:128], autojunk=False)
        likeness: dict[str, float] = {}
        for each in names:
            for form in (plain(each), _short(plain(each))):
                matcher.set_seq1(form)
                likeness[each] = max(likeness.get(each, 0.0), matcher.ratio())
        best = max(likeness.values())
        found = [each for each in names if likeness[each] >= max(0.6, best - 0.03)]
    return found[:most]


def meant(name: str, also: Iterable[str] = ()) -> str:
    """`: did you mean X or Y?`; nothing if nothing is like it."""
    found = near(name, also)
    return f": did you mean {', '.join(found[:-1])}{' or ' if found[1:] else ''}{found[-1]}?" if found else ""


def _short(said: str) -> str:
    return re.sub(r"(instruct|it)(\d{4})?$", "", said)
