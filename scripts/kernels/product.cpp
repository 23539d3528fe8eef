// Matrix products with quantized weights for x86: what prompts, and batches of two rows and more, spend their time on.
//
// llama.cpp computes them row by column (vec_dot), in tiles of 4 x 4 (llamafile/sgemm.cpp), or by types' own ways
// (repack.cpp, tiled/): for each 32 products a conversion and a scaled addition, often more. Here a panel of weight rows
// stands in the lanes of a register, transposed as it is read (panel.h), and meets all columns (columns.h).
//
// The linker puts two functions in the place of llama.cpp's (--wrap, see ../lean.cmake): the one that is asked first for
// every product of weights in a file's layout, and the one that is for repacked weights. What they do not take goes on to
// llama.cpp's own, which is also all there is on processors without AVX2. Products of experts (mul_mat_id) are its own.

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-backend-impl.h"
#include "tiled/tiled.h"
#include "traits.h"

extern "C" bool __real_ggml_compute_forward_mul_mat_tiled(const ggml_compute_params *, ggml_tensor *);
extern "C" bool __real_ggml_cpu_extra_compute_forward(ggml_compute_params *, ggml_tensor *);

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "columns.h"

namespace {

constexpr int64_t MOST_COLUMNS = 512;  // whose sums are kept at a time
constexpr int64_t PARTS = 16;          // of a product, a thread
constexpr int KEPT = 64;               // units of a panel that are kept unpacked when there are many columns: 40 KiB

// Calls f with N = n as a constant, 1 <= n <= COLUMNS.
template <int N = COLUMNS, typename F> inline void with_columns(int64_t n, F && f) {
    if constexpr (N > 1) {
        if (n < N) {
            return with_columns<N - 1>(n, f);
        }
    }
    f(std::integral_constant<int, N>());
}

inline Floats fetch(const float * c, int rows) {
#if CONCLAVE_ROWS == 16
    return _mm512_maskz_loadu_ps((1u << rows) - 1, c);
#else
    return _mm256_maskload_ps(c, _mm256_cmpgt_epi32(_mm256_set1_epi32(rows), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
#endif
}

inline void keep(float * c, int rows, Floats v) {
#if CONCLAVE_ROWS == 16
    _mm512_mask_storeu_ps(c, (1u << rows) - 1, v);
#else
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(rows), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm256_maskstore_ps(c, mask, v);
#endif
}

struct Columns {
    int64_t count, units;  // units of 32 a column
    const char * quantized;
    int64_t bytes;  // of a column
    float * c;
    int64_t ldc;
};

// One panel by N columns, all there are: a block is unpacked and used, so that memory is read while sums are computed.
template <typename W, int N>
void once(const Rows & from, [[maybe_unused]] int64_t stride, const Columns & to, const SideOf<W> * s, int64_t row, int rows) {
    using A = Activations<W::ACTIVATIONS>;
    Unit u[W::UNITS];
    Floats sums[N];
    for (int j = 0; j < N; ++j) {
        sums[j] = WIDE(setzero_ps)();
    }
    for (int64_t l = 0; l < to.units; l += W::UNITS) {
        const int64_t at = l / W::UNITS * W::BYTES;
        if constexpr (W::TOGETHER == 1 && W::UNITS == 1) {
            // Of sixteen rows at once a processor sees no order: the next panel, which lies right behind, is asked for here.
            const char * next = from.at[0] + ROWS * (stride + at);
            for (int64_t line = 0; line < ROWS * W::BYTES; line += 64) {
                _mm_prefetch(next + line, _MM_HINT_T0);
            }
        }
        W::unpack(from, at, u);
        for (int i = 0; i < W::UNITS; ++i) {
            multiply<W, N>(u[i], A::quants(to.quantized, l + i), to.bytes, s + l + i, to.units, sums);
        }
    }
    for (int j = 0; j < N; ++j) {
        keep(to.c + j * to.ldc + row, rows, sums[j]);
    }
}

// The same from units that are kept, for a chunk of longer rows.
template <typename W, int N>
void chunk(const Unit * u, int64_t begin, int64_t units, const Columns & to, const SideOf<W> * s, int64_t column, int64_t row,
           int rows) {
    using A = Activations<W::ACTIVATIONS>;
    float * c = to.c + column * to.ldc + row;
    Floats sums[N];
    for (int j = 0; j < N; ++j) {
        sums[j] = begin ? fetch(c + j * to.ldc, rows) : WIDE(setzero_ps)();
    }
    const char * quantized = to.quantized + column * to.bytes;
    s += column * to.units;
    for (int64_t l = begin; l < begin + units; ++l, ++u) {
        multiply<W, N>(*u, A::quants(quantized, l), to.bytes, s + l, to.units, sums);
    }
    for (int j = 0; j < N; ++j) {
        keep(c + j * to.ldc, rows, sums[j]);
    }
}

// Panels `first` to `end` of the weights.
template <typename W>
void panels(int64_t first, int64_t end, const ggml_tensor * weights, const Columns & to, const SideOf<W> * s) {
    static thread_local std::vector<Unit> kept(KEPT);
    const int64_t m = weights->ne[1], tiles = (to.count + COLUMNS - 1) / COLUMNS;
    for (int64_t row = first * ROWS; row < std::min(m, end * ROWS); row += ROWS) {
        Rows from;
        for (int r = 0; r < ROWS; ++r) {
            const int64_t at = std::min(row + r, m - 1) / W::TOGETHER * W::TOGETHER;
            from.at[r] = static_cast<const char *>(weights->data) + at * weights->nb[1];
        }
        const int rows = static_cast<int>(std::min<int64_t>(ROWS, m - row));
        if (tiles == 1) {
            with_columns(to.count, [&](auto n) { once<W, n()>(from, weights->nb[1], to, s, row, rows); });
            continue;
        }
        for (int64_t l = 0; l < to.units; l += KEPT) {
            const int64_t units = std::min<int64_t>(KEPT, to.units - l);
            for (int64_t i = 0; i < units; i += W::UNITS) {
                W::unpack(from, (l + i) / W::UNITS * W::BYTES, &kept[i]);
            }
            // Tiles of equal width: one of a few columns would cost nearly what one of sixteen does.
            for (int64_t i = 0; i < tiles; ++i) {
                const int64_t j = to.count * i / tiles, after = to.count * (i + 1) / tiles;
                with_columns(after - j, [&](auto n) { chunk<W, n()>(kept.data(), l, units, to, s, j, row, rows); });
            }
        }
    }
}

// The whole of a product, by one of its threads.
template <typename W> void product(const ggml_compute_params * params, ggml_tensor * dst) {
    using A = Activations<W::ACTIVATIONS>;
    const ggml_tensor * weights = dst->src[0];
    const ggml_tensor * activations = dst->src[1];
    const int64_t k = weights->ne[0], n = ggml_nrows(activations), units = k / 32, ith = params->ith, nth = params->nth;
    const int64_t bytes = units / A::UNITS * A::BYTES;
    auto * quantized = static_cast<char *>(params->wdata);
    // A few rows are split among the threads by blocks, many by rows.
    const int64_t blocks = units / A::UNITS, pieces = n >= 4 * nth ? 1 : std::min(nth, blocks);
    for (int64_t i = ith; i < n * pieces; i += nth) {
        const int64_t j = i / pieces, begin = blocks * (i % pieces) / pieces, end = blocks * (i % pieces + 1) / pieces;
        const auto * row = reinterpret_cast<const float *>(static_cast<const char *>(activations->data) + j * activations->nb[1]);
        A::quantize(row + begin * 32 * A::UNITS, quantized + j * bytes + begin * A::BYTES, (end - begin) * 32 * A::UNITS);
    }
    if (ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, static_cast<int>(nth));
    }
    ggml_barrier(params->threadpool);

    static thread_local std::vector<SideOf<W>> sides;
    const int64_t count = (weights->ne[1] + ROWS - 1) / ROWS;
    // The threads take what is next: whose processor does something else for a while does not hold up the rest.
    const int64_t each = std::max<int64_t>(1, count / (PARTS * nth)), parts = (count + each - 1) / each;
    const int64_t passes = (n + MOST_COLUMNS - 1) / MOST_COLUMNS;
    int64_t pass = -1;
    Columns to{};
    for (int64_t part = ith; part < passes * parts; part = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        if (part / parts != pass) {
            pass = part / parts;
            const int64_t j = pass * MOST_COLUMNS;
            to = {std::min(MOST_COLUMNS, n - j), units, quantized + j * bytes, bytes,
                  static_cast<float *>(dst->data) + j * weights->ne[1], weights->ne[1]};
            sides.resize(to.count * units);
            for (int64_t i = 0; i < to.count; ++i) {
                side<W>(to.quantized + i * bytes, units, &sides[i * units]);
            }
        }
        const int64_t first = part % parts * each;
        panels<W>(first, std::min(count, first + each), weights, to, sides.data());
    }
}

// Whether a product is of the simple kind: one matrix, and rows of floats that follow one another. One column is a matter of
// memory alone, and of the few that a type's LEAST leaves out llama.cpp's own way was as fast or faster, measured.
template <typename W> bool takes(const ggml_tensor * dst) {
    const ggml_tensor * weights = dst->src[0];
    const ggml_tensor * activations = dst->src[1];
    return dst->type == GGML_TYPE_F32 && activations->type == GGML_TYPE_F32 && ggml_is_contiguous(activations) &&
           ggml_is_contiguous(dst) && weights->ne[2] == 1 && weights->ne[3] == 1 && weights->ne[1] >= ROWS &&
           weights->nb[0] == ggml_type_size(weights->type) && ggml_nrows(activations) >= W::LEAST;
}

template <typename W> bool taken(const ggml_compute_params * params, ggml_tensor * dst) {
    if (takes<W>(dst)) {
        product<W>(params, dst);
        return true;
    }
    return false;
}

bool taken(const ggml_compute_params * params, ggml_tensor * dst) {
    switch (dst->src[0]->type) {
        case GGML_TYPE_Q8_0: return ROWS == 8 && taken<Q8_0>(params, dst);  // else q8_0.cpp's
        case GGML_TYPE_Q5_0: return taken<Q5_0>(params, dst);
        case GGML_TYPE_Q4_K: return taken<Q4_K>(params, dst);
        case GGML_TYPE_Q5_K: return taken<Q5_K>(params, dst);
        case GGML_TYPE_Q6_K: return taken<Q6_K>(params, dst);
        default: return false;
    }
}

bool repacked_taken(const ggml_compute_params * params, ggml_tensor * dst) {
    switch (dst->src[0]->type) {
        case GGML_TYPE_Q4_0: return taken<Q4_0x8>(params, dst);
        case GGML_TYPE_Q4_K: return taken<Q4_Kx8>(params, dst);
        default: return false;
    }
}

}  // namespace

extern "C" bool __wrap_ggml_compute_forward_mul_mat_tiled(const ggml_compute_params * params, ggml_tensor * dst) {
    return (!params->use_ref && dst->src[0]->extra == nullptr && taken(params, dst)) ||
           __real_ggml_compute_forward_mul_mat_tiled(params, dst);
}

extern "C" bool __wrap_ggml_cpu_extra_compute_forward(ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * weights = op->src[0];
    return (op->op == GGML_OP_MUL_MAT && weights->extra != nullptr && weights->buffer != nullptr &&
            weights->buffer->buft == ggml_backend_cpu_repack_buffer_type() && weights->ne[1] % 8 == 0 &&
            repacked_taken(params, op)) ||
           __real_ggml_cpu_extra_compute_forward(params, op);
}

#else

extern "C" bool __wrap_ggml_compute_forward_mul_mat_tiled(const ggml_compute_params * params, ggml_tensor * dst) {
    return __real_ggml_compute_forward_mul_mat_tiled(params, dst);
}

extern "C" bool __wrap_ggml_cpu_extra_compute_forward(ggml_compute_params * params, ggml_tensor * op) {
    return __real_ggml_cpu_extra_compute_forward(params, op);
}

#endif
