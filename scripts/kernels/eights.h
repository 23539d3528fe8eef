// Types of weights as llama.cpp lays them out anew when it loads them: eight rows in one block, 8 bytes of each in turn.
//
// Layouts: `make_block_q4_0x8`, `make_block_q4_Kx8` and `make_block_mxfp4x8` in repack.cpp.

#pragma once

#include "blocks.h"

#include "repack.h"

namespace {

// 8 bytes of each row at `offset`: bytes 0 to 3, and 4 to 7.
INLINE void pairs(const Rows & rows, int64_t offset, Bytes w[2]) {
#if CONCLAVE_ROWS == 16
    const __m512i a = _mm512_loadu_si512(rows.at[0] + offset), b = _mm512_loadu_si512(rows.at[8] + offset);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    w[0] = _mm512_permutex2var_epi32(a, even, b);
    w[1] = _mm512_permutex2var_epi32(a, even | _mm512_set1_epi32(1), b);
#else
    const __m256 a = _mm256_loadu_ps(reinterpret_cast<const float *>(rows.at[0] + offset));
    const __m256 b = _mm256_loadu_ps(reinterpret_cast<const float *>(rows.at[0] + offset + 32));
    const auto order = [](__m256 v) { return _mm256_permute4x64_epi64(_mm256_castps_si256(v), 0xd8); };
    w[0] = order(_mm256_shuffle_ps(a, b, 0x88));
    w[1] = order(_mm256_shuffle_ps(a, b, 0xdd));
#endif
}

inline Floats eights(const Rows & rows, int64_t offset) {
    const auto eight = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows.at[r] + offset)); };
#if CONCLAVE_ROWS == 16
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(eight(0)), eight(8), 1));
#else
    return _mm256_cvtph_ps(eight(0));
#endif
}

struct Q4_0x8 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_0;
    static constexpr Kind KIND = Kind::PLAIN;
    static constexpr int BYTES = sizeof(block_q4_0x8), UNITS = 1, TOGETHER = 8, LEAST = 2, OFFSET = 8, MOST = 15;

    static INLINE void unpack(const Rows & rows, int64_t at, Unit * u) {
        Bytes q[4];
        pairs(rows, at + 16, q);
        pairs(rows, at + 80, q + 2);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            q[i] ^= every(0x88);  // they are stored with their signs
            u->w[i] = low(q[i]);
            u->w[i + 4] = high(q[i]);
        }
        u->d = eights(rows, at);
    }
};

struct Q4_Kx8 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_K;
    static constexpr Kind KIND = Kind::MORE;
    static constexpr int BYTES = sizeof(block_q4_Kx8), UNITS = 8, TOGETHER = 8, LEAST = 3, OFFSET = 0, MOST = 15;

    static void unpack(const Rows & rows, int64_t at, Unit * u) {
        for (int j = 0; j < 4; ++j) {
            for (int i = 0; i < 8; i += 2) {
                Bytes q[2];
                pairs(rows, at + 128 + 256 * j + 32 * i, q);
                for (int k = 0; k < 2; ++k) {
                    u[2 * j].w[i + k] = low(q[k]);
                    u[2 * j + 1].w[i + k] = high(q[k]);
                }
            }
        }
        alignas(64) uint8_t s[ROWS / 8][64], m[ROWS / 8][64];  // by unit and row
        for (int g = 0; g < ROWS / 8; ++g) {
            sixes(rows.at[8 * g] + at + 32, s[g], m[g]);
        }
        const Floats d = eights(rows, at), least = eights(rows, at + 16);
        for (int i = 0; i < 8; ++i) {
            u[i].d = WIDE(mul_ps)(d, numbers(s[0] + 8 * i));
            u[i].more = WIDE(mul_ps)(least, numbers(m[0] + 8 * i));
        }
    }

  private:
    // Scales and minima of eight rows, which lie three words a unit: unit i's are made bytes 8i to 8i+7.
    static void sixes(const char * from, uint8_t * s, uint8_t * m) {
        const auto * words = reinterpret_cast<const __m256i *>(from);
        const __m256i x = _mm256_loadu_si256(words), y = _mm256_loadu_si256(words + 1), z = _mm256_loadu_si256(words + 2);
        // Words 3i, 3i+1 and 3i+2 of 24.
        const __m256i a = _mm256_permutevar8x32_epi32(_mm256_blend_epi32(_mm256_blend_epi32(x, y, 0x92), z, 0x24),
                                                      _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5));
        const __m256i b = _mm256_permutevar8x32_epi32(_mm256_blend_epi32(_mm256_blend_epi32(x, y, 0x24), z, 0x49),
                                                      _mm256_setr_epi32(1, 4, 7, 2, 5, 0, 3, 6));
        const __m256i c = _mm256_permutevar8x32_epi32(_mm256_blend_epi32(_mm256_blend_epi32(x, y, 0x49), z, 0x92),
                                                      _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7));
        const __m256i four = _mm256_set1_epi8(15), two = _mm256_set1_epi8(48), six = _mm256_set1_epi8(63);
        split(a & six, (c & four) | (_mm256_srli_epi32(a, 2) & two), s);
        split(b & six, (_mm256_srli_epi32(c, 4) & four) | (_mm256_srli_epi32(b, 2) & two), m);
    }

    static void split(__m256i first, __m256i second, uint8_t * to) {
        const __m256i a = _mm256_unpacklo_epi32(first, second), b = _mm256_unpackhi_epi32(first, second);
        auto * at = reinterpret_cast<__m128i *>(to);
        _mm_store_si128(at, _mm256_castsi256_si128(a));
        _mm_store_si128(at + 1, _mm256_castsi256_si128(b));
        _mm_store_si128(at + 2, _mm256_extracti128_si256(a, 1));
        _mm_store_si128(at + 3, _mm256_extracti128_si256(b, 1));
    }

    static Floats numbers(const uint8_t * bytes) {
        const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes));
#if CONCLAVE_ROWS == 16
        const __m128i more = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes + 64));
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi64(eight, more)));
#else
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
#endif
    }
};

struct MXFP4x8 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_0;
    static constexpr Kind KIND = Kind::PLAIN;
    static constexpr int BYTES = sizeof(block_mxfp4x8), UNITS = 1, TOGETHER = 8, LEAST = 2, OFFSET = 12, MOST = 31;

    static INLINE void unpack(const Rows & rows, int64_t at, Unit * u) {
        Bytes q[4];
        pairs(rows, at + 8, q);
        pairs(rows, at + 72, q + 2);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            u->w[i] = e2m1(low(q[i]));
            u->w[i + 4] = e2m1(high(q[i]));
        }
        const auto eight = [&](int r) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(rows.at[r] + at)); };
#if CONCLAVE_ROWS == 16
        u->d = e8m0(_mm512_cvtepu8_epi32(_mm_unpacklo_epi64(eight(0), eight(8))));
#else
        u->d = e8m0(_mm256_cvtepu8_epi32(eight(0)));
#endif
    }
};

}  // namespace
