// A panel: as many rows of weights as a register has lanes, one row a lane, unpacked to bytes as they are read.
//
// Every type of weights comes down to units of 32 weights a row: eight registers, of which number i has bytes 4i to 4i+3
// of every row, and a scale a row. What multiplies (columns.h) knows units only. Weights are unpacked once for all columns
// there are, and stay where they are: in the file's layout, mapped and shared between processes, or in the one that
// llama.cpp lays Q4_0 and Q4_K out in as it loads them (repack.cpp). Nothing is held twice.
//
// Layouts of blocks: ggml-common.h; of eight rows together: `make_block_q4_0x8` and `make_block_q4_Kx8` in repack.cpp.

#pragma once

#include "ggml-cpu-impl.h"
#include "ggml-quants.h"
#include "repack.h"

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
inline void transpose(const Rows & rows, int64_t offset, Bytes w[4]) {
    Bytes v[4];
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

// A half float that every row has at `offset`.
inline Floats scales(const Rows & rows, int64_t offset) {
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

// Blocks as a file has them. `unpack` takes the block that begins at byte `at` of each row.

struct Q8_0 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_0;
    static constexpr Kind KIND = Kind::PLAIN;
    static constexpr int BYTES = sizeof(block_q8_0), UNITS = 1, TOGETHER = 1;  // rows that a block has
    static constexpr int LEAST = 2;                // columns with which it pays
    static constexpr int OFFSET = VNNI ? 128 : 0;  // what each byte is more than its weight
    static constexpr int MOST = 255;               // what a byte can be; of these alone some may be negative

    static void unpack(const Rows & rows, int64_t at, Unit * u) {
        transpose(rows, at + 2, u->w);
        transpose(rows, at + 18, u->w + 4);
        if (OFFSET) {
            for (Bytes & w : u->w) {
                w ^= every(128);
            }
        }
        u->d = scales(rows, at);
    }
};

struct Q5_0 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_0;
    static constexpr Kind KIND = Kind::PLAIN;
    static constexpr int BYTES = sizeof(block_q5_0), UNITS = 1, TOGETHER = 1, LEAST = 2, OFFSET = 16, MOST = 31;

    static void unpack(const Rows & rows, int64_t at, Unit * u) {
        Bytes q[4];
        transpose(rows, at + 6, q);
        alignas(64) uint32_t h[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            std::memcpy(h + r, rows.at[r] + at + 2, 4);
        }
        const Bytes bits = *reinterpret_cast<const Bytes *>(h);
        for (int i = 0; i < 8; ++i) {
            u->w[i] = (i < 4 ? low(q[i]) : high(q[i - 4])) | fifth(bits, i);
        }
        u->d = scales(rows, at);
    }

  private:
    // Bits 4i to 4i+3 of each lane, each as 16 in a byte of its own.
    static Bytes fifth(Bytes bits, int i) {
        const Bytes four = WIDE(srli_epi32)(bits, 4 * i) & WIDE(set1_epi32)(15);
        const Bytes spread = four | WIDE(slli_epi32)(four, 7) | WIDE(slli_epi32)(four, 14) | WIDE(slli_epi32)(four, 21);
        return WIDE(slli_epi32)(spread & every(1), 4);
    }
};

// The eight scales and eight minima of Q4_K and Q5_K, six bits each (`get_scale_min_k4` in ggml-quants.c), from the three
// words that hold them: scale i is byte i % 4 of s[i / 4], minimum i of m[i / 4].
struct Sixes {
    Bytes s[2], m[2];

    Sixes(Bytes a, Bytes b, Bytes c)
        : s{a & every(63), low(c) | two(a)}, m{b & every(63), high(c) | two(b)} {}

  private:
    static Bytes two(Bytes v) {
        return WIDE(srli_epi32)(v, 2) & every(48);
    }
};

