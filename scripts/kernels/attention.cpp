// Flash attention on the CPU for models whose query heads share KV heads, and for batches of candidates that share a prompt.
//
// llama.cpp computes each query row by itself (ggml-cpu/ops.cpp, flash_attn_ext_f16_one_chunk): it converts and reads every
// K and V row again for each head and each token. Here all rows that look at one KV head, the heads of its group times the
// tokens of the batch, are computed together: they stand in the lanes of registers, K and V are converted once for a block
// of cells, and both products are those of small matrices. The softmax is the online one (arxiv.org/abs/2112.05682), a block
// at a time; blocks that nobody may see are passed over.
//
//     for each block of cells:   S = K q x scale + mask;  M' = max(M, S);  P = exp(S - M');
//                                O = O x exp(M - M') + P V;  L = L x exp(M - M') + sum P
//
// Queries stay in 32 bits. Cells that a row may not see never reach its sums, whatever is in them.
// The linker puts this in the place of llama.cpp's function (--wrap, see ../lean.cmake); what it does not take (other types,
// position biases, soft caps, sinks, one token for more threads than KV heads) goes on to llama.cpp's own.

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

extern "C" void __real_ggml_compute_forward_flash_attn_ext(const ggml_compute_params *, ggml_tensor *);

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int GROUPS = 4;   // registers of rows at most
constexpr int CELLS = 32;   // of a block: its K, its scores and the queries fit the first cache
constexpr int MOST = 256;   // values of a head at most

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

const float INF = std::numeric_limits<float>::infinity();

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

// out[i][.] (+)= sum over l of a[i x across + l x along] x b[l][.], i < I, over J registers of lanes.
template <int I, int J>
inline void multiply(float * out, const float * a, int64_t across, int64_t along, const float * b, int64_t length, bool add) {
    constexpr int64_t rows = J * LANES;
    vf sums[I][J];
    for (int i = 0; i < I; ++i) {
        for (int j = 0; j < J; ++j) {
            sums[i][j] = add ? load(out + i * rows + j * LANES) : vf{};
        }
    }
    for (int64_t l = 0; l < length; ++l) {
        vf values[J];
        for (int j = 0; j < J; ++j) {
            values[j] = load(b + l * rows + j * LANES);
        }
        for (int i = 0; i < I; ++i) {
            const vf one = all(a[i * across + l * along]);
            for (int j = 0; j < J; ++j) {
                sums[i][j] += one * values[j];
            }
        }
    }
    for (int i = 0; i < I; ++i) {
        for (int j = 0; j < J; ++j) {
            store(out + i * rows + j * LANES, sums[i][j]);
        }
    }
}

struct Scratch {
    alignas(64) float q[MOST * GROUPS * LANES];          // [value of the head][row]
    alignas(64) float cells[CELLS * MOST];               // K or V: [cell][value]
    alignas(64) float scores[CELLS * GROUPS * LANES];    // [cell][row]
    alignas(64) float mask[CELLS * GROUPS * LANES];      // [cell][row]
    alignas(64) float out[MOST * GROUPS * LANES];        // [value][row]
};

inline void read(const ggml_tensor * tensor, int64_t head, int64_t cell, int64_t count, float * out) {
    const int64_t size = tensor->ne[0];
    for (int64_t c = 0; c < count; ++c) {
        const char * row = static_cast<const char *>(tensor->data) + (cell + c) * tensor->nb[1] + head * tensor->nb[2];
        if (tensor->type == GGML_TYPE_F16) {
            ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(row), out + c * size, size);
        } else {
            ggml_get_type_traits(tensor->type)->to_float(row, out + c * size, size);
        }
    }
}

enum class Sight { NONE, SOME, EVERYTHING };

// What tokens [first, last) may see of a block of cells.
Sight sight(const ggml_tensor * mask, int64_t first, int64_t last, int64_t cell, int64_t count) {
    bool any = false, every = count == CELLS;
    for (int64_t t = first; t < last; ++t) {
        const auto * m = reinterpret_cast<const uint16_t *>(static_cast<const char *>(mask->data) + t * mask->nb[1]) + cell;
        uint16_t bits = 0;
        int seen = 0;
        for (int64_t c = 0; c < count; ++c) {
            bits |= m[c];
            seen |= m[c] != 0xFC00;  // minus infinity
        }
        any |= seen != 0;
        every &= bits == 0;
    }
    return !any ? Sight::NONE : every ? Sight::EVERYTHING : Sight::SOME;
}

