// Attention map → box of the view and of the frame: engine.attention, Algorithm 1.
//
// For N maps at once: peaks, then extents, then boxes. `found` and `extents` are zero before.
#include "portable.h"

// engine.attention.CropSpec; `square` is 0 or 1.
struct Crop {
    double omega, gate, padding;
    int32_t min_side, square;
};

// What one map is normalised by: the bits of its maximum, which order as the maximum does, since it is
// not negative; `broken` where a value is not finite.
struct Peak {
    int32_t bits, broken;
};

// How far what is attended reaches, from the right, from below, from the left, from above; 0 where nothing is.
struct Extent {
    int32_t left, top, right, bottom;
};

ATAC_FUNCTION float positive(float value) { return value > 0 ? value : 0; }

// `attention` (count, h, w), patches = h · w → `found` (count).
ATAC_KERNEL peaks(const float *attention, int count, int patches, Peak *found) {
    ATAC_EACH(i, (int64_t)count * patches) {
        float value = attention[i];
        if (value - value == 0)
            raise_to(&found[i / patches].bits, bits_of(positive(value)));
        else
            raise_to(&found[i / patches].broken, 1);
    }
}

ATAC_FUNCTION float range_of(const Peak *peak) { return float_of(peak->bits); }

// Whether the map says anything; where it does not, the box is the whole view.
ATAC_FUNCTION bool speaks(const Peak *peak, const Crop *crop) {
    float high = range_of(peak);
    return !peak->broken && high > 0 && (double)high >= crop->gate;
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
    return positive(value) / range_of(peak);
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

// Everything attended, for each map.
ATAC_KERNEL extents(const float *attention, int count, int map_h, int map_w, int side, const Crop *crop,
                    const Peak *peak, Extent *found) {
    int64_t pixels = (int64_t)side * side;
    ATAC_EACH(i, count * pixels) {
        int64_t map = i / pixels;
        int x = i % pixels % side, y = i % pixels / side;
        if (!speaks(peak + map, crop)) continue;
        if (upsampled(attention + map * map_h * map_w, map_h, map_w, peak + map, side, x, y) >= (float)crop->omega) {
            raise_to(&found[map].left, side - x);
            raise_to(&found[map].top, side - y);
            raise_to(&found[map].right, x + 1);
            raise_to(&found[map].bottom, y + 1);
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

ATAC_FUNCTION Box grown(Extent found, int side, const Crop *crop) {
    int left = side - found.left, top = side - found.top, right = found.right, bottom = found.bottom;
    if (right == 0) return Box{0, 0, side, side};
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

// `found` → `in_view` and `in_frame` (engine.frame.Box.scaled), each in its frame's `whole`; `zooms` is 0
// where pass 2 would repeat pass 1.
ATAC_KERNEL boxes(const Extent *found, int count, int side, const Crop *crop, const Box *whole, Box *in_view,
                  Box *in_frame, int32_t *zooms) {
    ATAC_EACH(i, count) {
        Box box = grown(found[i], side, crop);
        int width = whole[i].right, height = whole[i].bottom;
        in_view[i] = box;
        in_frame[i] = Box{floor_share(box.left, width, side), floor_share(box.top, height, side),
                          ceil_share(box.right, width, side), ceil_share(box.bottom, height, side)};
        zooms[i] = box.left > 0 || box.top > 0 || box.right < side || box.bottom < side;
    }
}
