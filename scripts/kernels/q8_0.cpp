// Matrix products with Q8_0 weights for x86 with AVX-512 VNNI: what a batch of two to sixteen rows spends its time on.
//
// llama.cpp computes them in tiles of 4 x 4 (ggml-cpu/llamafile/sgemm.cpp): for each 32 products a sign trick, one
// vpdpbusd, a conversion and a scaled addition. Here sixteen weight rows stand in the lanes of a register, transposed as
// they are read, so that the conversion and the scaled addition are paid once for 512 products:
//
//     for each block of 32:   w[0..7]  16 rows x 4 bytes each, as unsigned (value + 128)
//       for each column:      sum = -128 x sum(activations);  sum += w[i] . activation[i], i = 0..7;  C += sum x da x db
//
// product.cpp does the same for every type by a common form, and for Q8_0 where there is no AVX-512. Here it took 38 to 39 ms
// for a step of two rows where this takes 28 to 33, 42 to 54 for four where this takes 34 to 43, and 5 % more for a prompt
// (half a billion parameters, two threads): so this one stayed.
//
// The weights stay as they are in the file (mapped, shared between processes); nothing is repacked or kept. Results
// differ from llama.cpp's by the order in which floats are added, no more.
//
// The linker puts this in the place of llamafile_sgemm (--wrap, see ../lean.cmake); what it does not take goes on to
// llama.cpp's own, which is also all there is on other processors.

#include "ggml-cpu-impl.h"
#include "ggml-quants.h"
#include "llamafile/sgemm.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

extern "C" bool __real_llamafile_sgemm(const ggml_compute_params *, int64_t, int64_t, int64_t, const void *, int64_t,
                                       const void *, int64_t, void *, int64_t, int, int, int);

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__F16C__)

namespace {

constexpr int ROWS = 16;           // weight rows in the lanes of a register
constexpr int COLUMNS = 16;        // activations at once: 8 registers of weights and 16 of sums leave 8 of 32
constexpr int64_t MOST = 512;      // columns whose scales are kept at a time
constexpr int64_t PARTS = 16;      // of a product, a thread
constexpr int CHUNK = 64;          // blocks of weights that are kept transposed when there are many columns: 32 KiB

struct Scale {
    float d;
    int32_t offset;  // -128 x the sum of the block
};

struct Weights {
    __m512i w[8];
    __m512 d;
};

inline __m256i load(const block_q8_0 & b) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b.qs));
}

inline __m512i pair(const block_q8_0 & low, const block_q8_0 & high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load(low)), load(high), 1);
}

// Block `at` of sixteen rows: register i has bytes 4i to 4i+3 of every row, in row order.
inline void transpose(const block_q8_0 * a, int64_t stride, __m512i w[8]) {
    // Rows r and r+8 share a register: its 128-bit quarters are r low, r high, r+8 low, r+8 high.
    __m512i v[8], t[8];
    for (int r = 0; r < 8; ++r) {
        v[r] = pair(a[r * stride], a[(r + 8) * stride]);
    }
    for (int g = 0; g < 8; g += 4) {
        const __m512i a0 = _mm512_unpacklo_epi32(v[g], v[g + 1]), a1 = _mm512_unpackhi_epi32(v[g], v[g + 1]);
        const __m512i a2 = _mm512_unpacklo_epi32(v[g + 2], v[g + 3]), a3 = _mm512_unpackhi_epi32(v[g + 2], v[g + 3]);
        t[g + 0] = _mm512_unpacklo_epi64(a0, a2);
        t[g + 1] = _mm512_unpackhi_epi64(a0, a2);
        t[g + 2] = _mm512_unpacklo_epi64(a1, a3);
        t[g + 3] = _mm512_unpackhi_epi64(a1, a3);
    }
    // t[j] has dword j of rows 0-3, dword j+4 of rows 0-3, dword j of rows 8-11, dword j+4 of rows 8-11; t[j+4] the same
    // of rows 4-7 and 12-15.
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int j = 0; j < 4; ++j) {
        w[j] = _mm512_xor_si512(flip, _mm512_permutex2var_epi64(t[j], low, t[j + 4]));
        w[j + 4] = _mm512_xor_si512(flip, _mm512_permutex2var_epi64(t[j], high, t[j + 4]));
    }
}

