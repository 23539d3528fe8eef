"""The plan: the table of memory sizes, ours beside it, and what holds of every plan."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core import plan as planning
from node.core.plan import CONTEXT, GIB, LEAST_SLOTS, Room, fit, gpu_room, memory_room, offloaded, shared, together
from node.core.quantization import QUANTIZATIONS, Facts, shape
from node.core.shape import Shape, kv_bytes, need, padded
from node.models import catalogue

QWEN_7B = Facts(28, 3584, 28, 4, 128, 18944, 152064, 32768)
QWEN_14B = Facts(48, 5120, 40, 8, 128, 13824, 152064, 32768)
LLAMA_3B = Facts(28, 3072, 24, 8, 128, 8192, 128256, 131072, is_tied=True)
QWEN_32B = Facts(64, 5120, 64, 8, 128, 25600, 151936, 40960)
QWEN_05B = Facts(24, 896, 14, 2, 64, 4864, 151936, 32768, is_tied=True)
KNOWN = {"S 0.5B": QWEN_05B, "S 3B": LLAMA_3B, "S 7B": QWEN_7B, "S 14B": QWEN_14B, "S 32B": QWEN_32B}
OFFERS = [shape(name, facts, q) for name, facts in KNOWN.items() for q in QUANTIZATIONS]
CLASSES = {name: name.removeprefix("S ") for name in KNOWN}


def gpu(gib: float, free: float | None = None) -> Room:
    return gpu_room("GPU", int(gib * GIB), int((gib if free is None else free) * GIB))


@pytest.mark.parametrize(("gib", "model", "quantization"), [
    (24, "S 14B", "Q4_K_M"), (16, "S 7B", "Q4_K_M"), (8, "S 3B", "Q6_K"), (23.99, "S 14B", "Q4_K_M"),
    (15.4, "S 7B", "Q4_K_M"),
])  # fmt: skip
def test_the_original_table_with_its_copies_and_ours(gib: float, model: str, quantization: str) -> None:
    made = planning.plan(OFFERS, CLASSES, gpu(gib))
    assert made is not None
    assert (made.fit.shape.name, made.fit.shape.quantization) == (model, quantization)
    assert 2 <= made.copies <= 4
    assert made.copies * made.copy_bytes <= made.room.usable
    assert made.fit.slots >= 4 * made.copies or made.fit.slots >= 8
    assert made.fit.candidates in (4, 8)
    assert made.bigger is not None
    assert made.bigger.shape.weight_bytes > made.fit.shape.weight_bytes


def test_what_others_use_counts() -> None:
    idle, busy = planning.plan(OFFERS, CLASSES, gpu(24)), planning.plan(OFFERS, CLASSES, gpu(24, free=7))
    assert idle is not None
    assert busy is not None
    assert busy.fit.shape.name == "S 7B"
    assert any("S 14B Q4_K_M does not fit" in reason for reason in busy.why)


def test_nothing_fits() -> None:
    assert planning.plan(OFFERS, CLASSES, gpu(0.3)) is None
    least = planning.plan(OFFERS, CLASSES, gpu(2))
    assert least is not None
    assert least.fit.shape.name == "S 0.5B"


@pytest.mark.parametrize(("total", "free", "limit", "usable"), [
    (64, 60, 0, 60), (64, 40, 0, 40), (64, 60, 48, 48), (8, 8, 0, 4), (6, 6, 0, 3), (4, 1, 0, 1),
])  # fmt: skip
def test_the_rule_for_main_memory(total: int, free: int, limit: int, usable: int) -> None:
    assert memory_room("RAM", total * GIB, free * GIB, limit * GIB).usable == usable * GIB


def test_the_rule_for_gpus() -> None:
    assert gpu(10).usable == 9 * GIB
    assert gpu(10, free=3).usable == 3 * GIB
    both = together([gpu(10), gpu(20)])
    assert (both.total, both.usable) == (30 * GIB, 27 * GIB)


def test_layers_are_shared_where_the_gpu_is_too_small() -> None:
    wanted = shape("S 14B", QWEN_14B, "Q4_K_M")
    found = shared(wanted, gpu(8), memory_room("RAM", 32 * GIB, 30 * GIB))
    assert found is not None
    assert 0 < found.gpu_layers < wanted.layers + 1
    # One more layer would not have fitted.
    assert offloaded(wanted, gpu(8).usable, found) == found.gpu_layers
    assert shared(wanted, gpu(24), memory_room("RAM", 32 * GIB, 30 * GIB)).gpu_layers == 49  # type: ignore[union-attr]
    assert shared(wanted, gpu(2), memory_room("RAM", 6 * GIB, 4 * GIB)) is None


@given(st.sampled_from(OFFERS), st.integers(1, 64), st.booleans())
def test_a_fit_fits(offer: Shape, gib: int, on_gpu: bool) -> None:
    found = fit(offer, gib * GIB, on_gpu=on_gpu)
    if found is None:
        least = need(offer, LEAST_SLOTS * CONTEXT, LEAST_SLOTS, "q8_0")
        assert least.total > gib * GIB or on_gpu
        return
    assert found.need.total <= gib * GIB
    assert found.slots >= LEAST_SLOTS
    assert found.context <= found.cells <= found.slots * found.context
    assert found.cells == found.slots * found.context or not on_gpu
    assert found.context <= offer.context
    more = fit(offer, 2 * gib * GIB, on_gpu=on_gpu)
    assert more is not None
    assert (more.slots, more.context) >= (found.slots, found.context)


@given(st.integers(1, 1 << 20), st.integers(1, 64))
def test_windows_need_less_when_they_are_not_kept_whole(cells: int, sequences: int) -> None:
    gemma = shape("G", Facts(26, 1152, 4, 1, 256, 6912, 262144, 32768, True, 512, 6), "Q8_0")
    full = kv_bytes(gemma, cells, "f16", sequences=sequences)
    assert full == padded(cells) * 26 * 2 * 256 * 2
    assert kv_bytes(gemma, cells, "f16", sequences=sequences, swa_full=False) <= full
    assert sum(gemma.windowed) == 22


def test_sizes_of_files_that_are_known() -> None:
    """As the files of bartowski's repositories are listed (GB): Qwen3-14B and Qwen2.5-7B."""
    qwen3_14b = Facts(40, 5120, 40, 8, 128, 17408, 151936, 40960)
    sizes = [round(shape("", qwen3_14b, q).weight_bytes / 1e9, 1) for q in QUANTIZATIONS]
    assert sizes == [9.0, 12.1, 15.7]
    assert round(shape("", QWEN_7B, "Q4_K_M").weight_bytes / 1e9, 2) == 4.68


