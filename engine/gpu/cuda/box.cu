// Attention map → box of the view and of the frame: engine.attention, Algorithm 1.
//
// For N maps at once: peaks, then extents, then boxes.
#include "portable.h"

// engine.attention.CropSpec; `square` is 0 or 1.
struct Crop {
    double omega, gate, padding;
    int32_t min_side, square;
};

// What one map is normalised by. `speaks` is 0 where it says nothing: the box is the whole view.
struct Peak {
    float range;
    int32_t speaks;
};

ATAC_FUNCTION float positive(float value) { return value > 0 ? value : 0; }

// `attention` (count, h, w), patches = h · w → `peaks` (count); `extents` (count) are emptied.
ATAC_KERNEL peaks(const float *attention, int count, int patches, const Crop *crop, Peak *found, Box *extents) {
    ATAC_EACH(i, count) {
        const float *map = attention + i * patches;
        bool finite = true;
        float high = 0;
        for (int patch = 0; patch < patches; patch++) {
            float value = positive(map[patch]);
            finite = finite && map[patch] - map[patch] == 0;
            high = value > high ? value : high;
        }
        found[i].range = high;
        found[i].speaks = finite && high > 0 && (double)high >= crop->gate;
        extents[i] = Box{INT32_MAX, INT32_MAX, -1, -1};
    }
}

// A sample between two patches, pixel centres aligned by area (align_corners=False): first patch,
// second patch, share of the second.
ATAC_FUNCTION void between(int place, int length, int patches, int *first, int *second, float *share) {
    double scale = 1.0 / ((double)length / patches);
    float position = (float)((place + 0.5) * scale - 0.5);
    int patch = (int)floorf(position);
    *share = position - patch;
    if (patch < 0 || patch >= patches - 1) *share = 0;
    *first = clamped(patch, 0, patches - 1);
    *second = smaller(*first + 1, patches - 1);
}

ATAC_FUNCTION float normalised(float value, const Peak *peak) {
    return positive(value) / peak->range;
}

// The normalised map at one pixel of the view, linear between patches.
ATAC_FUNCTION float upsampled(const float *map, int map_h, int map_w, const Peak *peak, int side, int x, int y) {
    int left, right, top, bottom;
    float across, down;
    between(x, side, map_w, &left, &right, &across);
    between(y, side, map_h, &top, &bottom, &down);
    float upper = normalised(map[top * map_w + left], peak) * (1 - across) +
                  normalised(map[top * map_w + right], peak) * across;
    float lower = normalised(map[bottom * map_w + left], peak) * (1 - across) +
                  normalised(map[bottom * map_w + right], peak) * across;
    return upper * (1 - down) + lower * down;
}

// Everything attended, for each map; right and bottom are inclusive here.
ATAC_KERNEL extents(const float *attention, int count, int map_h, int map_w, int side, const Crop *crop,
                    const Peak *peak, Box *found) {
    int64_t pixels = (int64_t)side * side;
    ATAC_EACH(i, count * pixels) {
        int64_t map = i / pixels;
        int x = i % pixels % side, y = i % pixels / side;
        if (!peak[map].speaks) continue;
        if (upsampled(attention + map * map_h * map_w, map_h, map_w, peak + map, side, x, y) >= (float)crop->omega) {
            lower_to(&found[map].left, x);
            lower_to(&found[map].top, y);
            raise_to(&found[map].right, x);
            raise_to(&found[map].bottom, y);
        }
    }
}

// start … stop grown about its centre to `wanted`, shifted to stay inside 0 … length.
ATAC_FUNCTION void widen(int *start, int *stop, int64_t wanted, int length) {
    int64_t own = *stop - *start;
    int64_t size = wanted > own ? wanted : own;
    size = size < length ? size : length;
    int grown = (int)(size - own);
    *start = smaller(larger(0, *start - grown / 2), length - (int)size);
    *stop = *start + (int)size;
}

ATAC_FUNCTION void pad(int *start, int *stop, int length, const Crop *crop) {
    int64_t own = *stop - *start;
    int64_t padded = own + 2 * (int64_t)rint(crop->padding * own);
    widen(start, stop, padded > crop->min_side ? padded : crop->min_side, length);
}

ATAC_FUNCTION Box grown(Box found, int side, const Crop *crop) {
    int left = found.left, top = found.top, right = found.right + 1, bottom = found.bottom + 1;
    if (right <= left) return Box{0, 0, side, side};
    pad(&left, &right, side, crop);
    pad(&top, &bottom, side, crop);
    if (crop->square) {
        int longer = larger(right - left, bottom - top);
        widen(&left, &right, longer, side);
        widen(&top, &bottom, longer, side);
    }
    return Box{left, top, right, bottom};
}

ATAC_FUNCTION int floor_share(int64_t place, int to, int of) { return (int)(place * to / of); }
ATAC_FUNCTION int ceil_share(int64_t place, int to, int of) { return (int)((place * to + of - 1) / of); }

// `found` → `in_view` and `in_frame` (engine.frame.Box.scaled); `zooms` is 0 where pass 2 would
// repeat pass 1.
ATAC_KERNEL boxes(const Box *found, int count, int side, const Crop *crop, int frame_width, int frame_height,
                  Box *in_view, Box *in_frame, int32_t *zooms) {
    ATAC_EACH(i, count) {
        Box box = grown(found[i], side, crop);
        in_view[i] = box;
        in_frame[i] = Box{floor_share(box.left, frame_width, side), floor_share(box.top, frame_height, side),
                          ceil_share(box.right, frame_width, side), ceil_share(box.bottom, frame_height, side)};
        zooms[i] = box.left > 0 || box.top > 0 || box.right < side || box.bottom < side;
    }
}
