// What multiplies panels of weights by columns of activations, for each type that there is one for (kernels.cpp): the
// products (product.cpp, experts.cpp) know this much of it, and hand the parts of their work out to threads.

#pragma once

#include "ggml-cpu-impl.h"

#include <cstdint>

namespace conclave {

constexpr int64_t PARTS = 16;          // of a product, a thread
constexpr int64_t MOST_COLUMNS = 512;  // whose sides are kept at a time

struct Matrix {
    const char * data;
    int64_t rows, stride;  // bytes from one row to the next
};

// Quantized activations.
struct Columns {
    int64_t count, units;  // units of 32 a column
    const char * quantized;
    int64_t bytes;       // of a column
    const char * sides;  // what each has beside its bytes, for each unit
};

struct Kernel {
    int64_t rows;    // of a panel
    int64_t least;   // columns with which it pays: of fewer llama.cpp's own way was as fast or faster, measured
    int64_t units;   // of a block of activations
    int64_t bytes;   // the same
    int64_t side;    // bytes of a unit's side

    void (*quantize)(const float * x, char * column, int64_t k);
    void (*sides)(const char * column, int64_t units, char * to);
    // The panel that begins at a row, by all columns: column j's sums go to c + j * ldc.
    void (*panel)(const Matrix & weights, int64_t row, const Columns & columns, float * c, int64_t ldc);
    // A few rows by one column, in llama.cpp's own way.
    void (*alone)(const Matrix & weights, int64_t row, int64_t rows, int64_t k, const char * column, float * c);
};

// The one for these weights, where they lie; null: llama.cpp's own way is all there is.
const Kernel * kernel_of(const ggml_tensor * weights);

// Whether it was taken, by each of the threads that call.
bool product(const ggml_compute_params * params, ggml_tensor * dst);  // GGML_OP_MUL_MAT
bool experts(const ggml_compute_params * params, ggml_tensor * dst);  // GGML_OP_MUL_MAT_ID

// Quantizes n rows, of which `row` says where each begins, one behind the other into wdata: a thread's share of it.
template <typename F>
void quantize(const ggml_compute_params * params, const Kernel & kernel, int64_t n, int64_t k, F && row) {
    const int64_t units = k / 32, blocks = units / kernel.units, nth = params->nth;
    // A few rows are split among the threads by blocks, many by rows.
    const int64_t pieces = n >= 4 * nth ? 1 : blocks < nth ? blocks : nth;
    for (int64_t i = params->ith; i < n * pieces; i += nth) {
        const int64_t j = i / pieces, begin = blocks * (i % pieces) / pieces, end = blocks * (i % pieces + 1) / pieces;
        char * to = static_cast<char *>(params->wdata) + (j * blocks + begin) * kernel.bytes;
        kernel.quantize(row(j) + begin * 32 * kernel.units, to, (end - begin) * 32 * kernel.units);
    }
}

}  // namespace conclave
