// Columns: activations that ggml has quantized, times units of weights (panel.h).
//
//     for each unit:          w[0..7]  16 rows x 4 bytes each
//       for each column:      sum = -OFFSET x sum(activations);  sum += w[i] . activation[i], i = 0..7;
//                             C += sum x da x db
//
// A conversion and a scaled addition are paid once for 512 products. Activations are quantized as llama.cpp's own products
// have them, so results differ from its own by the order in which floats are added, no more.

#pragma once

#include "panel.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace {

constexpr int COLUMNS = 16;  // at once: 8 registers of weights and 16 of sums leave 8 of 32

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
    static int32_t sum(const char * row, int64_t unit, int half) {
        const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(quants(row, unit) + 16 * half));
        // Bytes become positive to be added up by the instruction that does that, and 16 x 128 too much.
        const __m128i s = _mm_sad_epu8(_mm_xor_si128(v, _mm_set1_epi8(-128)), _mm_setzero_si128());
        return _mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 2) - 16 * 128;
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
};

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
inline void multiply(const Unit & u, const int8_t * q, int64_t ldq, const SideOf<W> * s, int64_t lds, Floats sums[N]) {
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

#endif

}  // namespace
