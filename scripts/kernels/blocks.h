// Types of weights as a file has them. `unpack` takes the block that begins at byte `at` of each row.
//
// Layouts of blocks: ggml-common.h.

#pragma once

#include "panel.h"

namespace {

struct Q8_0 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_0;
    static constexpr Kind KIND = Kind::PLAIN;
    static constexpr int BYTES = sizeof(block_q8_0), UNITS = 1, TOGETHER = 1;  // rows that a block has
    // Columns with which it pays. With one, where sixteen rows stand in a register: what reads weights is not held up then
    // (eight rows were not measured).
    static constexpr int LEAST = ROWS == 16 ? 1 : 2;
    static constexpr int OFFSET = VNNI ? 128 : 0;  // what each byte is more than its weight
    static constexpr int MOST = 255;               // what a byte can be; of these alone some may be negative

    static INLINE void unpack(const Rows & rows, int64_t at, Unit * u) {
        transpose32(rows, at + 2, u->w);
#pragma GCC unroll 8
        for (int i = 0; OFFSET && i < 8; ++i) {
            u->w[i] ^= every(128);
        }
        u->d = scales(rows, at);
    }
};

struct Q5_0 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_0;
    static constexpr Kind KIND = Kind::PLAIN;
    static constexpr int BYTES = sizeof(block_q5_0), UNITS = 1, TOGETHER = 1, LEAST = 2, OFFSET = 16, MOST = 31;

    static INLINE void unpack(const Rows & rows, int64_t at, Unit * u) {
        Bytes q[4];
        transpose(rows, at + 6, q);
        alignas(64) uint32_t h[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            std::memcpy(h + r, rows.at[r] + at + 2, 4);
        }
        const Bytes bits = *reinterpret_cast<const Bytes *>(h);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            u->w[i] = (i < 4 ? low(q[i]) : high(q[i - 4])) | fifth(bits, i);
        }
        u->d = scales(rows, at);
    }

  private:
    // Bits 4i to 4i+3 of each lane, each as 16 in a byte of its own.
    static INLINE Bytes fifth(Bytes bits, int i) {
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
            transpose32(rows, at + 16, bits);
        }
        for (int j = 0; j < 4; ++j) {
            Bytes q[8];
            transpose32(rows, at + (FIVE ? 48 : 16) + 32 * j, q);
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

// What the four bits of MXFP4 stand for (`kvalues_mxfp4` in ggml-common.h), and 12 more so that none is negative: twice the
// numbers of OCP's E2M1. Its scales are powers of two, so half of what they say.
inline Bytes e2m1(Bytes fours) {
    const __m128i values = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
#if CONCLAVE_ROWS == 16
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), fours);
#else
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), fours);
#endif
}

// 2^(e - 128) of a number in each lane (`ggml_e8m0_to_fp32_half`), as 2^(e / 2 - 64) x 2^(e - e / 2 - 64): the least have
// no exponent of a float's own.
inline Floats e8m0(Bytes e) {
    const auto power = [](Bytes n) { return (Floats) WIDE(slli_epi32)(WIDE(add_epi32)(n, WIDE(set1_epi32)(63)), 23); };
    const Bytes half = WIDE(srli_epi32)(e, 1);
    return WIDE(mul_ps)(power(half), power(WIDE(sub_epi32)(e, half)));
}

struct MXFP4 {
    static constexpr ggml_type ACTIVATIONS = GGML_TYPE_Q8_0;
    static constexpr Kind KIND = Kind::PLAIN;
    static constexpr int BYTES = sizeof(block_mxfp4), UNITS = 1, TOGETHER = 1, LEAST = 2, OFFSET = 12, MOST = 31;

    static INLINE void unpack(const Rows & rows, int64_t at, Unit * u) {
        Bytes q[4];
        transpose(rows, at + 1, q);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            u->w[i] = e2m1(low(q[i]));
            u->w[i + 4] = e2m1(high(q[i]));
        }
        alignas(64) int32_t e[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            e[r] = static_cast<uint8_t>(rows.at[r][at]);
        }
        u->d = e8m0(*reinterpret_cast<const Bytes *>(e));
    }
};

}  // namespace
