// Products with quantized weights for x86: what prompts and steps spend their time on.
//
// llama.cpp computes them row by column (vec_dot), in tiles of 4 x 4 (llamafile/sgemm.cpp), or by types' own ways
// (repack.cpp, tiled/): for each 32 products a conversion and a scaled addition, often more. Here a panel of weight rows
// stands in the lanes of a register, transposed as it is read (panel.h), and meets all columns (columns.h).
//
// The linker puts a function in the place of the one that llama.cpp asks first for every operation (--wrap, see
// ../lean.cmake). What it does not take goes on to llama.cpp's own, which is also all there is on processors without AVX2.

#include "kernel.h"

#include "ggml-cpu.h"
#include "traits.h"

#include <algorithm>
#include <vector>

namespace {

using conclave::Columns;
using conclave::Kernel;
using conclave::Matrix;

// Whether a product is of the simple kind: one matrix, and rows of floats that follow one another.
bool takes(const Kernel & kernel, const ggml_tensor * dst) {
    const ggml_tensor * weights = dst->src[0];
    const ggml_tensor * activations = dst->src[1];
    return dst->type == GGML_TYPE_F32 && activations->type == GGML_TYPE_F32 && ggml_is_contiguous(activations) &&
           ggml_is_contiguous(dst) && weights->ne[2] == 1 && weights->ne[3] == 1 && weights->ne[1] >= kernel.rows &&
           weights->nb[0] == ggml_type_size(weights->type) && ggml_nrows(activations) >= kernel.least;
}

}  // namespace

bool conclave::product(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * weights = dst->src[0];
    const ggml_tensor * activations = dst->src[1];
    const Kernel * kernel = kernel_of(weights);
    if (kernel == nullptr || !takes(*kernel, dst)) {
        return false;
    }
    const int64_t k = weights->ne[0], m = weights->ne[1], n = ggml_nrows(activations), units = k / 32;
    const int64_t bytes = units / kernel->units * kernel->bytes, ith = params->ith, nth = params->nth;
    quantize(params, *kernel, n, k, [&](int64_t j) { return static_cast<const float *>(activations->data) + j * k; });
    if (ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, static_cast<int>(nth));
    }
    ggml_barrier(params->threadpool);

    static thread_local std::vector<char> sides;
    const Matrix matrix{static_cast<const char *>(weights->data), m, static_cast<int64_t>(weights->nb[1])};
    const auto * quantized = static_cast<const char *>(params->wdata);
    const int64_t count = (m + kernel->rows - 1) / kernel->rows;
    // The threads take what is next: whose processor does something else for a while does not hold up the rest.
    const int64_t each = std::max<int64_t>(1, count / (PARTS * nth)), parts = (count + each - 1) / each;
    const int64_t passes = (n + MOST_COLUMNS - 1) / MOST_COLUMNS;
    int64_t pass = -1;
    Columns columns{};
    float * c = nullptr;
    for (int64_t part = ith; part < passes * parts; part = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        if (part / parts != pass) {
            pass = part / parts;
            const int64_t j = pass * MOST_COLUMNS;
            columns = {std::min(MOST_COLUMNS, n - j), units, quantized + j * bytes, bytes, nullptr};
            c = static_cast<float *>(dst->data) + j * m;
            sides.resize(columns.count * units * kernel->side);
            for (int64_t i = 0; i < columns.count; ++i) {
                kernel->sides(columns.quantized + i * bytes, units, sides.data() + i * units * kernel->side);
            }
            columns.sides = sides.data();
        }
        const int64_t first = part % parts * each;
        for (int64_t row = first * kernel->rows; row < std::min(m, (first + each) * kernel->rows); row += kernel->rows) {
            kernel->panel(matrix, row, columns, c + row, m);
        }
    }
    return true;
}

extern "C" bool __real_ggml_cpu_extra_compute_forward(ggml_compute_params *, ggml_tensor *);

extern "C" bool __wrap_ggml_cpu_extra_compute_forward(ggml_compute_params * params, ggml_tensor * op) {
    if (!params->use_ref && ((op->op == GGML_OP_MUL_MAT && conclave::product(params, op)) ||
                             (op->op == GGML_OP_MUL_MAT_ID && conclave::experts(params, op)))) {
        return true;
    }
    return __real_ggml_cpu_extra_compute_forward(params, op);
}
