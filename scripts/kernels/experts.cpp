// Products of experts (mixtures of experts): each token's row meets the matrices of the few experts that it is sent to.
//
// llama.cpp computes them expert by expert, repacked ones row by column: with the weights read anew for each row. Here an
// expert's rows are gathered, and its panels meet all of them as in any product (product.cpp). An expert to which fewer rows
// are sent than pay for that, often one or two of a step of decoding, is computed in llama.cpp's way.

#include "kernel.h"

#include "ggml-cpu.h"

#include <algorithm>
#include <vector>

namespace {

using conclave::Columns;
using conclave::Kernel;
using conclave::Matrix;

// What all threads know of who is sent where, in wdata behind the quantized rows. llama.cpp's own plan has room for more.
struct Sent {
    int32_t * busy;   // the experts that any row is sent to, and behind them their count
    int32_t * begin;  // where an expert's rows begin in `rows`, and of one more where they end
    int32_t * rows;   // token x experts a token + which of these

    Sent(void * at, int64_t experts)
        : busy(static_cast<int32_t *>(at)), begin(busy + experts + 1), rows(begin + experts + 1) {}
};

int32_t expert_of(const ggml_tensor * ids, int64_t token, int64_t slot) {
    const char * at = static_cast<const char *>(ids->data) + token * ids->nb[1] + slot * ids->nb[0];
    return *reinterpret_cast<const int32_t *>(at);
}

void send(const ggml_tensor * ids, int64_t experts, const Sent & sent) {
    const int64_t each = ids->ne[0], tokens = ids->ne[1];
    std::fill_n(sent.begin, experts + 1, 0);
    for (int64_t i = 0; i < each * tokens; ++i) {
        const int32_t expert = expert_of(ids, i / each, i % each);
        GGML_ASSERT(expert >= 0 && expert < experts);
        ++sent.begin[expert + 1];
    }
    int32_t busy = 0;
    for (int64_t e = 0; e < experts; ++e) {
        if (sent.begin[e + 1]) {
            sent.busy[busy++] = static_cast<int32_t>(e);
        }
        sent.begin[e + 1] += sent.begin[e];
    }
    sent.busy[experts] = busy;
    for (int64_t i = 0; i < each * tokens; ++i) {
        sent.rows[sent.begin[expert_of(ids, i / each, i % each)]++] = static_cast<int32_t>(i);
    }
    // Each has moved on to where the next one begins.
    std::copy_backward(sent.begin, sent.begin + experts, sent.begin + experts + 1);
    sent.begin[0] = 0;
}

// Columns of an expert with which it pays: one was not measured for any type.
int64_t least(const Kernel & kernel) {
    return std::max<int64_t>(2, kernel.least);
}

bool takes(const Kernel & kernel, const ggml_tensor * dst) {
    const ggml_tensor * weights = dst->src[0];
    const ggml_tensor * activations = dst->src[1];
    const ggml_tensor * ids = dst->src[2];
    return dst->type == GGML_TYPE_F32 && activations->type == GGML_TYPE_F32 && activations->nb[0] == sizeof(float) &&
           weights->nb[0] == ggml_type_size(weights->type) && weights->ne[1] >= kernel.rows && weights->ne[3] == 1 &&
           activations->ne[3] == 1 && dst->nb[0] == sizeof(float) && ids->ne[1] >= least(kernel);
}

}  // namespace

bool conclave::experts(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * weights = dst->src[0];
    const ggml_tensor * activations = dst->src[1];
    const ggml_tensor * ids = dst->src[2];
    const Kernel * kernel = kernel_of(weights);
    if (kernel == nullptr || !takes(*kernel, dst)) {
        return false;
    }
    const int64_t k = weights->ne[0], m = weights->ne[1], units = k / 32, each = ids->ne[0], own = activations->ne[1];
    const int64_t bytes = units / kernel->units * kernel->bytes, ith = params->ith, nth = params->nth;
    const int64_t quantized = GGML_PAD(own * activations->ne[2] * bytes, static_cast<int64_t>(sizeof(int64_t)));
    const Sent sent(static_cast<char *>(params->wdata) + quantized, weights->ne[2]);
    GGML_ASSERT(reinterpret_cast<char *>(sent.rows + ggml_nelements(ids)) <= static_cast<char *>(params->wdata) + params->wsize);
    if (ith == 0) {
        send(ids, weights->ne[2], sent);
        ggml_threadpool_chunk_set(params->threadpool, static_cast<int>(nth));
    }
    quantize(params, *kernel, own * activations->ne[2], k, [&](int64_t j) {
        const char * token = static_cast<const char *>(activations->data) + j / own * activations->nb[2];
        return reinterpret_cast<const float *>(token + j % own * activations->nb[1]);
    });
    ggml_barrier(params->threadpool);

    const auto column = [&](int32_t i) {
        return static_cast<const char *>(params->wdata) + (i / each * own + i % each % own) * bytes;
    };
    const auto result = [&](int32_t i) {
        return reinterpret_cast<float *>(static_cast<char *>(dst->data) + i / each * dst->nb[2] + i % each * dst->nb[1]);
    };
    static thread_local std::vector<char> gathered, sides;
    static thread_local std::vector<float> sums;
    const int64_t busy = sent.busy[weights->ne[2]], count = (m + kernel->rows - 1) / kernel->rows;
    const int64_t parts = std::min(count, 1 + PARTS * nth / busy);  // of an expert
    int64_t at = -1, from = -1;  // whose rows are gathered, and the first of them
    Columns columns{};
    for (int64_t part = ith; part < busy * parts; part = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t expert = sent.busy[part / parts];
        const Matrix matrix{static_cast<const char *>(weights->data) + expert * weights->nb[2], m,
                            static_cast<int64_t>(weights->nb[1])};
        const int64_t begin = count * (part % parts) / parts * kernel->rows;
        const int64_t end = std::min(m, count * (part % parts + 1) / parts * kernel->rows);
        const int32_t * rows = sent.rows + sent.begin[expert];
        const int64_t n = sent.begin[expert + 1] - sent.begin[expert];
        if (n < least(*kernel)) {
            for (int64_t row = begin; row < end; row += kernel->rows) {
                for (int64_t j = 0; j < n; ++j) {
                    kernel->alone(matrix, row, std::min(kernel->rows, end - row), k, column(rows[j]), result(rows[j]) + row);
                }
            }
            continue;
        }
        for (int64_t first = 0; first < n; first += MOST_COLUMNS) {
            if (at != expert || from != first) {
                at = expert;
                from = first;
                columns = {std::min(MOST_COLUMNS, n - first), units, nullptr, bytes, nullptr};
                gathered.resize(columns.count * bytes);
                sides.resize(columns.count * units * kernel->side);
                sums.resize(columns.count * kernel->rows);
                for (int64_t j = 0; j < columns.count; ++j) {
                    std::copy_n(column(rows[first + j]), bytes, gathered.data() + j * bytes);
                    kernel->sides(gathered.data() + j * bytes, units, sides.data() + j * units * kernel->side);
                }
                columns.quantized = gathered.data();
                columns.sides = sides.data();
            }
            for (int64_t row = begin; row < end; row += kernel->rows) {
                kernel->panel(matrix, row, columns, sums.data(), kernel->rows);
                for (int64_t j = 0; j < columns.count; ++j) {
                    std::copy_n(sums.data() + j * kernel->rows, std::min(kernel->rows, end - row), result(rows[first + j]) + row);
                }
            }
        }
    }
    return true;
}