def test_a_processor_gets_a_model_that_writes_as_fast_as_people_read() -> None:
    """What fits and is too slow is passed over, and said; a GPU's memory is not asked for its speed."""
    room = planning.memory_room("a processor", 32 * GIB, 30 * GIB)
    by_memory = planning.plan(catalogue.shapes(), catalogue.classes(), room)
    slow = planning.plan(catalogue.shapes(), catalogue.classes(), room, bytes_per_s=40e9)
    fast = planning.plan(catalogue.shapes(), catalogue.classes(), room, bytes_per_s=400e9)
    assert by_memory is not None
    assert slow is not None
    assert fast is not None
    assert (by_memory.fit, by_memory.bigger) == (fast.fit, fast.bigger)
    assert slow.fit.shape.weight_bytes < by_memory.fit.shape.weight_bytes
    about, most = planning.tokens_per_s(slow.fit.shape, 40e9)
    assert planning.READABLE <= about < most
    assert f"{by_memory.fit.shape.name} Q4_K_M fits, but would write about 2.3 tokens/s" in slow.why
    assert any("40 GB/s" in line for line in slow.why)
    crawling = planning.plan(catalogue.shapes(), catalogue.classes(), room, bytes_per_s=1e9)
    assert crawling is not None
    assert crawling.fit.shape.name == "Qwen2.5-0.5B-Instruct", "the smallest is never passed over"


