// For each type of weights what multiplies a panel by columns, made of what panel.h and columns.h have.

#include "kernel.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "columns.h"

namespace {

using conclave::Columns;
using conclave::Kernel;
using conclave::Matrix;

constexpr int KEPT = 64;  // units of a panel that are kept unpacked when there are many columns: 40 KiB

// Calls f with N = n as a constant, 1 <= n <= AT_ONCE.
template <int N = AT_ONCE, typename F> inline void with_columns(int64_t n, F && f) {
    if constexpr (N > 1) {
        if (n < N) {
            return with_columns<N - 1>(n, f);
        }
    }
    f(std::integral_constant<int, N>());
}

// Where the sums of a panel go: `rows` of each column, which begin `step` floats behind those of the one before.
struct Sums {
    float * c;
    int64_t step;
    int rows;

    Floats fetch(int64_t j) const {
#if CONCLAVE_ROWS == 16
        return _mm512_maskz_loadu_ps((1u << rows) - 1, c + j * step);
#else
        return _mm256_maskload_ps(c + j * step, mask());
#endif
    }

    void keep(int64_t j, Floats v) const {
#if CONCLAVE_ROWS == 16
        _mm512_mask_storeu_ps(c + j * step, (1u << rows) - 1, v);
#else
        _mm256_maskstore_ps(c + j * step, mask(), v);
#endif
    }

  private:
#if CONCLAVE_ROWS == 8
    __m256i mask() const {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(rows), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
#endif
};

template <typename W> const SideOf<W> * sides_of(const Columns & columns) {
    return reinterpret_cast<const SideOf<W> *>(columns.sides);
}

// Asks for memory that is needed next: of sixteen rows at once a processor sees no order. Only into the second cache where
// it is not soon, so that the first one keeps what is in use.
template <bool SOON> INLINE void ahead(const char * from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) {
        _mm_prefetch(from + line, SOON ? _MM_HINT_T0 : _MM_HINT_T1);
    }
}

// One panel by N columns, all there are: a block is unpacked and used, while the same of the next panel, which lies right
// behind, is on its way. Nothing but memory holds up a few columns, and it is then a panel ahead of them.
template <typename W, int N>
void once(const Rows & from, int64_t stride, const Columns & columns, const Sums & to) {
    using A = Activations<W::ACTIVATIONS>;
    const SideOf<W> * s = sides_of<W>(columns);
    Unit u[W::UNITS];
    Floats sums[N];
    for (int j = 0; j < N; ++j) {
        sums[j] = WIDE(setzero_ps)();
    }
    for (int64_t l = 0; l < columns.units; l += W::UNITS) {
        const int64_t at = l / W::UNITS * W::BYTES;
        ahead<(N > 10)>(from.at[0] + ROWS * (stride + at), ROWS * W::BYTES);
        W::unpack(from, at, u);
        for (int i = 0; i < W::UNITS; ++i) {
            multiply<W, N>(u[i], A::quants(columns.quantized, l + i), columns.bytes, s + l + i, columns.units, sums);
        }
    }
    for (int j = 0; j < N; ++j) {
        to.keep(j, sums[j]);
    }
}

// The same from units that are kept, for a chunk of longer rows and N columns of more. `share` bytes a unit of what is
// `next` are asked for on the way.
template <typename W, int N>
void chunk(const Unit * u, int64_t begin, int64_t units, const Columns & columns, int64_t column, const Sums & to,
           const char * next, int64_t share) {
    using A = Activations<W::ACTIVATIONS>;
    const SideOf<W> * s = sides_of<W>(columns) + column * columns.units;
    const char * quantized = columns.quantized + column * columns.bytes;
    Floats sums[N];
    for (int j = 0; j < N; ++j) {
        sums[j] = begin ? to.fetch(column + j) : WIDE(setzero_ps)();
    }
    for (int64_t l = begin; l < begin + units; ++l, ++u, next += share) {
        ahead<false>(next, share);
        multiply<W, N>(*u, A::quants(quantized, l), columns.bytes, s + l, columns.units, sums);
    }
    for (int j = 0; j < N; ++j) {
        to.keep(column + j, sums[j]);
    }
}

template <typename W> void panel(const Matrix & weights, int64_t row, const Columns & columns, float * c, int64_t step) {
    static thread_local std::vector<Unit> kept(KEPT);
    Rows from;
    for (int r = 0; r < ROWS; ++r) {
        from.at[r] = weights.data + std::min(row + r, weights.rows - 1) / W::TOGETHER * W::TOGETHER * weights.stride;
    }
    const Sums to{c, step, static_cast<int>(std::min<int64_t>(ROWS, weights.rows - row))};
    const int64_t n = columns.count, tiles = (n + AT_ONCE - 1) / AT_ONCE;
    if (tiles == 1) {
        with_columns(n, [&](auto count) { once<W, count()>(from, weights.stride, columns, to); });
        return;
    }
    for (int64_t l = 0; l < columns.units; l += KEPT) {
        const int64_t units = std::min<int64_t>(KEPT, columns.units - l);
        for (int64_t i = 0; i < units; i += W::UNITS) {
            W::unpack(from, (l + i) / W::UNITS * W::BYTES, &kept[i]);
        }
        // The same chunk of the next panel, asked for by all tiles together.
        const char * next = from.at[0] + ROWS * (weights.stride + l / W::UNITS * W::BYTES);
        const int64_t share = (ROWS * W::BYTES / W::UNITS + tiles - 1) / tiles;
        // Tiles of equal width: one of a few columns would cost nearly what one of sixteen does.
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t j = n * i / tiles, after = n * (i + 1) / tiles;
            const char * part = next + i * units * share;
            with_columns(after - j,
                         [&](auto count) { chunk<W, count()>(kept.data(), l, units, columns, j, to, part, share); });
        }
    }
}

