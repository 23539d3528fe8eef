"""What of a model is loaded where: told, or by the plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from node import backends
from node.config import Config
from node.core.plan import GIB, LEAST_SLOTS, MOST_CONTEXT, MOST_IN_MEMORY, SLOTS, gpu_room, memory_room
from node.core.quantization import Facts, shape
from node.errors import InvalidRequest
from node.models.resolve import BUNDLED, is_name

QWEN_7B = shape("7B", Facts(28, 3584, 28, 4, 128, 18944, 152064, 32768), "Q4_K_M")
GEMMA = shape("G", Facts(48, 3840, 16, 8, 256, 15360, 262208, 131072, True, 1024, 6), "Q4_K_M")


def sizes(config: Config, gib: float, *, on_gpu: bool = False) -> tuple[int, int]:
    size = int(gib * GIB)
    main = memory_room("RAM", size, size)
    room = gpu_room("GPU", size, size) if on_gpu else main
    return backends._sizes(config, backends._fit(config, QWEN_7B, room, main), is_demo=False)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_slots_and_context_follow_the_plan(on_gpu: bool) -> None:
    config = Config(model="some.gguf")
    large, small = sizes(config, 64, on_gpu=on_gpu), sizes(config, 9.5, on_gpu=False)
    assert large == (SLOTS, MOST_CONTEXT if on_gpu else MOST_IN_MEMORY)
    assert LEAST_SLOTS <= small[0] <= SLOTS
    assert small < large


def test_what_was_told_holds() -> None:
    assert sizes(Config(slots=3, ctx=512), 64) == (3, 512)
    assert sizes(Config(slots=3), 64) == (3, MOST_IN_MEMORY)
    assert sizes(Config(ctx=512), 64) == (SLOTS, 512)


def test_what_does_not_fit_is_tried_with_the_fewest() -> None:
    assert sizes(Config(), 4) == (LEAST_SLOTS, 0)
    assert backends._sizes(Config(), None, is_demo=True) == (SLOTS, 0)


def test_precision_and_windows_count() -> None:
    room = memory_room("RAM", 24 * GIB, 24 * GIB)
    config = Config()
    full = backends._fit(config, GEMMA, room, room)
    small = backends._fit(replace(config, swa="small"), GEMMA, room, room)
    short = backends._fit(replace(config, kv_type="q8_0"), GEMMA, room, room)
    assert full is not None
    assert small is not None
    assert short is not None
    assert small.slots * small.context > full.slots * full.context
    assert short.slots * short.context > full.slots * full.context
    assert (full.kv_type, short.kv_type) == ("f16", "q8_0")


async def test_a_name_that_is_not_here_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONCLAVE_HOME", str(tmp_path))
    asked: list[str] = []

    async def nobody(name: str) -> None:
        asked.append(name)

    async def somebody(name: str) -> Path:
        return BUNDLED

    with pytest.raises(InvalidRequest, match="no model on this machine has this name"):
        await backends._file("of-a-peer", None, print, print, nobody, 0.0)
    assert asked == ["of-a-peer"]
    assert (await backends._file("of-a-peer", None, print, print, somebody, 0.0)).path == BUNDLED
    assert (await backends._file("bundled", None, print, print, nobody, 0.0)).is_demo
    assert asked == ["of-a-peer"]


@pytest.mark.parametrize(("said", "expected"), [
    ("qwen2.5:7b", True), ("owner/model:tag", True), ("Qwen3-8B", True), ("auto", False), ("bundled", False),
    ("hf:a/b", False), ("x.gguf", False), ("./x", False), ("~/x", False), ("/x", False), ("http://x", False),
])  # fmt: skip
def test_what_is_a_name(said: str, expected: bool) -> None:
    assert is_name(said) is expected