def test_noise_does_not_change_what_was_fetched() -> None:
    """A model was proposed and fetched by the speed of one day; on another day a tenth less is measured."""
    room = planning.memory_room("a processor", 16 * GIB, 14 * GIB)
    known = catalogue.shapes(), catalogue.classes(), room
    wanted = next(s for s in catalogue.shapes() if (s.name, s.quantization) == ("Qwen2.5-7B-Instruct", "Q4_K_M"))
    just = wanted.read_bytes * planning.READABLE / planning.SHARE
    first = planning.plan(*known, bytes_per_s=just * 1.01)
    noisy = planning.plan(*known, bytes_per_s=just * 0.9)
    kept = planning.plan(*known, bytes_per_s=just * 0.9, here={("Qwen2.5-7B-Instruct", "Q4_K_M")})
    crawling = planning.plan(*known, bytes_per_s=just * 0.7, here={("Qwen2.5-7B-Instruct", "Q4_K_M")})
    assert first is not None
    assert noisy is not None
    assert kept is not None
    assert crawling is not None
    assert first.fit == kept.fit
    assert first.fit.shape.name == "Qwen2.5-7B-Instruct"
    assert noisy.fit.shape.name == crawling.fit.shape.name == "Llama-3.2-3B-Instruct"
    # The start of a node decides by the same rule.
    smaller = noisy.fit.shape
    assert planning.pick([wanted, smaller], room, just * 0.9).at == 0
    assert planning.pick([wanted, smaller], room, just * 0.7).at == 1


def test_main_memory_is_left_to_others() -> None:
    """A small model on a large machine: no slot of 32,768 tokens, and no cells for all of them at once."""
    offer = shape("S 0.5B", QWEN_05B, "Q8_0")
    on_processor, on_gpu = fit(offer, 20 * GIB, on_gpu=False), fit(offer, 20 * GIB, on_gpu=True)
    assert on_processor is not None
    assert on_gpu is not None
    assert (on_processor.slots, on_processor.context) == (planning.SLOTS, planning.MOST_IN_MEMORY)
    assert (on_gpu.slots, on_gpu.context) == (planning.SLOTS, planning.MOST_CONTEXT)
    assert on_processor.cells < planning.SLOTS * planning.MOST_IN_MEMORY
    assert on_processor.need.kv == kv_bytes(offer, on_processor.cells, "f16", sequences=planning.SLOTS)


def test_a_limit_of_the_owner() -> None:
    room = memory_room("RAM", 32 * GIB, 30 * GIB)
    assert planning.bounded(room, 8 * GIB) == replace(room, usable=8 * GIB, rule="--max-memory")
    assert planning.bounded(room, 64 * GIB) == room


def test_of_a_mixture_a_token_reads_the_experts_that_it_uses() -> None:
    [mixed] = [e for e in catalogue.entries() if e.facts.experts]
    shape = mixed.shape("Q4_K_M")
    assert 0.05 < shape.read_bytes / shape.weight_bytes < 0.2, "3 of 30 billion"
    assert planning.tokens_per_s(replace(shape, idle_bytes=None), 1e9) == (0.0, 0.0), "what is not known is not said"


def test_which_model_is_taken_by_what_it_would_write() -> None:
    """40 GB/s and half of it for decoding: 8.4 GB of weights make 2.4 tokens/s, 4.4 GB 4.6, 1.8 GB 10.9. What is here
    is kept down to four."""
    names = ("Llama-3.3-70B-Instruct", "Qwen3-14B", "Qwen3-8B", "Llama-3.2-3B-Instruct")
    by_name = {s.name: s for s in catalogue.shapes() if s.quantization == "Q4_K_M"}
    shapes = [by_name[name] for name in names]
    room = planning.memory_room("a machine", 64 * GIB, 40 * GIB)
    assert planning.pick(shapes, room) == planning.Pick(1), "the biggest that fits, where no speed is known"
    assert planning.pick(shapes, room, 40e9) == planning.Pick(2, slow=(1,)), "a little slow, and here"
    assert planning.pick(shapes, room, 30e9) == planning.Pick(3, slow=(1, 2))
    assert planning.pick(shapes, room, 200e9) == planning.Pick(1)
    assert planning.pick(shapes, room, 1e9) == planning.Pick(3, slow=(1, 2, 3)), "slow is better than none"
    assert planning.pick(shapes[:1], room, 200e9) == planning.Pick(None)
    assert planning.pick([], room, 200e9) == planning.Pick(None)
    # Of a mixture of experts a token takes the ones in use only: 3 of 30 billion parameters.
    mixture = by_name["Qwen3-30B-A3B-Instruct-2507"]
    assert planning.pick([mixture, *shapes], room, 40e9) == planning.Pick(0)
    looked: list[str] = []

    def slowly() -> Iterator[Shape]:
        for each in shapes[1:]:
            looked.append(each.name)
            yield each

    planning.pick(slowly(), room, 200e9)
    assert looked == ["Qwen3-14B"], "files are read one by one, and no more than must be"
