// Columns: activations that ggml has quantized, times units of weights (panel.h).
//
//     for each unit:          w[0..7]  16 rows x 4 bytes each
//       for each column:      sum = -OFFSET x sum(activations);  sum += w[i] . activation[i], i = 0..7;
//                             C += sum x da x db
//
// A conversion and a scaled addition are paid once for 512 products. Activations are quantized as llama.cpp's own products
// have them, so results differ from its own by the order in which floats are added, no more.

#pragma once

#include "eights.h"

#include "quants.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

namespace {

constexpr int AT_ONCE = 16;  // columns: 8 registers of weights and 16 of sums leave 8 of 32

// The sum of sixteen bytes, which become positive for the instruction that adds up: 16 x 128 too much.
inline int32_t total(__m128i v) {
    const __m128i s = _mm_sad_epu8(_mm_xor_si128(v, _mm_set1_epi8(-128)), _mm_setzero_si128());
    return _mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 2) - 16 * 128;
}

// Where a column's activations are, and what they sum up to.
template <ggml_type TYPE> struct Activations;

template <> struct Activations<GGML_TYPE_Q8_0> {
    static constexpr int BYTES = sizeof(block_q8_0), UNITS = 1;

    static const int8_t * quants(const char * row, int64_t unit) {
        return reinterpret_cast<const block_q8_0 *>(row)[unit].qs;
    }
    static float scale(const char * row, int64_t unit) {
        return _cvtsh_ss(reinterpret_cast<const block_q8_0 *>(row)[unit].d);
    }
    static void quantize(const float * x, char * row, int64_t k) {
        quantize_row_q8_0(x, row, k);
    }
    static int32_t sum(const char * row, int64_t unit, int half) {
        return total(_mm_loadu_si128(reinterpret_cast<const __m128i *>(quants(row, unit) + 16 * half)));
    }
};

template <> struct Activations<GGML_TYPE_Q8_K> {
    static constexpr int BYTES = sizeof(block_q8_K), UNITS = 8;

    static const int8_t * quants(const char * row, int64_t unit) {
        return reinterpret_cast<const block_q8_K *>(row)[unit / 8].qs + 32 * (unit % 8);
    }
    static float scale(const char * row, int64_t unit) {
        return reinterpret_cast<const block_q8_K *>(row)[unit / 8].d;
    }
    static int32_t sum(const char * row, int64_t unit, int half) {
        return reinterpret_cast<const block_q8_K *>(row)[unit / 8].bsums[2 * (unit % 8) + half];
    }
    static void quantize(const float * x, char * row, int64_t k);
};

// As ggml's own does, `quantize_row_q8_K_ref` in ggml-quants.c, which takes a number at a time.
inline void Activations<GGML_TYPE_Q8_K>::quantize(const float * x, char * row, int64_t k) {
    constexpr int STEP = ROWS;
    const Floats sign = WIDE(set1_ps)(-0.0f);
    for (auto * y = reinterpret_cast<block_q8_K *>(row); k > 0; k -= QK_K, x += QK_K, ++y) {
        Floats greatest = WIDE(setzero_ps)();
        for (int i = 0; i < QK_K; i += STEP) {
            greatest = WIDE(max_ps)(WIDE(andnot_ps)(sign, WIDE(loadu_ps)(x + i)), greatest);
        }
        alignas(64) float each[STEP];
        WIDE(store_ps)(each, greatest);
        const float most = *std::max_element(each, each + STEP);
        if (most == 0) {
            std::memset(y, 0, sizeof *y);
            continue;
        }
        // The first of the greatest size becomes -127: its sign is that of the scale.
        const float * first = x;
        while (std::fabs(*first) != most) {
            ++first;
        }
        const float inverse = -127.0f / *first;
        const Floats times = WIDE(set1_ps)(inverse);
        for (int i = 0; i < QK_K; i += 16) {
            int8_t * q = y->qs + i;
#if CONCLAVE_ROWS == 16
            const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), times)));
#else
            const auto eight = [&](int at) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + at), times)); };
            const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(eight(i), eight(i + 8)), 0xd8);
            const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#endif
            _mm_storeu_si128(reinterpret_cast<__m128i *>(q), bytes);
            y->bsums[i / 16] = static_cast<int16_t>(total(bytes));
        }
        y->d = 1 / inverse;
    }
}

// What a column has beside its bytes, for each unit.
template <Kind> struct Side;

template <> struct Side<Kind::PLAIN> {
    float d;
    int32_t offset;  // -OFFSET x the sum of the activations
};

template <> struct Side<Kind::HALVES> {
    float d;
    int32_t offset, second;
};

template <> struct Side<Kind::MORE> {
    float d, sum;  // the sum with its scale; Q4_K and Q5_K take their minima off, so it is negative
};

template <typename W> using SideOf = Side<W::KIND>;

template <typename W> void side(const char * row, int64_t units, SideOf<W> * to) {
    using A = Activations<W::ACTIVATIONS>;
    for (int64_t l = 0; l < units; ++l) {
        const float d = A::scale(row, l);
        const int32_t first = A::sum(row, l, 0), second = A::sum(row, l, 1);
        if constexpr (W::KIND == Kind::PLAIN) {
            to[l] = {d, -W::OFFSET * (first + second)};
        } else if constexpr (W::KIND == Kind::HALVES) {
            to[l] = {d, -W::OFFSET * first, -W::OFFSET * second};
        } else {
            to[l] = {d, -d * static_cast<float>(first + second)};
        }
    }
}

