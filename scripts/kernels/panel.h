// A panel: as many rows of weights as a register has lanes, one row a lane, unpacked to bytes as they are read.
//
// Every type of weights (blocks.h, eights.h) comes down to units of 32 weights a row: eight registers, of which number i has
// bytes 4i to 4i+3 of every row, and a scale a row. What multiplies (columns.h) knows units only. Weights are unpacked once
// for all columns there are, and stay where they are: in the file's layout, mapped and shared between processes, or in the
// one that llama.cpp lays some types out in as it loads them (repack.cpp). Nothing is held twice.

#pragma once

#include "ggml-cpu-impl.h"
#include "ggml-quants.h"

#include <immintrin.h>

#include <cstring>

namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define CONCLAVE_ROWS 16
#define WIDE(name) _mm512_##name
typedef __m512i Bytes;
typedef __m512 Floats;
#else
#define CONCLAVE_ROWS 8
#define WIDE(name) _mm256_##name
typedef __m256i Bytes;
typedef __m256 Floats;
#endif
constexpr int ROWS = CONCLAVE_ROWS;

// Whether four products of bytes are one instruction: else they are added up in 16 bits first, as many as fit.
#if CONCLAVE_ROWS == 16 || defined(__AVXVNNI__)
constexpr bool VNNI = true;
#else
constexpr bool VNNI = false;
#endif

// Units of types whose blocks are units never leave the registers, if all that is between them is inlined and its loops are
// unrolled. GCC did neither by itself for few columns: two to four took 15 to 40 % longer.
#define INLINE inline __attribute__((always_inline))

// 32 weights of each row of a panel.
struct Unit {
    Bytes w[8];
    Floats d;     // the scale of each row, or of its first 16 weights
    Floats more;  // the scale of the other 16, or what each weight is more; not set for a type that has neither
};

// Where each row of a panel begins, or each eight of them. A panel that a matrix does not fill has its last row repeated.
struct Rows {
    const char * at[ROWS];
};

// What a unit has beside bytes and a scale.
enum class Kind {
    PLAIN,
    HALVES,  // a scale for each half
    MORE,    // a number that is added to each weight
};

inline Bytes every(int byte) {
    return WIDE(set1_epi8)(static_cast<char>(byte));
}

inline Bytes low(Bytes v) {
    return v & every(15);
}

inline Bytes high(Bytes v) {
    return WIDE(srli_epi32)(v, 4) & every(15);
}

// 16 bytes at `offset` in every row: register j has bytes 4j to 4j+3.
INLINE void transpose(const Rows & rows, int64_t offset, Bytes w[4]) {
    Bytes v[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
        const auto row = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows.at[r] + offset)); };
#if CONCLAVE_ROWS == 16
        v[q] = _mm512_castsi128_si512(row(q));
        v[q] = _mm512_inserti32x4(v[q], row(q + 4), 1);
        v[q] = _mm512_inserti32x4(v[q], row(q + 8), 2);
        v[q] = _mm512_inserti32x4(v[q], row(q + 12), 3);
#else
        v[q] = _mm256_inserti128_si256(_mm256_castsi128_si256(row(q)), row(q + 4), 1);
#endif
    }
    const Bytes a = WIDE(unpacklo_epi32)(v[0], v[1]), b = WIDE(unpackhi_epi32)(v[0], v[1]);
    const Bytes c = WIDE(unpacklo_epi32)(v[2], v[3]), d = WIDE(unpackhi_epi32)(v[2], v[3]);
    w[0] = WIDE(unpacklo_epi64)(a, c);
    w[1] = WIDE(unpackhi_epi64)(a, c);
    w[2] = WIDE(unpacklo_epi64)(b, d);
    w[3] = WIDE(unpackhi_epi64)(b, d);
}

// 32 bytes at `offset` in every row: register j has bytes 4j to 4j+3.
INLINE void transpose32(const Rows & rows, int64_t offset, Bytes w[8]) {
#if CONCLAVE_ROWS == 16
    // Rows r and r+8 share a register: its 128-bit quarters are r low, r high, r+8 low, r+8 high.
    const auto row = [&](int r) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(rows.at[r] + offset)); };
    Bytes v[8], t[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
        v[r] = _mm512_inserti64x4(_mm512_castsi256_si512(row(r)), row(r + 8), 1);
    }
#pragma GCC unroll 2
    for (int g = 0; g < 8; g += 4) {
        const Bytes a = _mm512_unpacklo_epi32(v[g], v[g + 1]), b = _mm512_unpackhi_epi32(v[g], v[g + 1]);
        const Bytes c = _mm512_unpacklo_epi32(v[g + 2], v[g + 3]), d = _mm512_unpackhi_epi32(v[g + 2], v[g + 3]);
        t[g + 0] = _mm512_unpacklo_epi64(a, c);
        t[g + 1] = _mm512_unpackhi_epi64(a, c);
        t[g + 2] = _mm512_unpacklo_epi64(b, d);
        t[g + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // t[j] has word j of rows 0-3, word j+4 of rows 0-3, word j of rows 8-11, word j+4 of rows 8-11; t[j+4] the same of rows
    // 4-7 and 12-15.
    const Bytes first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        w[j] = _mm512_permutex2var_epi64(t[j], first, t[j + 4]);
        w[j + 4] = _mm512_permutex2var_epi64(t[j], second, t[j + 4]);
    }
#else
    transpose(rows, offset, w);
    transpose(rows, offset + 16, w + 4);
#endif
}

// A half float that every row has at `offset`.
INLINE Floats scales(const Rows & rows, int64_t offset) {
    alignas(32) ggml_half d[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        std::memcpy(d + r, rows.at[r] + offset, sizeof *d);
    }
#if CONCLAVE_ROWS == 16
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i *>(d)));
#else
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i *>(d)));
#endif
}

// The half floats in the low or high 16 bits of each lane.
template <int SHIFT> inline Floats scales(Bytes v) {
#if CONCLAVE_ROWS == 16
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, SHIFT)));
#else
    const __m256i both = _mm256_srli_epi32(_mm256_slli_epi32(v, 16 - SHIFT), 16);
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
#endif
}

// Byte `c` of each lane as a number, without a sign or with one.
inline Floats number(Bytes v, int c) {
    return WIDE(cvtepi32_ps)(WIDE(srli_epi32)(v, 8 * c) & WIDE(set1_epi32)(255));
}

inline Floats signed_number(Bytes v, int c) {
    return WIDE(cvtepi32_ps)(WIDE(srai_epi32)(WIDE(slli_epi32)(v, 24 - 8 * c), 24));
}

}  // namespace
