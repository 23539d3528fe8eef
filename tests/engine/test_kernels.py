"""Our matrix product and our attention give what arithmetic says, in every shape that takes another path through them.

The products' numbers are whole and their scales powers of two, so that sums are exact whatever their order: results
must be equal, not near. Where the processor has no kernel of ours, llama.cpp's own must pass the same, attention less
exactly: it keeps sums in 16 bits and quantizes queries.
"""

import contextlib
import ctypes
import platform
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

LIB = Path(llama_cpp.__file__).parent / "lib"
F32, F16, Q8_0, I32 = 0, 1, 8, 26
QUANTIZED = gguf.GGMLQuantizationType.Q8_0
TYPES = gguf.GGMLQuantizationType
# Where a block has half floats: ggml-common.h. All its other bytes may be any.
SCALES = {
    TYPES.Q8_0: (0,), TYPES.Q4_0: (0,), TYPES.Q5_0: (0,), TYPES.Q4_1: (0, 2), TYPES.Q5_1: (0, 2),
    TYPES.Q4_K: (0, 2), TYPES.Q5_K: (0, 2), TYPES.Q6_K: (208,), TYPES.MXFP4: (),
}  # fmt: skip
REPACKED = (TYPES.Q4_0, TYPES.Q4_K, TYPES.MXFP4)


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def library(name: str) -> ctypes.CDLL:
    suffix = "dylib" if platform.system() == "Darwin" else "so"
    return ctypes.CDLL(str(LIB / f"lib{name}.{suffix}"))


CPU = Path("/proc/cpuinfo")
# Rows that our attention holds in registers at once: a larger group of heads goes to llama.cpp's own.
MOST_ROWS = 64 if CPU.exists() and "avx512f" in CPU.read_text() else 32
HAS_AVX2 = CPU.exists() and "avx2" in CPU.read_text()
HAS_KERNELS = hasattr(library("ggml-cpu"), "__wrap_ggml_compute_forward_flash_attn_ext")


class Graph:
    """A few tensors and one result, computed by ggml's CPU backend; freed at the end of the block."""

    def __init__(self, size: int) -> None:
        self.base, self.cpu = library("ggml-base"), library("ggml-cpu")
        for name in ("init", "new_tensor_3d", "mul_mat", "mul_mat_id", "flash_attn_ext", "new_graph", "get_data"):
            getattr(self.base, f"ggml_{name}").restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self.base.ggml_init(InitParams(size + (16 << 20), None, False)))

    def __enter__(self) -> "Graph":
        return self

    def __exit__(self, *_: object) -> None:
        self.base.ggml_free(self._context)

    def tensor(self, kind: int, data: np.ndarray, *shape: int) -> ctypes.c_void_p:
        """`shape` has the fastest dimension first, as ggml's."""
        sizes = [ctypes.c_int64(n) for n in (*shape, 1, 1)[:3]]
        tensor = ctypes.c_void_p(self.base.ggml_new_tensor_3d(self._context, kind, *sizes))
        ctypes.memmove(self.base.ggml_get_data(tensor), np.ascontiguousarray(data).tobytes(), data.nbytes)
        return tensor

    def compute(self, threads: int, operation: str, *operands: object, shape: tuple[int, ...]) -> np.ndarray:
        out = ctypes.c_void_p(getattr(self.base, f"ggml_{operation}")(self._context, *operands))
        graph = ctypes.c_void_p(self.base.ggml_new_graph(self._context))
        self.base.ggml_build_forward_expand(graph, out)
        assert self.cpu.ggml_graph_compute_with_ctx(self._context, graph, threads) == 0
        data = ctypes.string_at(self.base.ggml_get_data(out), 4 * int(np.prod(shape)))
        return np.frombuffer(data, "<f4").reshape(shape)


