"""A model's sizes: read from real files, and what llama.cpp allocates against what the arithmetic says."""

import ctypes
import logging
import re
import sys
from pathlib import Path

import pytest
import recurrentmodels

from node.core.quantization import Facts
from node.core.quantization import shape as planned_shape
from node.core.shape import kv_bytes_per_cell, need
from node.errors import BackendError, NotFound
from node.hardware import cpu
from node.models import catalogue, gguf, split
from node.models.resolve import BUNDLED
from node.models.shape import is_repacked, shape

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import plan as bench

MIB = 1 << 20
SMALL = (
    bench.Model("plain", "qwen2", 3, 256, 4, 2, 512, 2000, ctx=2048, slots=4),
    bench.Model("repacked and tied", "llama", 2, 512, 4, 2, 1024, 4096, "Q4_K", 128, ctx=2048, slots=8),
    bench.Model("window", "gemma3", 6, 256, 2, 1, 512, 2000, "Q8_0", 128, window=128, ctx=2048, slots=4),
    bench.Model("experts", "qwen3moe", 2, 256, 4, 2, 1024, 2000, "Q8_0", 64, tied=False, experts=16, used=4, ctx=2048),
)


CASES = [(model, "full") for model in SMALL] + [(SMALL[2], "small")]


@pytest.mark.parametrize(("model", "swa"), CASES, ids=[f"{m.name} {swa}" for m, swa in CASES])
def test_what_llama_cpp_allocates(
    model: bench.Model, swa: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from node.engine.llamacpp import LlamaBackend, LlamaOptions

    path = tmp_path / "model.gguf"
    bench.write(path, model)
    head = gguf.read(path)
    features = (cpu.detect() or pytest.skip("the system does not say what its processor is")).features
    caplog.set_level(logging.DEBUG)
    backend = LlamaBackend(
        LlamaOptions(
            path,
            "m",
            "",
            sequences=model.slots,
            context=model.ctx,
            swa=swa,
            threads=1,
            mmap=not is_repacked(head, features),
        )
    )
    cells = backend.info.cells
    backend.embed(["one"])
    backend.close()
    found = [float(n) for r in caplog.records for n in re.findall(r"buffer size = +([\d.]+) MiB", r.getMessage())]
    said = need(shape(head, features), cells, model.slots, "f16", swa_full=swa == "full")
    assert sum(found) > 0
    assert said.total / MIB == pytest.approx(sum(found), rel=0.05)


@pytest.mark.parametrize("kind", ["mamba2", "jamba", "granitehybrid", "falcon-h1", "nemotron_h", "lfm2", "qwen35"])
def test_what_llama_cpp_allocates_for_recurrent_layers(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its KV in layers with attention alone, and the states, to the byte; all of it within 10 %."""
    from node.engine.llamacpp import LlamaBackend, LlamaOptions

    path, slots = tmp_path / "model.gguf", 8
    wider = {"embedding_length": 256, "ssm.inner_size": 512, "ssm.state_size": 32, "ssm.time_step_rank": 16}
    recurrentmodels.write(path, kind, **wider, **({} if kind == "mamba2" else {"attention.head_count": 8}))
    found = shape(gguf.read(path))
    caplog.set_level(logging.DEBUG)
    row = kv_bytes_per_cell(found, "f16")
    backend = LlamaBackend(LlamaOptions(path, "m", "", sequences=slots, context=1024, row=row, threads=1, mmap=False))
    cells = backend.info.cells
    said = "\n".join(r.getMessage() for r in caplog.records)
    backend.embed(["one"])
    backend.close()
    kept = sum(float(n) for n in re.findall(r" (?:KV|RS) buffer size = +([\d.]+) MiB", said))
    wanted = need(found, cells, slots, "f16")
    assert wanted.kv / MIB == pytest.approx(kept, abs=0.02)
    everything = [float(n) for r in caplog.records for n in re.findall(r"buffer size = +([\d.]+) MiB", r.getMessage())]
    assert wanted.total / MIB == pytest.approx(sum(everything), rel=0.1)


def quantize(source: Path, target: Path, kind: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)) == 0


def test_the_recipe_is_llama_cpps(tmp_path: Path) -> None:
    """A random model that llama.cpp quantizes is as large as the recipe says, layer by layer."""
    from scripts.bench.make_model import Shape, write

    sizes = Shape("qwen2", layers=9, width=256, heads=4, kv_heads=2, hidden=512, vocabulary=1024, context=2048)
    write(tmp_path / "f16.gguf", sizes)
    facts = Facts(9, 256, 4, 2, 64, 512, 1024, 2048, is_tied=True)
    for kind in ("q4_k_m", "q6_k", "q8_0"):
        target = tmp_path / f"{kind}.gguf"
        quantize(tmp_path / "f16.gguf", target, kind)
        real, said = shape(gguf.read(target)), planned_shape("m", facts, kind.upper())
        assert real.quantization == kind.upper()
        assert said.weight_bytes == pytest.approx(real.weight_bytes, rel=0.02)
        assert said.key_widths == real.key_widths


def test_the_bundled_model() -> None:
    found = shape(gguf.read(BUNDLED))
    assert (found.layers, found.embedding, found.vocabulary, found.is_tied) == (4, 128, 1155, True)
    assert found.weight_bytes == found.input_bytes + found.output_bytes + sum(found.layer_bytes)


def test_parameters_of_the_catalogue() -> None:
    """What follows from each entry's sizes is what its model card says: a wrong size would show."""
    assert len(catalogue.entries()) > 20
    for entry in catalogue.entries():
        assert entry.facts.parameters == pytest.approx(entry.parameters, rel=0.015), entry.name
        assert "/" in entry.repo
        assert entry.licence
        assert not entry.facts.window or entry.facts.window_every


def test_sizes_of_files_that_were_seen() -> None:
    """What the arithmetic says of a Q4_K_M file, and what its repository holds: the difference is its vocabulary."""
    seen = [entry for entry in catalogue.entries() if entry.file_bytes]
    assert len(seen) >= 10
    for entry in seen:
        said = entry.shape("Q4_K_M").weight_bytes
        assert said <= entry.file_bytes, entry.name
        assert said == pytest.approx(entry.file_bytes, rel=0.02), entry.name


def test_what_is_read_is_a_page() -> None:
    read = {entry.name: entry.read for entry in catalogue.entries() if entry.read}
    assert len(read) >= 18
    assert all(page.startswith("https://") and " " not in page for page in read.values())


def test_every_entry_says_what_it_was_checked_with() -> None:
    assert {entry.checked for entry in catalogue.entries()} == {"litgpt", "size", "others"}


@pytest.mark.parametrize(("asked", "name"), [
    ("Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct"), ("qwen2.5-7b", "Qwen2.5-7B-Instruct"),
    ("qwen3_4b", "Qwen3-4B-Instruct-2507"), ("gemma-3-1b", "gemma-3-1b-it"), ("PHI-4", "phi-4"), ("phi", None),
    ("", None),
])  # fmt: skip
def test_names_of_the_catalogue(asked: str, name: str | None) -> None:
    found = catalogue.find(asked)
    assert (found.name if found else None) == name


def split_model(folder: Path) -> list[Path]:
    """A small model in two files, as llama-gguf-split makes them: tensors shared out, the metadata in the first."""
    import gguf as writer
    import numpy as np

    paths = split.parts(folder / "m-00001-of-00002.gguf")
    for part, path in enumerate(paths):
        out = writer.GGUFWriter(path, "llama")
        if part == 0:
            out.add_name("split")
            out.add_block_count(2)
            out.add_embedding_length(64)
        out.add_uint16("split.no", part)
        out.add_uint16("split.count", 2)
        out.add_tensor("token_embd.weight" if part == 0 else "output.weight", np.zeros((10, 64), np.float32))
        out.add_tensor(f"blk.{part}.attn_q.weight", np.zeros((64, 64), np.float32))
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
    return paths


def test_split_files(tmp_path: Path) -> None:
    first, second = split_model(tmp_path)
    head = split.read(second)
    found = shape(head)
    assert found.layer_bytes == (64 * 64 * 4, 64 * 64 * 4)
    assert (found.input_bytes, found.is_tied) == (10 * 64 * 4, False)
    assert found.weight_bytes == 2 * (64 * 64 * 4) + 2 * (10 * 64 * 4)
    assert split.stem(first.name) == "m"
    assert head.head_sha256 != gguf.read(first).head_sha256
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(NotFound, match=r"00002-of-00002\.gguf is missing"):
        split.read(first)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(first.read_bytes())
    with pytest.raises(BackendError, match="is not part 2"):
        split.read(first)
    with pytest.raises(BackendError, match="one of 2 parts"):
        split.read(tmp_path / "elsewhere.gguf")


def test_numbers_that_a_file_may_claim(tmp_path: Path) -> None:
    """Absurd sizes neither raise nor take time."""
    import gguf as writer
    import numpy as np

    path = tmp_path / "m.gguf"
    out = writer.GGUFWriter(path, "gemma3")
    for key, value in (("block_count", 2**32 - 1), ("embedding_length", 2**32 - 1), ("attention.head_count", 0)):
        out.add_uint32(f"gemma3.{key}", value)
    out.add_uint32("gemma3.attention.sliding_window", 2**31)
    out.add_array("gemma3.attention.head_count_kv", [2**30] * 5)
    out.add_tensor("token_embd.weight", np.zeros((2, 64), np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    found = shape(gguf.read(path))
    assert found.layers == 1024
    assert len(found.key_widths) == len(found.windowed) == 1024
    assert need(found, 4096, 16, "f16").total > 0
