// Score map → score: engine.score.top_k_mean, Eq 8 and 9, for N maps at once: chosen, then scores.
#include "portable.h"

ATAC_FUNCTION bool comes_before(float a, float b) { return a > b || (a != a && b == b); }

// How many magnitudes of the map come before this one; equal ones stand in their own order.
ATAC_FUNCTION int rank_of(const float *map, int patches, int own) {
    float magnitude = fabsf(map[own]);
    int rank = 0;
    for (int patch = 0; patch < patches; patch++) {
        float other = fabsf(map[patch]);
        bool equal = !comes_before(other, magnitude) && !comes_before(magnitude, other);
        rank += comes_before(other, magnitude) || (equal && patch < own);
    }
    return rank;
}

// `score_map` (count, patches) → `kept` (count, K): the K largest magnitudes, the largest first. NaN counts as
// the largest, so that a broken network is heard of.
ATAC_KERNEL chosen(const float *score_map, int count, int patches, int k, float *kept) {
    ATAC_EACH(i, (int64_t)count * patches) {
        int64_t map = i / patches;
        int rank = rank_of(score_map + map * patches, patches, i % patches);
        if (rank < k) kept[map * k + rank] = fabsf(score_map[i]);
    }
}

// The mean of each map's K largest, summed in one order so that equal maps have equal scores.
ATAC_KERNEL scores(const float *kept, int count, int k, double *found) {
    ATAC_EACH(i, count) {
        double sum = 0;
        for (int patch = 0; patch < k; patch++) sum += kept[i * k + patch];
        found[i] = sum / k;
    }
}