template <typename Block, bool FIVE> struct K4 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_K;
    static constexpr Kind KIND = Kind::MORE;
    static constexpr int BYTES = sizeof(Block), UNITS = 8, TOGETHER = 1, LEAST = 3, OFFSET = 0, MOST = FIVE ? 31 : 15;

    static void unpack(const Rows & rows, int64_t at, Unit * u) {
        Bytes head[4], bits[8];
        transpose(rows, at, head);
        const Floats d = scales<0>(head[0]), least = scales<16>(head[0]);
        const Sixes sixes(head[1], head[2], head[3]);
        if (FIVE) {
            transpose(rows, at + 16, bits);
            transpose(rows, at + 32, bits + 4);
        }
        for (int j = 0; j < 4; ++j) {
            Bytes q[8];
            transpose(rows, at + (FIVE ? 48 : 16) + 32 * j, q);
            transpose(rows, at + (FIVE ? 64 : 32) + 32 * j, q + 4);
            for (int i = 0; i < 8; ++i) {
                u[2 * j].w[i] = low(q[i]);
                u[2 * j + 1].w[i] = high(q[i]);
                if (FIVE) {
                    u[2 * j].w[i] |= WIDE(slli_epi32)(WIDE(srli_epi32)(bits[i], 2 * j) & every(1), 4);
                    u[2 * j + 1].w[i] |= WIDE(slli_epi32)(WIDE(srli_epi32)(bits[i], 2 * j + 1) & every(1), 4);
                }
            }
        }
        for (int i = 0; i < 8; ++i) {
            u[i].d = WIDE(mul_ps)(d, number(sixes.s[i / 4], i % 4));
            u[i].more = WIDE(mul_ps)(least, number(sixes.m[i / 4], i % 4));
        }
    }
};

using Q4_K = K4<block_q4_K, false>;
using Q5_K = K4<block_q5_K, true>;

struct Q6_K {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_K;
    static constexpr Kind KIND = Kind::HALVES;
    static constexpr int BYTES = sizeof(block_q6_K), UNITS = 8, TOGETHER = 1, LEAST = 4, OFFSET = 32, MOST = 63;

    static void unpack(const Rows & rows, int64_t at, Unit * u) {
        for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < 8; i += 4) {
                Bytes a[4], b[4], h[4];
                transpose(rows, at + 64 * half + 4 * i, a);
                transpose(rows, at + 64 * half + 32 + 4 * i, b);
                transpose(rows, at + 128 + 32 * half + 4 * i, h);
                for (int j = 0; j < 4; ++j) {
                    Unit * to = u + 4 * half;
                    to[0].w[i + j] = low(a[j]) | WIDE(slli_epi32)(h[j] & every(3), 4);
                    to[1].w[i + j] = low(b[j]) | WIDE(slli_epi32)(h[j] & every(12), 2);
                    to[2].w[i + j] = high(a[j]) | (h[j] & every(48));
                    to[3].w[i + j] = high(b[j]) | (WIDE(srli_epi32)(h[j], 2) & every(48));
                }
            }
        }
        Bytes s[4];
        transpose(rows, at + 192, s);
        const Floats d = scales(rows, at + 208);
        for (int i = 0; i < 8; ++i) {
            u[i].d = WIDE(mul_ps)(d, signed_number(s[i / 2], 2 * (i % 2)));
            u[i].more = WIDE(mul_ps)(d, signed_number(s[i / 2], 2 * (i % 2) + 1));
        }
    }
};

// Eight rows in one block, as llama.cpp repacks them: 8 bytes of each row in turn.

// 8 bytes of each row at `offset`: bytes 0 to 3, and 4 to 7.
inline void pairs(const Rows & rows, int64_t offset, Bytes w[2]) {
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

    static void unpack(const Rows & rows, int64_t at, Unit * u) {
        Bytes q[4];
        pairs(rows, at + 16, q);
        pairs(rows, at + 80, q + 2);
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

}  // namespace
