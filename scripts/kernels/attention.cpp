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
// Blocks of which few tokens see much (those of topics that share nothing, and where candidates write in turns) would be
// computed for all rows in vain: there each token by itself gathers the cells that it sees, and what it saw in both ways is
// put together at the end.
//
// Queries stay in 32 bits. Cells that a row may not see never reach its sums, whatever is in them.
// The linker puts this in the place of llama.cpp's function (--wrap, see ../lean.cmake); what it does not take (other types,
// position biases, soft caps, sinks, one token for more threads than KV heads) goes on to llama.cpp's own.

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "lanes.h"
#include "ops.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

extern "C" void __real_ggml_compute_forward_flash_attn_ext(const ggml_compute_params *, ggml_tensor *);

namespace {

constexpr int GROUPS = 4;   // registers of rows at most
constexpr int CELLS = 32;   // of a block: its K, its scores and the queries fit the first cache
constexpr int MOST = 256;   // values of a head at most

const float INF = std::numeric_limits<float>::infinity();

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

// Queries that look at one KV head, in the lanes of registers, and what they have seen so far: [value][row].
struct Rows {
    alignas(64) float q[MOST * GROUPS * LANES];
    alignas(64) float out[MOST * GROUPS * LANES];
    vf greatest[GROUPS], total[GROUPS];
};

struct Scratch {
    Rows together, alone;
    alignas(64) float cells[CELLS * MOST];               // K or V: [cell][value]
    alignas(64) float scores[CELLS * GROUPS * LANES];    // [cell][row]
    alignas(64) float mask[CELLS * GROUPS * LANES];      // [cell][row]
    std::vector<uint8_t> seen;                           // cells that a token sees of a block: [block][token]
    std::vector<bool> apart;                             // blocks that each token looks at by itself
};

inline int64_t registers(int64_t rows) {
    return (rows + LANES - 1) / LANES;
}

inline const uint16_t * mask_of(const ggml_tensor * mask, int64_t token) {
    return reinterpret_cast<const uint16_t *>(static_cast<const char *>(mask->data) + token * mask->nb[1]);
}

// A multiple of 32 values from 16 bits. (A call to ggml's own for each cell costs more than the conversion.)
inline void widen(const ggml_fp16_t * from, float * out, int64_t count) {
#if defined(__AVX512F__)
    for (int64_t i = 0; i < count; i += 16) {
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + i))));
    }
#elif defined(__F16C__)
    for (int64_t i = 0; i < count; i += 8) {
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i))));
    }
#else
    ggml_cpu_fp16_to_fp32(from, out, count);
#endif
}

inline void read(const ggml_tensor * tensor, int64_t head, int64_t cell, float * out) {
    const char * row = static_cast<const char *>(tensor->data) + cell * tensor->nb[1] + head * tensor->nb[2];
    if (tensor->type == GGML_TYPE_F16) {
        widen(reinterpret_cast<const ggml_fp16_t *>(row), out, tensor->ne[0]);
    } else {
        ggml_get_type_traits(tensor->type)->to_float(row, out, tensor->ne[0]);
    }
}

inline void read(const ggml_tensor * tensor, int64_t head, int64_t cell, int64_t count, float * out) {
    for (int64_t c = 0; c < count; ++c) {
        read(tensor, head, cell + c, out + c * tensor->ne[0]);
    }
}

enum class Sight { NONE, SOME, EVERYTHING };

// What tokens [first, last) may see of a block of cells; how many cells each of them sees goes to `seen`.
Sight sight(const ggml_tensor * mask, int64_t first, int64_t last, int64_t cell, int64_t count, uint8_t * seen, int * sum) {
    bool every = count == CELLS;
    *sum = 0;
    for (int64_t t = first; t < last; ++t) {
        const uint16_t * m = mask_of(mask, t) + cell;
        uint16_t bits = 0, hidden = 0;
        for (int64_t c = 0; c < count; ++c) {
            bits |= m[c];
            hidden += m[c] == 0xFC00;  // minus infinity
        }
        seen[t - first] = static_cast<uint8_t>(count - hidden);
        *sum += seen[t - first];
        every &= bits == 0;
    }
    return !*sum ? Sight::NONE : every ? Sight::EVERYTHING : Sight::SOME;
}

template <int J> void begin(const ggml_tensor * dst, int64_t head, int64_t first, int64_t last, Rows & r) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2];
    const int64_t size = k->ne[0], group = q->ne[2] / k->ne[2];
    constexpr int64_t rows = J * LANES;
    float scale;
    std::memcpy(&scale, dst->op_params, sizeof scale);
    std::memset(r.q, 0, sizeof(float) * size * rows);
    std::memset(r.out, 0, sizeof(float) * v->ne[0] * rows);
    for (int64_t t = first; t < last; ++t) {
        for (int64_t g = 0; g < group; ++g) {
            const char * data = static_cast<const char *>(q->data) + t * q->nb[1] + (head * group + g) * q->nb[2];
            const auto * from = reinterpret_cast<const float *>(data);
            for (int64_t d = 0; d < size; ++d) {
                r.q[d * rows + (t - first) * group + g] = from[d] * scale;
            }
        }
    }
    for (int j = 0; j < J; ++j) {
        r.greatest[j] = all(-INF);
        r.total[j] = vf{};
    }
}