inline Bytes word(const int8_t * q) {
    int32_t four;
    std::memcpy(&four, q, 4);
    return WIDE(set1_epi32)(four);
}

inline Floats scaled(Bytes sum, Floats d, Floats to) {
    return WIDE(fmadd_ps)(WIDE(cvtepi32_ps)(sum), d, to);
}

#if CONCLAVE_ROWS == 16

template <typename W, int N>
INLINE void multiply(const Unit & u, const int8_t * q, int64_t ldq, const SideOf<W> * s, int64_t lds, Floats sums[N]) {
    const Bytes w[8] = {u.w[0], u.w[1], u.w[2], u.w[3], u.w[4], u.w[5], u.w[6], u.w[7]};
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
        const SideOf<W> & side = s[j * lds];
        const Floats d = _mm512_set1_ps(side.d);
        Bytes a = _mm512_setzero_si512(), b = _mm512_setzero_si512();
        if constexpr (W::KIND != Kind::MORE) {
            a = _mm512_set1_epi32(side.offset);
        }
        if constexpr (W::KIND == Kind::HALVES) {
            b = _mm512_set1_epi32(side.second);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            a = _mm512_dpbusd_epi32(a, w[i], word(q + j * ldq + 4 * i));
            b = _mm512_dpbusd_epi32(b, w[i + 4], word(q + j * ldq + 4 * i + 16));
        }
        if constexpr (W::KIND == Kind::HALVES) {
            const Floats both = scaled(b, u.more, _mm512_mul_ps(_mm512_cvtepi32_ps(a), u.d));
            sums[j] = _mm512_fmadd_ps(both, d, sums[j]);
        } else {
            sums[j] = scaled(_mm512_add_epi32(a, b), _mm512_mul_ps(u.d, d), sums[j]);
        }
        if constexpr (W::KIND == Kind::MORE) {
            sums[j] = _mm512_fmadd_ps(u.more, _mm512_set1_ps(side.sum), sums[j]);
        }
    }
}

#else

// Of bytes that are at most MOST this many products of pairs can be added up in 16 bits.
template <typename W> constexpr int RUN = W::MOST == 15 ? 8 : W::MOST == 31 ? 4 : W::MOST == 63 ? 2 : 1;
static_assert(RUN<Q4_K> * 2 * 15 * 127 < 32768 && RUN<Q5_K> * 2 * 31 * 127 < 32768 && RUN<Q6_K> * 2 * 63 * 127 < 32768);

// N columns of few: sixteen registers hold no more than a register of weights and what four of them need.
template <typename W, int N>
INLINE void few(const Unit & u, const int8_t * q, int64_t ldq, const SideOf<W> * s, int64_t lds, Floats * sums) {
    const Bytes ones = _mm256_set1_epi16(1);
    Bytes sum[N], part[N];
    Floats first[N];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const Bytes w = u.w[i];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
            if (i == 0) {
                if constexpr (W::KIND == Kind::MORE) {
                    sum[j] = _mm256_setzero_si256();
                } else {
                    sum[j] = _mm256_set1_epi32(s[j * lds].offset);
                }
            }
            if constexpr (W::KIND == Kind::HALVES) {
                if (i == 4) {
                    first[j] = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[j]), u.d);
                    sum[j] = _mm256_set1_epi32(s[j * lds].second);
                }
            }
            const Bytes a = word(q + j * ldq + 4 * i);
#if defined(__AVXVNNI__)
            (void) part, (void) ones;
            sum[j] = _mm256_dpbusd_avx_epi32(sum[j], w, a);
#else
            if constexpr (RUN<W> == 1) {
                part[j] = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
            } else {
                const Bytes products = _mm256_maddubs_epi16(w, a);
                part[j] = i % RUN<W> ? _mm256_add_epi16(part[j], products) : products;
            }
            if (i % RUN<W> == RUN<W> - 1) {
                sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(part[j], ones));
            }
#endif
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
        const SideOf<W> & side = s[j * lds];
        const Floats d = _mm256_set1_ps(side.d);
        if constexpr (W::KIND == Kind::HALVES) {
            sums[j] = _mm256_fmadd_ps(scaled(sum[j], u.more, first[j]), d, sums[j]);
        } else {
            sums[j] = scaled(sum[j], _mm256_mul_ps(u.d, d), sums[j]);
        }
        if constexpr (W::KIND == Kind::MORE) {
            sums[j] = _mm256_fmadd_ps(u.more, _mm256_set1_ps(side.sum), sums[j]);
        }
    }
}

template <typename W, int N>
INLINE void multiply(const Unit & u, const int8_t * q, int64_t ldq, const SideOf<W> * s, int64_t lds, Floats sums[N]) {
    if constexpr (N > 4) {
        few<W, 4>(u, q, ldq, s, lds, sums);
        multiply<W, N - 4>(u, q + 4 * ldq, ldq, s + 4 * lds, lds, sums + 4);
    } else {
        few<W, N>(u, q, ldq, s, lds, sums);
    }
}

#endif

}  // namespace