inline __m512 scales(const block_q8_0 * a, int64_t stride) {
    alignas(32) ggml_half d[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        d[r] = a[r * stride].d;
    }
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i *>(d)));
}

template <int N> inline void multiply(const __m512i w[8], __m512 d, const block_q8_0 * b, int64_t ldb, const Scale * s,
                                      int64_t lds, __m512 sums[N]) {
    for (int j = 0; j < N; ++j) {
        const int8_t * q = b[j * ldb].qs;
        __m512i even = _mm512_set1_epi32(s[j * lds].offset), odd = _mm512_setzero_si512();
        for (int i = 0; i < 8; i += 2) {
            int32_t q0, q1;
            std::memcpy(&q0, q + 4 * i, 4);
            std::memcpy(&q1, q + 4 * i + 4, 4);
            even = _mm512_dpbusd_epi32(even, w[i], _mm512_set1_epi32(q0));
            odd = _mm512_dpbusd_epi32(odd, w[i + 1], _mm512_set1_epi32(q1));
        }
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
        sums[j] = _mm512_fmadd_ps(sum, _mm512_mul_ps(d, _mm512_set1_ps(s[j * lds].d)), sums[j]);
    }
}

// Sixteen rows by N columns, with weights transposed on the way: every weight is used by all columns there are.
template <int N> void once(int64_t k, const block_q8_0 * a, int64_t lda, const block_q8_0 * b, int64_t ldb, const Scale * s,
                           float * c, int64_t ldc) {
    __m512 sums[N] = {};
    // The next sixteen rows lie right behind: their lines are asked for while these are computed.
    const char * next = reinterpret_cast<const char *>(a + ROWS * lda);
    constexpr int64_t step = ROWS * sizeof(block_q8_0);
    for (int64_t l = 0; l < k; ++l) {
        for (int64_t line = l * step; line < (l + 1) * step; line += 64) {
            _mm_prefetch(next + line, _MM_HINT_T0);
        }
        __m512i w[8];
        transpose(a + l, lda, w);
        multiply<N>(w, scales(a + l, lda), b + l, ldb, s + l, k, sums);
    }
    for (int j = 0; j < N; ++j) {
        _mm512_storeu_ps(c + j * ldc, sums[j]);
    }
}

// The same from transposed weights, for blocks that are one chunk of a longer row.
template <int N> void chunk(int64_t k, const Weights * a, const block_q8_0 * b, int64_t ldb, const Scale * s, int64_t lds,
                            float * c, int64_t ldc, bool first) {
    __m512 sums[N];
    for (int j = 0; j < N; ++j) {
        sums[j] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + j * ldc);
    }
    for (int64_t l = 0; l < k; ++l) {
        multiply<N>(a[l].w, a[l].d, b + l, ldb, s + l, lds, sums);
    }
    for (int j = 0; j < N; ++j) {
        _mm512_storeu_ps(c + j * ldc, sums[j]);
    }
}

// Calls f with N = n as a constant, 1 <= n <= COLUMNS.
template <int N = COLUMNS, typename F> inline void with_columns(int64_t n, F && f) {
    if constexpr (N > 1) {
        if (n < N) {
            return with_columns<N - 1>(n, f);
        }
    }
    f(std::integral_constant<int, N>());
}

// Scales of all activations, kept for every row of weights.
const Scale * scaled(int64_t n, int64_t k, const block_q8_0 * b, int64_t ldb) {
    static thread_local std::vector<Scale> kept;
    kept.resize(n * k);
    const __m256i ones = _mm256_set1_epi8(1);
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t l = 0; l < k; ++l) {
            const block_q8_0 & block = b[j * ldb + l];
            const __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, load(block));
            const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
            const __m128i two = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
            const int32_t total = _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
            kept[j * k + l] = {_cvtsh_ss(block.d), -128 * total};
        }
    }
    return kept.data();
}