// The scores of `count` cells, of which the scratch has K. A multiple of 8 cells.
template <int J> inline void score(const Rows & r, Scratch & s, int64_t size, int64_t count) {
    constexpr int I = J == 1 ? 8 : 4;
    for (int64_t c = 0; c < count; c += I) {
        multiply<I, J>(s.scores + c * J * LANES, s.cells + c * size, size, 1, r.q, size, false);
    }
}

// Scores to weights; what was seen before shrinks with them.
template <int J> inline void weigh(Rows & r, Scratch & s, int64_t width, int64_t count) {
    constexpr int64_t rows = J * LANES;
    for (int j = 0; j < J; ++j) {
        vf best = r.greatest[j];
        for (int64_t c = 0; c < count; ++c) {
            best = larger(load(s.scores + c * rows + j * LANES), best);
        }
        const vf base = best == -INF ? vf{} : best;  // a row that has seen nothing yet
        const vf shrink = exponential(r.greatest[j] - base);
        vf sum = vf{};
        for (int64_t c = 0; c < count; ++c) {
            float * at = s.scores + c * rows + j * LANES;
            const vf p = exponential(load(at) - base);
            store(at, p);
            sum += p;
        }
        r.total[j] = r.total[j] * shrink + sum;
        bool same = true;
        for (int i = 0; i < LANES; ++i) {
            same &= r.greatest[j][i] == best[i];
        }
        for (int64_t d = 0; !same && d < width; ++d) {
            float * at = r.out + d * rows + j * LANES;
            store(at, load(at) * shrink);
        }
        r.greatest[j] = best;
    }
}

// Add the cells by their weights. The scratch has V.
template <int J> inline void add(Rows & r, const Scratch & s, int64_t width, int64_t count) {
    constexpr int I = J == 1 ? 8 : 4;
    for (int64_t d = 0; d < width; d += I) {
        multiply<I, J>(r.out + d * J * LANES, s.cells + d, 1, width, s.scores, count, true);
    }
}

// A block of cells, for all rows at once.
template <int J>
void look(const ggml_tensor * dst, int64_t head, int64_t first, int64_t last, int64_t cell, int64_t count, Sight seen,
          Scratch & s) {
    const ggml_tensor *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    const int64_t size = k->ne[0], width = v->ne[0], group = dst->src[0]->ne[2] / k->ne[2];
    constexpr int64_t rows = J * LANES;
    if (count < CELLS) {
        std::memset(s.cells, 0, sizeof s.cells);
    }
    read(k, head, cell, count, s.cells);
    score<J>(s.together, s, size, CELLS);
    if (seen == Sight::SOME) {
        for (int64_t c = 0; c < CELLS * rows; ++c) {
            s.mask[c] = -INF;
        }
        for (int64_t t = first; t < last; ++t) {
            float values[CELLS];
            ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(mask_of(mask, t)) + cell, values, count);
            for (int64_t c = 0; c < count; ++c) {
                std::fill_n(s.mask + c * rows + (t - first) * group, group, values[c]);
            }
        }
        for (int64_t c = 0; c < CELLS * rows; c += LANES) {
            const vf m = load(s.mask + c);
            store(s.scores + c, m == -INF ? all(-INF) : load(s.scores + c) + m);
        }
    }
    weigh<J>(s.together, s, width, CELLS);
    read(v, head, cell, count, s.cells);
    if (seen == Sight::SOME) {  // zero times what is no number is none either: another's damage must stay another's
        for (int64_t i = 0; i < count * width; ++i) {
            s.cells[i] = s.cells[i] - s.cells[i] == 0.0f ? s.cells[i] : 0.0f;
        }
    }
    add<J>(s.together, s, width, CELLS);
}

// Cells from anywhere, for the rows of one token that sees them all.
template <int K>
void look_alone(const ggml_tensor * dst, int64_t head, const int64_t * cells, const float * mask, int64_t count, Scratch & s) {
    const ggml_tensor *k = dst->src[1], *v = dst->src[2];
    const int64_t size = k->ne[0], width = v->ne[0], padded = (count + 7) / 8 * 8;
    for (int64_t c = 0; c < count; ++c) {
        read(k, head, cells[c], s.cells + c * size);
    }
    std::memset(s.cells + count * size, 0, sizeof(float) * (padded - count) * size);
    score<K>(s.alone, s, size, padded);
    for (int64_t c = 0; c < padded; ++c) {
        for (int64_t i = 0; i < K * LANES; i += LANES) {
            float * at = s.scores + c * K * LANES + i;
            store(at, c < count ? load(at) + mask[c] : all(-INF));
        }
    }
    weigh<K>(s.alone, s, width, padded);
    for (int64_t c = 0; c < count; ++c) {
        read(v, head, cells[c], s.cells + c * width);
    }
    std::memset(s.cells + count * width, 0, sizeof(float) * (padded - count) * width);
    add<K>(s.alone, s, width, padded);
}