template <typename W> void sides(const char * column, int64_t units, char * to) {
    side<W>(column, units, reinterpret_cast<SideOf<W> *>(to));
}

// Rows in a file's layout by one column.
template <ggml_type TYPE>
void dot(const Matrix & weights, int64_t row, int64_t rows, int64_t k, const char * column, float * c) {
    const ggml_vec_dot_t dot = ggml_get_type_traits_cpu(TYPE)->vec_dot;
    for (int64_t r = 0; r < rows; ++r) {
        dot(static_cast<int>(k), c + r, 0, weights.data + (row + r) * weights.stride, 0, column, 0, 1);
    }
}

// The same of rows that lie eight together.
template <void (*GEMV)(int, float *, size_t, const void *, const void *, int, int)>
void eight(const Matrix & weights, int64_t row, int64_t rows, int64_t k, const char * column, float * c) {
    GEMV(static_cast<int>(k), c, weights.rows, weights.data + row * weights.stride, column, 1, static_cast<int>(rows));
}

template <typename W> constexpr Kernel kernel(decltype(Kernel::alone) alone) {
    using A = Activations<W::ACTIVATIONS>;
    return {ROWS, W::LEAST, A::UNITS, A::BYTES, sizeof(SideOf<W>), A::quantize, sides<W>, panel<W>, alone};
}

}  // namespace

const conclave::Kernel * conclave::kernel_of(const ggml_tensor * weights) {
    static const Kernel q8_0 = kernel<Q8_0>(dot<GGML_TYPE_Q8_0>), q5_0 = kernel<Q5_0>(dot<GGML_TYPE_Q5_0>),
                        q4_k = kernel<Q4_K>(dot<GGML_TYPE_Q4_K>), q5_k = kernel<Q5_K>(dot<GGML_TYPE_Q5_K>),
                        q6_k = kernel<Q6_K>(dot<GGML_TYPE_Q6_K>), mxfp4 = kernel<MXFP4>(dot<GGML_TYPE_MXFP4>),
                        q4_0x8 = kernel<Q4_0x8>(eight<ggml_gemv_q4_0_8x8_q8_0>),
                        q4_kx8 = kernel<Q4_Kx8>(eight<ggml_gemv_q4_K_8x8_q8_K>),
                        mxfp4x8 = kernel<MXFP4x8>(eight<ggml_gemv_mxfp4_8x8_q8_0>);
    if (weights->extra == nullptr) {
        switch (weights->type) {
            case GGML_TYPE_Q8_0: return &q8_0;
            case GGML_TYPE_Q5_0: return &q5_0;
            case GGML_TYPE_Q4_K: return &q4_k;
            case GGML_TYPE_Q5_K: return &q5_k;
            case GGML_TYPE_Q6_K: return &q6_k;
            case GGML_TYPE_MXFP4: return &mxfp4;
            default: return nullptr;
        }
    }
    if (weights->buffer == nullptr || weights->buffer->buft != ggml_backend_cpu_repack_buffer_type() || weights->ne[1] % 8) {
        return nullptr;
    }
    switch (weights->type) {
        case GGML_TYPE_Q4_0: return &q4_0x8;
        case GGML_TYPE_Q4_K: return &q4_kx8;
        case GGML_TYPE_MXFP4: return &mxfp4x8;
        default: return nullptr;
    }
}

#else

const conclave::Kernel * conclave::kernel_of(const ggml_tensor *) {
    return nullptr;
}

#endif