class Repacked:
    """Weights as llama.cpp lays them out anew for the processor when it loads a model: a buffer of their own."""

    def __init__(self, kind: int, data: np.ndarray, *shape: int) -> None:
        self.base, cpu = library("ggml-base"), library("ggml-cpu")
        cpu.ggml_backend_cpu_reg.restype = ctypes.c_void_p
        for name in (
            "init", "new_tensor_3d", "backend_reg_dev_get", "backend_reg_get_proc_address",
            "backend_alloc_ctx_tensors_from_buft",
        ):  # fmt: skip
            getattr(self.base, f"ggml_{name}").restype = ctypes.c_void_p
        registry = ctypes.c_void_p(cpu.ggml_backend_cpu_reg())
        device = ctypes.c_void_p(self.base.ggml_backend_reg_dev_get(registry, ctypes.c_size_t(0)))
        found = self.base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        types = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(found)(device)
        self.base.ggml_backend_buft_name.restype = ctypes.c_char_p
        index, named = 0, {}
        while types[index]:
            named[self.base.ggml_backend_buft_name(ctypes.c_void_p(types[index]))] = ctypes.c_void_p(types[index])
            index += 1
        self._context = ctypes.c_void_p(self.base.ggml_init(InitParams(1 << 20, None, True)))
        sizes = [ctypes.c_int64(n) for n in (*shape, 1, 1)[:3]]
        self.tensor = ctypes.c_void_p(self.base.ggml_new_tensor_3d(self._context, kind, *sizes))
        allocate = self.base.ggml_backend_alloc_ctx_tensors_from_buft
        self._buffer = ctypes.c_void_p(allocate(self._context, named[b"CPU_REPACK"]))
        size = ctypes.c_size_t(data.nbytes)
        self.base.ggml_backend_tensor_set(self.tensor, data.tobytes(), ctypes.c_size_t(0), size)

    def __enter__(self) -> ctypes.c_void_p:
        return self.tensor

    def __exit__(self, *_: object) -> None:
        self.base.ggml_backend_buffer_free(self._buffer)
        self.base.ggml_free(self._context)


def product(
    kind: int, weights: np.ndarray, activations: np.ndarray, threads: int, repacked: bool = False
) -> np.ndarray:
    """ggml's mul_mat of quantized rows (m, bytes) and float rows (n, k): (n, m)."""
    (m, _), (n, k) = weights.shape, activations.shape
    with Graph(weights.nbytes + 4 * (n * k + n * m)) as graph, contextlib.ExitStack() as stack:
        a = stack.enter_context(Repacked(kind, weights, k, m)) if repacked else graph.tensor(kind, weights, k, m)
        b = graph.tensor(F32, activations.astype("<f4"), k, n)
        return graph.compute(threads, "mul_mat", a, b, shape=(n, m))


def experts_product(
    kind: int, weights: np.ndarray, activations: np.ndarray, ids: np.ndarray, threads: int, repacked: bool = False
) -> np.ndarray:
    """ggml's mul_mat_id of experts (e, m, bytes), rows (tokens, 1 or used, k), each token's experts."""
    (e, m, _), (tokens, own, k), used = weights.shape, activations.shape, ids.shape[1]
    with Graph(weights.nbytes + 4 * (activations.size + ids.size * (m + 1))) as graph, contextlib.ExitStack() as stack:
        shape = (k, m, e)
        a = stack.enter_context(Repacked(kind, weights, *shape)) if repacked else graph.tensor(kind, weights, *shape)
        b = graph.tensor(F32, activations.astype("<f4"), k, own, tokens)
        c = graph.tensor(I32, ids.astype("<i4"), used, tokens)
        return graph.compute(threads, "mul_mat_id", a, b, c, shape=(tokens, used, m))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, threads: int, kind: int) -> np.ndarray:
    """ggml's flash attention of queries (heads, tokens, size), keys and values (KV heads, cells, size)."""
    heads, tokens, size = q.shape
    kv_heads, cells, width = v.shape
    with Graph(8 * (q.size + k.size + v.size + mask.size) + 4 * heads * tokens * width) as graph:
        tensors = (
            graph.tensor(F32, q.astype("<f4"), size, tokens, heads),
            graph.tensor(kind, _stored(k, kind), size, cells, kv_heads),
            graph.tensor(kind, _stored(v, kind), width, cells, kv_heads),
            graph.tensor(F16, mask.astype("<f2"), cells, tokens),
        )
        scale, none = ctypes.c_float(size**-0.5), ctypes.c_float(0)
        out = graph.compute(threads, "flash_attn_ext", *tensors, scale, none, none, shape=(tokens, heads, width))
    return out.transpose(1, 0, 2)


