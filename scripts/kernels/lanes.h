// Vectors of floats as wide as the processor's registers, in GCC's and Clang's own notation.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

inline vf load(const float * p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float * p, vf v) {
    std::memcpy(p, &v, sizeof v);
}

inline vf all(float x) {
    return vf{} + x;
}

inline vf larger(vf a, vf b) {
    return a > b ? a : b;
}

// exp(x) for x <= 0, to about 2 units in the last place; 0 below -87. Cody-Waite reduction and a polynomial (Cephes expf).
inline vf exponential(vf x) {
    const vf magic = all(12582912.0f);  // 1.5 x 2^23: adding it rounds to a whole number
    const vf shifted = x * 1.44269504f + magic;
    const vf n = shifted - magic;
    const vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const vi power = ((vi) shifted - 0x4B400000 + 127) << 23;
    return x < -87.0f ? vf{} : p * (vf) power;
}

}  // namespace
