// What choosing a token needs to know of a row of logits, read twice and not six times: for vocabularies of 100,000 tokens
// and more this is what choosing costs. node/engine/llamacpp/scan.py calls it, and does the same in NumPy where it is not
// built in.

#include "lanes.h"

#include <limits>

// `maxima[i]`: of the values i, i + width, i + 2 width …, for the whole multiples of `width`, which is at least 1. Answers
// with the id of the greatest value, of equals the first; `total` is the sum of exp(value - greatest), no number if one of
// the values is none.
extern "C" __attribute__((visibility("default"))) int64_t conclave_scan(const float * values, int64_t count, int64_t width,
                                                                         float * maxima, double * total) {
    const int64_t whole = count / width * width;
    std::memcpy(maxima, values, sizeof(float) * width);
    for (int64_t at = width; at < whole; at += width) {
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            const vf a = load(values + at + i), b = load(maxima + i);
            store(maxima + i, larger(a, b));
        }
        for (; i < width; ++i) {
            maxima[i] = values[at + i] > maxima[i] ? values[at + i] : maxima[i];
        }
    }
    float greatest = -std::numeric_limits<float>::infinity();
    int64_t first = count - 1;
    for (int64_t i = 0; i < width; ++i) {
        greatest = maxima[i] > greatest ? maxima[i] : greatest;
    }
    for (int64_t i = 0; i < width; ++i) {
        for (int64_t at = i; maxima[i] == greatest && at < first; at += width) {
            if (values[at] == greatest) {
                first = at;
            }
        }
    }
    for (int64_t i = whole; i < count; ++i) {
        if (values[i] > greatest) {
            greatest = values[i];
            first = i;
        }
    }
    *total = 0.0;
    for (int64_t from = 0; from < count; from += 64 * LANES) {
        const int64_t end = from + 64 * LANES < count ? from + 64 * LANES : count;
        vf sums = {};
        int64_t i = from;
        for (; i + LANES <= end; i += LANES) {
            sums += exponential(load(values + i) - greatest);
        }
        float rest[LANES];
        for (int j = 0; j < LANES; ++j) {
            rest[j] = i + j < end ? values[i + j] - greatest : -100.0f;
        }
        sums += exponential(load(rest));
        for (int j = 0; j < LANES; ++j) {
            *total += sums[j];
        }
    }
    return first;
}

// The ids, ascending, of values that are at least `bound`; says how many.
extern "C" __attribute__((visibility("default"))) int64_t conclave_at_least(const float * values, int64_t count, float bound,
                                                                             int64_t * ids) {
    int64_t found = 0, i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        vi any = {};
        for (int j = 0; j < 4; ++j) {
            any |= load(values + i + j * LANES) >= bound;
        }
        int32_t bits[LANES], some = 0;
        std::memcpy(bits, &any, sizeof bits);
        for (int j = 0; j < LANES; ++j) {
            some |= bits[j];
        }
        for (int j = 0; some && j < 4 * LANES; ++j) {
            if (values[i + j] >= bound) {
                ids[found++] = i + j;
            }
        }
    }
    for (; i < count; ++i) {
        if (values[i] >= bound) {
            ids[found++] = i;
        }
    }
    return found;
}