def _stored(values: np.ndarray, kind: int) -> np.ndarray:
    return values.astype("<f2") if kind == F16 else gguf.quants.quantize(values.astype("<f4"), QUANTIZED)


def plain_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same by its definition, in 64 bits; a token that sees nothing gives zeros."""
    group = q.shape[0] // k.shape[0]
    k, v = (np.repeat(each.astype(np.float64), group, axis=0) for each in (k, v))
    scores = mask + q @ np.where(np.isfinite(k), k, 0).swapaxes(1, 2) * q.shape[2] ** -0.5
    top = np.where(np.isfinite(scores), scores, -np.inf).max(axis=2, keepdims=True)
    weights = np.where(mask == -np.inf, 0.0, np.exp(scores - np.where(np.isfinite(top), top, 0.0)))
    return weights @ np.where(np.isfinite(v), v, 0) / np.maximum(weights.sum(axis=2, keepdims=True), 1e-300)


def random_weights(kind: gguf.GGMLQuantizationType, rows: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of blocks with any bytes, and scales that keep sums exact."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, k // values, size), dtype=np.uint8)
    if kind == TYPES.Q6_K:
        blocks[..., 192:208] = rng.integers(-9, 10, (*blocks.shape[:2], 16)).astype(np.int8).view(np.uint8)
    if kind == TYPES.MXFP4:
        blocks[..., 0] = rng.choice([127, 128], blocks.shape[:2])  # exponents of 0.5 and 1.0
    for at in SCALES[kind]:
        scales = rng.choice([0.5, 1.0], blocks.shape[:2]).astype("<f2")
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def whole_activations(columns: int, k: int, rng: np.random.Generator) -> np.ndarray:
    activations = rng.integers(-127, 128, (columns, k))
    activations[:, ::32] = 127  # the greatest of its block: so its scale is 1 and nothing is rounded
    return activations


@pytest.mark.parametrize("columns", [1, 2, 3, 8, 15, 16, 17, 33, 513])
@pytest.mark.parametrize(("rows", "k"), [(16, 32), (128, 896), (70, 64), (48, 2080), (7, 96)])
def test_products_are_exact(rows: int, k: int, columns: int) -> None:
    rng = np.random.default_rng(rows * k + columns)
    weights, activations = random_weights(TYPES.Q8_0, rows, k, rng), whole_activations(columns, k, rng)
    plain = activations @ gguf.quants.dequantize(weights, TYPES.Q8_0).astype(np.float64).T
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(product(TYPES.Q8_0, weights, activations, threads), plain)


@pytest.mark.parametrize("columns", [2, 5, 16, 19])
@pytest.mark.parametrize(("rows", "k"), [(64, 1024), (43, 512), (7, 768)])
@pytest.mark.parametrize("kind", [kind for kind in SCALES if kind != TYPES.Q8_0])
def test_products_of_every_type_are_exact(kind: gguf.GGMLQuantizationType, rows: int, k: int, columns: int) -> None:
    rng = np.random.default_rng(rows * k + columns)
    weights, activations = random_weights(kind, rows, k, rng), whole_activations(columns, k, rng)
    plain = activations @ gguf.quants.dequantize(weights, kind).astype(np.float64).T
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(product(kind, weights, activations, threads), plain)


@pytest.mark.skipif(
    not HAS_AVX2, reason="llama.cpp repacks these types for other processors in other ways, or not at all"
)
@pytest.mark.parametrize("columns", [1, 2, 5, 16, 19, 515])
@pytest.mark.parametrize(("rows", "k"), [(8, 256), (72, 1024), (1000, 256)])
@pytest.mark.parametrize("kind", REPACKED)
def test_products_of_repacked_weights_are_exact(
    kind: gguf.GGMLQuantizationType, rows: int, k: int, columns: int
) -> None:
    rng = np.random.default_rng(rows * k + columns)
    weights, activations = random_weights(kind, rows, k, rng), whole_activations(columns, k, rng)
    plain = activations @ gguf.quants.dequantize(weights, kind).astype(np.float64).T
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(product(kind, weights, activations, threads, repacked=True), plain)


def sent(tokens: int, experts: int, used: int, rng: np.random.Generator) -> np.ndarray:
    """The experts of each token, each at most once: most go to the first ones, few to the rest, none to the last."""
    likely = np.arange(experts - 1)[::-1] ** 3 + 0.01
    return np.array([rng.choice(experts - 1, used, False, likely / likely.sum()) for _ in range(tokens)])


def check_experts(kind: gguf.GGMLQuantizationType, rows: int, k: int, tokens: int, repacked: bool = False) -> None:
    rng = np.random.default_rng(rows * k + tokens)
    experts, used = 9, 3
    weights = random_weights(kind, experts * rows, k, rng).reshape(experts, rows, -1)
    matrices = gguf.quants.dequantize(weights, kind).astype(np.float64)
    ids = sent(tokens, experts, used, rng)
    for own in (1, used):  # rows that a token has: one for all its experts, as they begin, or one for each, as they end
        activations = whole_activations(tokens * own, k, rng).reshape(tokens, own, k)
        plain = (matrices[ids] @ activations[..., None])[..., 0]
        for threads in (1, 3):
            np.testing.assert_array_equal(experts_product(kind, weights, activations, ids, threads, repacked), plain)


@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize(("rows", "k"), [(64, 512), (43, 256), (7, 256)])
@pytest.mark.parametrize("kind", SCALES)
def test_products_of_experts_are_exact(kind: gguf.GGMLQuantizationType, rows: int, k: int, tokens: int) -> None:
    check_experts(kind, rows, k, tokens)


@pytest.mark.skipif(not HAS_AVX2, reason="as above")
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize(("rows", "k"), [(72, 512), (8, 256)])
@pytest.mark.parametrize("kind", REPACKED)
def test_products_of_repacked_experts_are_exact(
    kind: gguf.GGMLQuantizationType, rows: int, k: int, tokens: int
) -> None:
    check_experts(kind, rows, k, tokens, repacked=True)


def test_an_expert_takes_more_rows_than_are_gathered_at_once() -> None:
    check_experts(TYPES.Q5_0, 16, 64, 1200)


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("kind", SCALES)
def test_no_sum_of_a_product_overflows(kind: gguf.GGMLQuantizationType, byte: int) -> None:
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.full((32, 1024 // values, size), byte, np.uint8)
    if kind == TYPES.MXFP4:
        blocks[..., 0] = 128
    for at in SCALES[kind]:
        blocks[..., at : at + 2] = np.array([1.0], "<f2").view(np.uint8)
    weights = blocks.reshape(32, -1)
    activations = np.array([[127], [-127], [127]]) * np.ones((1, 1024))
    activations[2, ::2] = -127
    plain = activations @ gguf.quants.dequantize(weights, kind).astype(np.float64).T
    for repacked in (False, True) if kind in REPACKED and HAS_AVX2 else (False,):
        # What a type's minima take off is half of what they are taken from: so of the greatest, and not of the result.
        np.testing.assert_allclose(
            product(kind, weights, activations, 2, repacked), plain, atol=1e-6 * 1024 * 127 * 63**2
        )


@pytest.mark.parametrize("kind", [F16, Q8_0])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(14, 2, 64), (8, 8, 32), (12, 3, 128), (32, 1, 32), (6, 2, 96)]
)
@pytest.mark.parametrize(("tokens", "cells"), [(1, 256), (1, 1024), (2, 70), (8, 544), (23, 96)])
def test_attention_is_what_its_definition_says(
    heads: int, kv_heads: int, size: int, tokens: int, cells: int, kind: int
) -> None:
    rng = np.random.default_rng(heads * size + tokens * cells)
    q = rng.standard_normal((heads, tokens, size)) * 3
    k, v = (rng.standard_normal((kv_heads, cells, size)).astype("<f2") for _ in range(2))
    if kind == Q8_0:
        k, v = (gguf.quants.dequantize(_stored(each, kind), QUANTIZED) for each in (k, v))
    # What a batch of branches looks like: a shared beginning, then cells of their own; and cells of others in between.
    mask = np.where(rng.random((tokens, cells)) < 0.5, 0.0, -np.inf)
    mask[:, : cells // 2] = 0.0
    mask[:, cells // 4 : cells // 4 + 40] = -np.inf
    for threads in (1, 2, 3):
        is_ours = HAS_KERNELS and tokens * kv_heads >= threads
        out = attention(q, k, v, mask, threads, kind)
        np.testing.assert_allclose(out, plain_attention(q, k, v, mask), atol=2e-5 if is_ours else 0.1)


def own_cells(tokens: int, cells: int, how: str) -> np.ndarray:
    """A mask of tokens that share little: each has cells of its own, some have none."""
    cell, token = np.arange(cells)[None, :], np.arange(tokens)[:, None]
    sees = {
        "topics": cell // (cells // tokens) == token,
        "in turns": cell % tokens == token,
        "a prompt, then in turns": (cell < 70) | (cell % tokens == token),
        "two of them": (cell < cells // 2) & (token < 2) | (cell % 3 == 0) & (token == 5) | (cell == 40) & (token == 6),
        "nearly nobody": (cell == 40) & (token == 3),
    }[how]
    mask = np.where(sees, 0.0, -np.inf)
    mask[:, 33:35] -= 1.5  # a mask may have other numbers than these two
    return mask


@pytest.mark.parametrize("kind", [F16, Q8_0])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(14, 2, 64), (4, 4, 32), (32, 1, 32), (64, 1, 64), (6, 2, 96)])
@pytest.mark.parametrize("how", ["topics", "in turns", "a prompt, then in turns", "two of them", "nearly nobody"])
def test_attention_of_tokens_that_share_little(how: str, heads: int, kv_heads: int, size: int, kind: int) -> None:
    tokens, cells = 12, 400
    rng = np.random.default_rng(heads * size)
    q = rng.standard_normal((heads, tokens, size)) * 3
    k, v = (rng.standard_normal((kv_heads, cells, size)).astype("<f2") for _ in range(2))
    if kind == Q8_0:
        k, v = (gguf.quants.dequantize(_stored(each, kind), QUANTIZED) for each in (k, v))
    mask = own_cells(tokens, cells, how)
    exact = plain_attention(q, k, v, mask)
    for threads in (1, 2, 3):
        is_ours = HAS_KERNELS and tokens * kv_heads >= threads and heads // kv_heads <= MOST_ROWS
        out = attention(q, k, v, mask, threads, kind)
        np.testing.assert_allclose(out, exact, atol=2e-5 if is_ours else 0.1)


@pytest.mark.skipif(not HAS_KERNELS, reason="llama.cpp's own makes a difference of it")
@pytest.mark.parametrize("how", ["topics", "in turns", "a prompt, then in turns"])
def test_attention_never_reads_what_another_topic_holds(how: str) -> None:
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal(shape).astype("<f2") for shape in ((14, 12, 64), (2, 400, 64), (2, 400, 64)))
    mask = own_cells(12, 400, how)
    clean = attention(q, k, v, mask, 2, F16)
    others = mask[3] == -np.inf
    k[:, others], v[:, others] = np.nan, np.inf
    np.testing.assert_array_equal(attention(q, k, v, mask, 2, F16)[:, 3], clean[:, 3])


@pytest.mark.skipif(not HAS_KERNELS, reason="llama.cpp's own makes a difference of it")
def test_attention_never_lets_damage_through_that_it_may_not_see() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal(shape).astype("<f2") for shape in ((14, 4, 64), (2, 128, 64), (2, 128, 64)))
    mask = np.zeros((4, 128))
    mask[:, 64:] = -np.inf
    mask[0, 70] = 0.0  # so that the block is looked at
    clean = attention(q, k, v, mask, 2, F16)
    for damage in (np.nan, np.inf, -np.inf):
        k[:, 71:], v[:, 71:] = damage, damage
        np.testing.assert_array_equal(attention(q, k, v, mask, 2, F16), clean)


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="the kernels are for x86-64 on Linux"
)
@pytest.mark.parametrize(
    "function",
    [
        "__wrap_ggml_cpu_extra_compute_forward",
        "__wrap_ggml_compute_forward_flash_attn_ext",
        "conclave_scan",
        "conclave_at_least",
    ],
)
def test_the_kernels_are_built_in(function: str) -> None:
    assert hasattr(library("ggml-cpu"), function)
