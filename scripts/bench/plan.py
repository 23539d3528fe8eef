"""Does the plan's arithmetic hold? Ten shapes: what it says, what llama.cpp allocates, what the process takes.

    python scripts/bench/plan.py [--part shapes|process|all] [--quick] [--json]

The models are GGUF files of nothing but zeros (holes in the file), so that they cost no disk; llama.cpp allocates for
them what it would for real ones. Each is loaded by the node's own backend in a process of its own, which computes a
batch of a prompt and some steps and embeds a text, as votes on free text do; the buffers are read from llama.cpp's log,
and the memory of the process is its RSS less that before loading.

process: a whole node on the random 0.5B model with so many topics that those in memory (`--kv-memory`) are full and the
rest is on disk, and a text of 2,048 tokens embedded. Its RSS, less that of a node without a model, against the plan and
what topics may take.

Keys: `worst_allocated`, `worst_process`: the largest relative error over the shapes; `node_process`: of the node.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
MIB = 1 << 20


@dataclass(frozen=True)
class Model:
    """A shape, and how it is loaded."""

    name: str
    arch: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    kind: str = "Q8_0"
    head: int = 64
    tied: bool = True
    window: int = 0
    experts: int = 0
    used: int = 0
    ctx: int = 4096
    slots: int = 16
    kv_type: str = "f16"


MODELS = (
    Model("Qwen2.5 0.5B", "qwen2", 24, 896, 14, 2, 4864, 151_936),
    Model("Qwen2.5 0.5B, q8_0 KV, 4 slots", "qwen2", 24, 896, 14, 2, 4864, 151_936, "F16", slots=4, kv_type="q8_0"),
    Model("Llama 3.2 1B", "llama", 16, 2048, 32, 8, 8192, 128_256, "Q4_K"),
    Model("Llama 3.1 8B, 6 of 32 layers", "llama", 6, 4096, 32, 8, 14336, 128_256, "Q4_K", 128, tied=False, slots=8),
    Model("Qwen3 0.6B, 8k", "qwen3", 28, 1024, 16, 8, 3072, 151_936, "Q8_0", 128, ctx=8192, slots=8),
    Model("Qwen3 4B, 12 of 36 layers", "qwen3", 12, 2560, 32, 8, 9728, 151_936, "Q6_K", 128),
    Model("Gemma 2 2B, 13 of 26 layers", "gemma2", 13, 2304, 8, 4, 9216, 256_000, "Q8_0", 256, window=4096, slots=8),
    Model("Gemma 3 1B", "gemma3", 26, 1152, 4, 1, 6912, 262_144, "Q8_0", 256, window=512),
    Model("Qwen3 MoE, 8 of 48 layers, 32 experts", "qwen3moe", 8, 2048, 32, 4, 6144, 151_936, "Q8_0", 128, tied=False,
          experts=32, used=8),
    Model("Mistral 7B, 6 of 32 layers", "llama", 6, 4096, 32, 8, 14336, 32_768, "Q8_0", 128, tied=False, slots=32),
)  # fmt: skip
QUICK = ("Qwen2.5 0.5B", "Gemma 3 1B", "Qwen3 0.6B, 8k")


def write(path: Path, m: Model) -> None:
    """The head of a GGUF file, and a hole for its tensors."""
    import gguf
    import numpy as np

    from scripts.bench.make_model import TEMPLATE, bytes_to_unicode

    out = gguf.GGUFWriter(path, m.arch)
    out.add_name(m.name)
    out.add_block_count(m.layers)
    out.add_context_length(32_768)
    out.add_embedding_length(m.width)
    out.add_feed_forward_length(m.hidden)
    out.add_head_count(m.heads)
    out.add_head_count_kv(m.kv_heads)
    out.add_key_length(m.head)
    out.add_value_length(m.head)
    out.add_rope_freq_base(1e6)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(m.vocabulary)
    if m.window:
        out.add_sliding_window(m.window)
    if m.experts:
        out.add_expert_count(m.experts)
        out.add_expert_used_count(m.used)
        out.add_expert_feed_forward_length(768)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    filler = m.vocabulary - 257 - len(specials)
    out.add_token_list([*bytes_to_unicode(), "th", *(f"<filler{i}>" for i in range(filler)), *specials])
    out.add_token_types([1] * 257 + [5] * filler + [3] * len(specials))
    out.add_token_merges(["t h"])
    out.add_eos_token_id(m.vocabulary - 1)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)
    kind = gguf.GGMLQuantizationType[m.kind]
    values, size = gguf.GGML_QUANT_SIZES[kind]

    def matrix(name: str, columns: int, *rows: int) -> None:
        shape = (*reversed(rows), columns)
        nbytes = int(np.prod(shape)) // values * size
        stored = (*shape[:-1], columns // values * size) if m.kind != "F16" else shape
        out.add_tensor_info(name, stored, np.dtype(np.uint8 if m.kind != "F16" else np.float16), nbytes, kind)

    def vector(name: str, width: int) -> None:
        out.add_tensor_info(name, (width,), np.dtype(np.float32), width * 4, gguf.GGMLQuantizationType.F32)

    matrix("token_embd.weight", m.width, m.vocabulary)
    vector("output_norm.weight", m.width)
    if not m.tied:
        matrix("output.weight", m.width, m.vocabulary)
    for i in range(m.layers):
        block = f"blk.{i}."
        matrix(block + "attn_q.weight", m.width, m.heads * m.head)
        matrix(block + "attn_k.weight", m.width, m.kv_heads * m.head)
        matrix(block + "attn_v.weight", m.width, m.kv_heads * m.head)
        matrix(block + "attn_output.weight", m.heads * m.head, m.width)
        vector(block + "attn_norm.weight", m.width)
        vector(block + "ffn_norm.weight", m.width)
        if m.experts:
            vector_like = gguf.GGMLQuantizationType.F32
            out.add_tensor_info(block + "ffn_gate_inp.weight", (m.experts, m.width), np.dtype(np.float32),
                                m.experts * m.width * 4, vector_like)  # fmt: skip
            matrix(block + "ffn_gate_exps.weight", m.width, 768, m.experts)
            matrix(block + "ffn_up_exps.weight", m.width, 768, m.experts)
            matrix(block + "ffn_down_exps.weight", 768, m.width, m.experts)
        else:
            matrix(block + "ffn_gate.weight", m.width, m.hidden)
            matrix(block + "ffn_up.weight", m.width, m.hidden)
            matrix(block + "ffn_down.weight", m.hidden, m.width)
        if m.arch == "qwen2":
            vector(block + "attn_q.bias", m.heads * m.head)
            vector(block + "attn_k.bias", m.kv_heads * m.head)
            vector(block + "attn_v.bias", m.kv_heads * m.head)
        if m.arch in ("qwen3", "qwen3moe", "gemma3"):
            vector(block + "attn_q_norm.weight", m.head)
            vector(block + "attn_k_norm.weight", m.head)
        if m.arch in ("gemma2", "gemma3"):
            vector(block + "post_attention_norm.weight", m.width)
            vector(block + "post_ffw_norm.weight", m.width)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    size = sum(-(-t.nbytes // 32) * 32 for each in out.tensors for t in each.values())
    out.close()
    head = path.stat().st_size
    os.truncate(path, -(-head // 32) * 32 + size)


def child(path: Path, m: Model) -> dict[str, float]:
    """Load, compute, and say what was allocated and taken, and what the plan says of it; bytes."""
    import psutil

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("node.engine.llamacpp.native").addHandler(handler)
    logging.getLogger("node.engine.llamacpp.native").setLevel(logging.DEBUG)
    from node.core.shape import EMBED_ROWS, compute_bytes, embedding_cells, kv_bytes, need
    from node.engine.backend import Row
    from node.engine.llamacpp import LlamaBackend, LlamaOptions
    from node.hardware import cpu
    from node.models import gguf, shape

    processor = cpu.detect()
    assert processor is not None
    head = gguf.read(path)
    mmap = not shape.is_repacked(head, processor.features)
    before = psutil.Process().memory_full_info()
    backend = LlamaBackend(
        LlamaOptions(path, m.name, "", sequences=m.slots, context=m.ctx, kv_type=m.kv_type, threads=2, mmap=mmap)
    )
    backend.decode([Row(i % 200, i, 0, i == 511) for i in range(512)])
    info = backend.info
    for step in range(4):
        backend.decode([Row(1, 512 + step, 0, True)])
    backend.embed(["a" * 40])  # what a vote on free text does: a context more
    after = psutil.Process().memory_full_info()

    def size(kind: str) -> float:
        found = (re.findall(rf"{kind} buffer size =\s+([\d.]+) MiB", line) for line in lines)
        return sum(float(each) * MIB for sizes in found for each in sizes)

    sizes = shape.shape(head, processor.features)
    said = need(sizes, info.cells, m.slots, m.kv_type)
    embedding = embedding_cells(sizes)
    return {
        "planned": said.total,
        "allocated": size(""),
        "process": after.rss - before.rss,
        "weights": said.weights,
        "kv": said.kv + kv_bytes(sizes, embedding, "f16"),
        "compute": said.compute + compute_bytes(sizes, embedding, embedding, EMBED_ROWS, EMBED_ROWS),
        "allocated_weights": size("model"),
        "allocated_kv": size("KV"),
        "allocated_compute": size("compute"),
        "cells": info.cells,
        "mmap": mmap,
    }


def process(topics: int, first: int) -> dict[str, float]:
    """A node whose topics are in memory and on disk, against a node without a model; bytes."""
    import random

    import psutil

    from node.core.shape import cells_for, kv_bytes_per_cell, need
    from node.hardware import cpu
    from node.models import gguf, shape
    from node.v1 import generate_pb2, types_pb2
    from scripts.bench import running
    from scripts.bench.make_model import model
    from scripts.bench.traces import LETTERS

    slots, context, memory, disk = 8, 2048, 64, 512
    path, processor, rng = model("q8_0"), cpu.detect(), random.Random(1)
    assert processor is not None

    def rss(node: running.Node) -> int:
        return int(psutil.Process(node.process.pid).memory_info().rss)

    with running.node("--join", "none", "--backend", "fake") as fake:
        base = rss(fake)
    flags = ("--slots", str(slots), "--ctx", str(context), "--kv-memory", str(memory), "--kv-disk", str(disk))
    with running.node("--join", "none", "--model", str(path), *flags, "--disk-budget", "0") as node:
        loaded = rss(node)
        for topic in range(topics):
            text = "".join(rng.choice(LETTERS) for _ in range(first))
            request = generate_pb2.GenerateRequest(
                topic=f"t{topic}",
                messages=[types_pb2.Message(role="user", content=text)],
                candidates=1,
                scope=generate_pb2.SCOPE_LOCAL,
                params=types_pb2.SamplingParams(max_tokens=1),
            )
            node.generate.Generate(request, timeout=600)
        parked = rss(node)
        node.generate.Embed(generate_pb2.EmbedRequest(texts=["a" * 2048]), timeout=600)
        after = rss(node)
    sizes = shape.shape(gguf.read(path), processor.features)
    said = need(sizes, cells_for(slots, context, kv_bytes_per_cell(sizes, "f16")), slots, "f16")
    planned = said.total + (memory << 20)
    return {"planned": planned, "base": base, "loaded": loaded, "parked": parked, "process": after - base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["shapes", "process", "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="three of the ten shapes, and no node")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        [model] = [m for m in MODELS if m.name == args.child[1]]
        print(json.dumps(child(Path(args.child[0]), model)))
        return
    worst: dict[str, float] = {}
    if args.part != "process":
        worst |= shapes(QUICK if args.quick else [m.name for m in MODELS])
    if args.part != "shapes" and not args.quick:
        r = process(60, 256)
        worst["node_process"] = abs(r["planned"] / r["process"] - 1)
        sizes = {name: f"{size / MIB:.0f}" for name, size in r.items()}
        print(
            f"a node, MiB: {sizes['base']} without a model, {sizes['loaded']} loaded, {sizes['parked']} with topics in "
            f"memory and on disk; beyond the first, with a text embedded: {sizes['process']} taken, {sizes['planned']} "
            f"planned for model and topics: {r['planned'] / r['process'] - 1:+.1%}"
        )
    if args.json:
        print(json.dumps(worst))


def shapes(names: Sequence[str]) -> dict[str, float]:
    """The shapes, each in a process of its own."""
    results: dict[str, dict[str, float]] = {}
    print(f"{'MiB':40} {'plan':>6} {'allocated':>9} {'':>6} {'process':>8} {'':>6}   of it compute: plan, allocated")
    for m in MODELS:
        if m.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write(path, m)
            command = [sys.executable, __file__, "--child", str(path), m.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{m.name}: {done.stderr.strip().splitlines()[-1:]}")
        r = results[m.name] = json.loads(done.stdout.splitlines()[-1])
        r["allocated_error"] = r["planned"] / r["allocated"] - 1
        r["process_error"] = r["planned"] / r["process"] - 1
        print(
            f"{m.name:40} {r['planned'] / MIB:6.0f} {r['allocated'] / MIB:9.0f} {r['allocated_error']:+6.1%} "
            f"{r['process'] / MIB:8.0f} {r['process_error']:+6.1%}   "
            f"{r['compute'] / MIB:7.1f} {r['allocated_compute'] / MIB:7.1f}{'' if r['mmap'] else ' (read)'}",
            flush=True,
        )
    worst: dict[str, float] = {
        "worst_allocated": max(abs(r["allocated_error"]) for r in results.values()),
        "worst_process": max(abs(r["process_error"]) for r in results.values()),
        "shapes": len(results),
    }
    print(f"worst: {worst['worst_allocated']:.1%} of what is allocated, {worst['worst_process']:.1%} of the process")
    return worst


if __name__ == "__main__":
    main()
