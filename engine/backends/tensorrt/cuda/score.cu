// Score map → score: engine.score.top_k_mean, Eq 8 and 9, for N maps at once: chosen, then scores.
#include "portable.h"

ATAC_FUNCTION bool comes_before(float a, float b) { return a > b || (a != a && b == b); }

// How many magnitudes of the map come before this one; equal ones stand in their own order.
ATAC_FUNCTION int rank_of(const float *map, int cells, int own) {
    float magnitude = fabsf(map[own]);
    int rank = 0;
    for (int cell = 0; cell < cells; cell++) {
        float other = fabsf(map[cell]);
        bool equal = !comes_before(other, magnitude) && !comes_before(magnitude, other);
        rank += comes_before(other, magnitude) || (equal && cell < own);
    }
    return rank;
}

// `score_map` (count, cells): the magnitudes of the K largest stay, all others become 0. NaN counts
// as the largest, so that a broken network is heard of.
ATAC_KERNEL chosen(const float *score_map, int count, int cells, int k, float *kept) {
    ATAC_EACH(i, (int64_t)count * cells) {
        const float *map = score_map + i / cells * cells;
        kept[i] = rank_of(map, cells, i % cells) < k ? fabsf(score_map[i]) : 0;
    }
}

// The mean of each map's K largest, summed in one order so that equal maps have equal scores.
ATAC_KERNEL scores(const float *kept, int count, int cells, int k, double *found) {
    ATAC_EACH(i, count) {
        double sum = 0;
        for (int cell = 0; cell < cells; cell++) sum += kept[i * cells + cell];
        found[i] = sum / k;
    }
}