// What one token sees in the blocks that each looks at by itself. Says whether it was anything.
template <int K> bool apart(const ggml_tensor * dst, int64_t head, int64_t first, int64_t last, int64_t token, Scratch & s) {
    const int64_t tokens = last - first;
    const uint16_t * m = mask_of(dst->src[3], token);
    int64_t cells[CELLS], count = 0;
    float mask[CELLS];
    bool any = false;
    for (size_t block = 0; block < s.apart.size(); ++block) {
        const int64_t seen = s.apart[block] ? s.seen[block * tokens + token - first] : 0;
        int64_t cell = static_cast<int64_t>(block) * CELLS;
        for (int64_t left = seen; left; ++cell) {
            if (m[cell] == 0xFC00) {
                continue;
            }
            --left;
            cells[count] = cell;
            mask[count++] = m[cell] ? ggml_fp16_to_fp32(m[cell]) : 0.0f;
            if (count == CELLS) {
                if (!any) {
                    begin<K>(dst, head, token, token + 1, s.alone);
                }
                look_alone<K>(dst, head, cells, mask, count, s);
                any = true;
                count = 0;
            }
        }
    }
    if (count) {
        if (!any) {
            begin<K>(dst, head, token, token + 1, s.alone);
        }
        look_alone<K>(dst, head, cells, mask, count, s);
    }
    return any || count;
}

bool apart(const ggml_tensor * dst, int64_t head, int64_t first, int64_t last, int64_t token, int64_t group, Scratch & s) {
    switch (registers(group)) {
        case 1: return apart<1>(dst, head, first, last, token, s);
        case 2: return apart<2>(dst, head, first, last, token, s);
        case 3: return apart<3>(dst, head, first, last, token, s);
        default: return apart<4>(dst, head, first, last, token, s);
    }
}

// Tokens [first, last) for the query heads of one KV head.
template <int J> void attend(ggml_tensor * dst, int64_t head, int64_t first, int64_t last, Scratch & s) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    const int64_t width = v->ne[0], cells = k->ne[1], group = q->ne[2] / k->ne[2], tokens = last - first;
    constexpr int64_t rows = J * LANES;
    const int64_t blocks = (cells + CELLS - 1) / CELLS, alone = registers(group);
    s.seen.resize(blocks * tokens);
    s.apart.assign(blocks, false);
    bool any = false;
    begin<J>(dst, head, first, last, s.together);
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t cell = block * CELLS, count = std::min<int64_t>(CELLS, cells - cell);
        int sum;
        const Sight seen = sight(mask, first, last, cell, count, &s.seen[block * tokens], &sum);
        // To read a cell costs about a quarter of what it costs to compute with it for a register of rows.
        if (seen == Sight::SOME && sum * (4 * alone + 1) < CELLS * (4 * J + 1)) {
            s.apart[block] = any = true;
        } else if (seen != Sight::NONE) {
            look<J>(dst, head, first, last, cell, count, seen, s);
        }
    }
    const int64_t step = registers(group) * LANES;
    for (int64_t t = first; t < last; ++t) {
        const bool merge = any && apart(dst, head, first, last, t, group, s);
        for (int64_t g = 0; g < group; ++g) {
            const int64_t row = (t - first) * group + g;
            float sum = s.together.total[row / LANES][row % LANES], here = 1.0f, there = 0.0f;
            if (merge) {
                const float a = s.together.greatest[row / LANES][row % LANES], b = s.alone.greatest[g / LANES][g % LANES];
                here = a < b ? std::exp(a - b) : 1.0f;
                there = b < a ? std::exp(b - a) : 1.0f;
                sum = sum * here + s.alone.total[g / LANES][g % LANES] * there;
            }
            const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
            char * data = static_cast<char *>(dst->data) + (head * group + g) * dst->nb[1] + t * dst->nb[2];
            for (int64_t d = 0; d < width; ++d) {
                const float seen = s.together.out[d * rows + row];
                reinterpret_cast<float *>(data)[d] =
                    (merge ? seen * here + s.alone.out[d * step + g] * there : seen) * factor;
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
        switch (registers((last - first) * group)) {
            case 1: attend<1>(dst, head, first, last, scratch[0]); break;
            case 2: attend<2>(dst, head, first, last, scratch[0]); break;
            case 3: attend<3>(dst, head, first, last, scratch[0]); break;
            default: attend<4>(dst, head, first, last, scratch[0]);
        }
    }
}
