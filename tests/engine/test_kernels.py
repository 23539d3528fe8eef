"""Our matrix product gives what arithmetic says, in every shape that takes another path through it.

The numbers are whole and the scales powers of two, so that sums are exact whatever their order: results must be equal,
not near. Where the processor has no kernel of ours, llama.cpp's own must pass the same.
"""

import ctypes
import platform
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

LIB = Path(llama_cpp.__file__).parent / "lib"
F32, Q8_0, BLOCK = 0, 8, 32
BLOCK_TYPE = np.dtype([("d", "<f2"), ("qs", "i1", BLOCK)])


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def library(name: str) -> ctypes.CDLL:
    suffix = "dylib" if platform.system() == "Darwin" else "so"
    return ctypes.CDLL(str(LIB / f"lib{name}.{suffix}"))


def product(weights: np.ndarray, activations: np.ndarray, threads: int) -> np.ndarray:
    """ggml's mul_mat of Q8_0 rows (m, k / 32 blocks) and float rows (n, k): (n, m)."""
    base, cpu = library("ggml-base"), library("ggml-cpu")
    for function in ("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph", "ggml_get_data"):
        getattr(base, function).restype = ctypes.c_void_p
    (m, blocks), (n, k) = weights.shape, activations.shape
    assert k == blocks * BLOCK
    size = weights.nbytes + activations.nbytes + 4 * m * n + (16 << 20)
    context = ctypes.c_void_p(base.ggml_init(InitParams(size, None, False)))
    shape = [ctypes.c_int64(each) for each in (k, m, n)]
    a = ctypes.c_void_p(base.ggml_new_tensor_2d(context, Q8_0, shape[0], shape[1]))
    b = ctypes.c_void_p(base.ggml_new_tensor_2d(context, F32, shape[0], shape[2]))
    ctypes.memmove(base.ggml_get_data(a), weights.tobytes(), weights.nbytes)
    ctypes.memmove(base.ggml_get_data(b), activations.astype("<f4").tobytes(), 4 * n * k)
    out = ctypes.c_void_p(base.ggml_mul_mat(context, a, b))
    graph = ctypes.c_void_p(base.ggml_new_graph(context))
    base.ggml_build_forward_expand(graph, out)
    assert cpu.ggml_graph_compute_with_ctx(context, graph, threads) == 0
    data = ctypes.string_at(base.ggml_get_data(out), 4 * m * n)
    base.ggml_free(context)
    return np.frombuffer(data, "<f4").reshape(n, m)


@pytest.mark.parametrize("columns", [1, 2, 3, 8, 15, 16, 17, 33, 513])
@pytest.mark.parametrize(("rows", "k"), [(16, 32), (128, 896), (70, 64), (48, 2080), (7, 96)])
def test_products_are_exact(rows: int, k: int, columns: int) -> None:
    rng = np.random.default_rng(rows * k + columns)
    weights = np.zeros((rows, k // BLOCK), BLOCK_TYPE)
    weights["d"] = rng.choice([0.5, 1.0, 2.0], weights.shape)
    weights["qs"] = rng.integers(-128, 128, (rows, k // BLOCK, BLOCK))
    activations = rng.integers(-127, 128, (columns, k))
    activations[:, ::BLOCK] = 127  # the greatest of its block: so its scale is 1 and nothing is rounded
    plain = (weights["qs"].astype(np.float64) * weights["d"][..., None]).reshape(rows, k)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(product(weights, activations, threads), activations @ plain.T)


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="the kernel is for x86-64 on Linux"
)
def test_the_kernel_is_built_in() -> None:
    assert hasattr(library("ggml-cpu"), "__wrap_llamafile_sgemm")