// Tokens [first, last) for the query heads of one KV head.
template <int J> void attend(ggml_tensor * dst, int64_t head, int64_t first, int64_t last, Scratch & s) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    const int64_t size = k->ne[0], width = v->ne[0], cells = k->ne[1], group = q->ne[2] / k->ne[2];
    constexpr int64_t rows = J * LANES;
    constexpr int I = J == 1 ? 8 : 4;
    float scale;
    std::memcpy(&scale, dst->op_params, sizeof scale);

    std::memset(s.q, 0, sizeof(float) * size * rows);
    std::memset(s.out, 0, sizeof(float) * width * rows);
    for (int64_t t = first; t < last; ++t) {
        for (int64_t g = 0; g < group; ++g) {
            const char * data = static_cast<const char *>(q->data) + t * q->nb[1] + (head * group + g) * q->nb[2];
            const auto * from = reinterpret_cast<const float *>(data);
            for (int64_t d = 0; d < size; ++d) {
                s.q[d * rows + (t - first) * group + g] = from[d] * scale;
            }
        }
    }
    vf greatest[J], total[J];
    for (int j = 0; j < J; ++j) {
        greatest[j] = all(-INF);
        total[j] = vf{};
    }
    for (int64_t cell = 0; cell < cells; cell += CELLS) {
        const int64_t count = std::min<int64_t>(CELLS, cells - cell);
        const Sight seen = sight(mask, first, last, cell, count);
        if (seen == Sight::NONE) {
            continue;
        }
        if (count < CELLS) {
            std::memset(s.cells, 0, sizeof s.cells);
        }
        read(k, head, cell, count, s.cells);
        for (int c = 0; c < CELLS; c += I) {
            multiply<I, J>(s.scores + c * rows, s.cells + c * size, size, 1, s.q, size, false);
        }
        if (seen == Sight::SOME) {
            for (int64_t c = 0; c < CELLS * rows; ++c) {
                s.mask[c] = -INF;
            }
            for (int64_t t = first; t < last; ++t) {
                const char * data = static_cast<const char *>(mask->data) + t * mask->nb[1];
                float values[CELLS];
                ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(data) + cell, values, count);
                for (int64_t c = 0; c < count; ++c) {
                    std::fill_n(s.mask + c * rows + (t - first) * group, group, values[c]);
                }
            }
            for (int64_t c = 0; c < CELLS * rows; c += LANES) {
                const vf m = load(s.mask + c);
                store(s.scores + c, m == -INF ? all(-INF) : load(s.scores + c) + m);
            }
        }
        for (int j = 0; j < J; ++j) {
            vf best = greatest[j];
            for (int c = 0; c < CELLS; ++c) {
                best = larger(load(s.scores + c * rows + j * LANES), best);
            }
            const vf base = best == -INF ? vf{} : best;  // a row that has seen nothing yet
            const vf shrink = exponential(greatest[j] - base);
            vf sum = vf{};
            for (int c = 0; c < CELLS; ++c) {
                float * at = s.scores + c * rows + j * LANES;
                const vf p = exponential(load(at) - base);
                store(at, p);
                sum += p;
            }
            total[j] = total[j] * shrink + sum;
            bool same = true;
            for (int i = 0; i < LANES; ++i) {
                same &= greatest[j][i] == best[i];
            }
            for (int64_t d = 0; !same && d < width; ++d) {
                float * at = s.out + d * rows + j * LANES;
                store(at, load(at) * shrink);
            }
            greatest[j] = best;
        }
        read(v, head, cell, count, s.cells);
        if (seen == Sight::SOME) {  // zero times what is no number is none either: another's damage must stay another's
            for (int64_t i = 0; i < count * width; ++i) {
                s.cells[i] = s.cells[i] - s.cells[i] == 0.0f ? s.cells[i] : 0.0f;
            }
        }
        for (int64_t d = 0; d < width; d += I) {
            multiply<I, J>(s.out + d * rows, s.cells + d, 1, width, s.scores, CELLS, true);
        }
    }
    for (int64_t t = first; t < last; ++t) {
        for (int64_t g = 0; g < group; ++g) {
            const int64_t row = (t - first) * group + g;
            const float sum = total[row / LANES][row % LANES];
            const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
            char * data = static_cast<char *>(dst->data) + (head * group + g) * dst->nb[1] + t * dst->nb[2];
            for (int64_t d = 0; d < width; ++d) {
                reinterpret_cast<float *>(data)[d] = s.out[d * rows + row] * factor;
            }
        }
    }
}

bool is_kv(const ggml_tensor * t) {
    return (t->type == GGML_TYPE_F16 || t->type == GGML_TYPE_Q8_0) && t->ne[0] % 32 == 0 && t->ne[0] <= MOST && t->ne[3] == 1;
}

bool takes(const ggml_compute_params * params, const ggml_tensor * dst) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    float max_bias, softcap;
    std::memcpy(&max_bias, reinterpret_cast<const float *>(dst->op_params) + 1, sizeof max_bias);
    std::memcpy(&softcap, reinterpret_cast<const float *>(dst->op_params) + 2, sizeof softcap);
    return !params->use_ref && q->type == GGML_TYPE_F32 && q->ne[3] == 1 && is_kv(k) && is_kv(v) && k->ne[2] == v->ne[2] &&
           q->ne[2] % k->ne[2] == 0 && q->ne[2] / k->ne[2] <= GROUPS * LANES && mask && mask->type == GGML_TYPE_F16 &&
           mask->ne[2] == 1 && mask->ne[3] == 1 && !dst->src[4] && max_bias == 0.0f && softcap == 0.0f &&
           // With one token llama.cpp shares the cells out over threads; here threads share KV heads and tokens.
           q->ne[1] * k->ne[2] >= params->nth;
}

}  // namespace

extern "C" void __wrap_ggml_compute_forward_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    if (!takes(params, dst)) {
        return __real_ggml_compute_forward_flash_attn_ext(params, dst);
    }
    static thread_local std::vector<Scratch> scratch(1);
    const ggml_tensor *q = dst->src[0], *k = dst->src[1];
    const int64_t tokens = q->ne[1], heads = k->ne[2], group = q->ne[2] / heads;
    // As many tokens at once as registers hold rows for, but no fewer pieces than threads.
    const int64_t fit = std::max<int64_t>(1, std::min<int64_t>(GROUPS * LANES / group, tokens * heads / params->nth));
    const int64_t parts = (tokens + fit - 1) / fit;
    for (int64_t piece = params->ith; piece < parts * heads; piece += params->nth) {
        const int64_t head = piece % heads, first = piece / heads * fit, last = std::min(first + fit, tokens);
        const int64_t registers = ((last - first) * group + LANES - 1) / LANES;
        switch (registers) {
            case 1: attend<1>(dst, head, first, last, scratch[0]); break;
            case 2: attend<2>(dst, head, first, last, scratch[0]); break;
            case 3: attend<3>(dst, head, first, last, scratch[0]); break;
            default: attend<4>(dst, head, first, last, scratch[0]);
        }
    }
}