void product(int64_t row, int64_t end, int64_t n, int64_t k, const block_q8_0 * a, int64_t lda, const block_q8_0 * b,
             int64_t ldb, const Scale * s, float * c, int64_t ldc) {
    static thread_local std::vector<Weights> transposed(CHUNK);
    const int64_t tiles = (n + COLUMNS - 1) / COLUMNS;
    for (; row < end; row += ROWS) {
        const block_q8_0 * rows = a + row * lda;
        if (n <= COLUMNS) {
            with_columns(n, [&](auto count) { once<count()>(k, rows, lda, b, ldb, s, c + row, ldc); });
            continue;
        }
        for (int64_t l = 0; l < k; l += CHUNK) {
            const int64_t blocks = std::min<int64_t>(CHUNK, k - l);
            for (int64_t i = 0; i < blocks; ++i) {
                transpose(rows + l + i, lda, transposed[i].w);
                transposed[i].d = scales(rows + l + i, lda);
            }
            // Tiles of equal width: one of a few columns would cost nearly what one of sixteen does.
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t j = n * tile / tiles, after = n * (tile + 1) / tiles;
                with_columns(after - j, [&](auto count) {
                    chunk<count()>(blocks, transposed.data(), b + j * ldb + l, ldb, s + j * k + l, k, c + j * ldc + row, ldc,
                                   l == 0);
                });
            }
        }
    }
}

}  // namespace

extern "C" bool __wrap_llamafile_sgemm(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * A,
                                       int64_t lda, const void * B, int64_t ldb, void * C, int64_t ldc, int Atype, int Btype,
                                       int Ctype) {
    // One column is a matter of memory alone, and llama.cpp's way with it is as fast.
    if (Atype != GGML_TYPE_Q8_0 || Btype != GGML_TYPE_Q8_0 || Ctype != GGML_TYPE_F32 || n < 2 || m < ROWS) {
        return __real_llamafile_sgemm(params, m, n, k, A, lda, B, ldb, C, ldc, Atype, Btype, Ctype);
    }
    const auto * a = static_cast<const block_q8_0 *>(A);
    const auto * b = static_cast<const block_q8_0 *>(B);
    auto * c = static_cast<float *>(C);
    const int64_t panels = m / ROWS, nth = params->nth;
    if (B == params->wdata && n <= MOST && m % ROWS == 0) {
        // The threads take what is next: whose processor does something else for a while does not hold up the rest.
        // ggml's mul_mat has set the counter to `nth`, behind a barrier, before it comes here with the first matrix.
        const int64_t each = std::max<int64_t>(1, panels / (PARTS * nth));
        const Scale * s = scaled(n, k, b, ldb);
        for (int64_t part = params->ith; part * each < panels; part = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            product(part * each * ROWS, std::min(panels, (part + 1) * each) * ROWS, n, k, a, lda, b, ldb, s, c, ldc);
        }
        return true;
    }
    const int64_t each = (panels + nth - 1) / nth;
    const int64_t begin = std::min(panels, params->ith * each), end = std::min(panels, begin + each);
    for (int64_t j = 0; begin < end && j < n; j += MOST) {
        const int64_t columns = std::min(MOST, n - j);
        const Scale * s = scaled(columns, k, b + j * ldb, ldb);
        product(begin * ROWS, end * ROWS, columns, k, a, lda, b + j * ldb, ldb, s, c + j * ldc, ldc);
    }
    const int64_t done = panels * ROWS;
    return done == m || __real_llamafile_sgemm(params, m - done, n, k, a + done * lda, lda, B, ldb, c + done, ldc, Atype,
                                               Btype, Ctype);
}

#else

extern "C" bool __wrap_llamafile_sgemm(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * A,
                                       int64_t lda, const void * B, int64_t ldb, void * C, int64_t ldc, int Atype, int Btype,
                                       int Ctype) {
    return __real_llamafile_sgemm(params, m, n, k, A, lda, B, ldb, C, ldc, Atype, Btype, Ctype);
}

#endif
