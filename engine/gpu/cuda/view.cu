// A view of a frame, as engine.view makes it: box, antialiased resize, CLAHE, uint8 RGB.
//
// Frames are uint8 in C order, (height, width) mono or (height, width, 3) RGB. The order of the
// kernels: [demosaic], [before_resize: lightness, histogram, lookup, equalise], weights, reduce,
// first_step, second_step, [after_resize: lightness, histogram, lookup, equalise; otherwise colour].
// Lightness is for colours: what is mono is its own. The box is read on the device, where pass 1 left it. Compile without contraction of a*b+c
// (nvcc -fmad=false, g++ -ffp-contract=off): the rounding is the CPU's, then.
#include "portable.h"

// ------------------------------------------------------------------------------------ Bayer

ATAC_FUNCTION int at(const uint8_t *raw, int width, int x, int y) { return raw[(int64_t)y * width + x]; }

// The colour at one pixel by the mean of its nearest neighbours of each colour. `red_x`, `red_y`
// are the parities of the red pixels. Border pixels repeat their inner neighbour, as in OpenCV.
ATAC_FUNCTION void colour_at(const uint8_t *raw, int width, int height, int red_x, int red_y, int x, int y,
                             uint8_t *rgb) {
    x = clamped(x, 1, width - 2);
    y = clamped(y, 1, height - 2);
    int own = at(raw, width, x, y);
    int beside = (at(raw, width, x - 1, y) + at(raw, width, x + 1, y) + 1) >> 1;
    int above = (at(raw, width, x, y - 1) + at(raw, width, x, y + 1) + 1) >> 1;
    bool red_column = (x & 1) == red_x, red_row = (y & 1) == red_y;
    if (red_column != red_row) {  // a green pixel
        rgb[0] = red_row ? beside : above;
        rgb[1] = own;
        rgb[2] = red_row ? above : beside;
        return;
    }
    int cross = (at(raw, width, x - 1, y) + at(raw, width, x + 1, y) + at(raw, width, x, y - 1) +
                 at(raw, width, x, y + 1) + 2) >> 2;
    int corners = (at(raw, width, x - 1, y - 1) + at(raw, width, x + 1, y - 1) +
                   at(raw, width, x - 1, y + 1) + at(raw, width, x + 1, y + 1) + 2) >> 2;
    rgb[0] = red_row ? own : corners;
    rgb[1] = cross;
    rgb[2] = red_row ? corners : own;
}

// `raw` (height, width), both at least 3 → `frame` (height, width, 3) RGB.
ATAC_KERNEL demosaic(const uint8_t *raw, int width, int height, int red_x, int red_y, uint8_t *frame) {
    ATAC_EACH(i, (int64_t)width * height) {
        colour_at(raw, width, height, red_x, red_y, i % width, i / width, frame + 3 * i);
    }
}

// ------------------------------------------------------------------------------------ resize

// What the resize reads. `source` is the part of the frame that may be looked at, reduced by whole
// factors to width × height pixels; x0 … y1 is the box within these.
struct ViewPlan {
    Box source;
    int32_t factor_x, factor_y, width, height;
    float x0, y0, x1, y1;
};

ATAC_FUNCTION int whole_factor(int length, int side, double reducing_gap) {
    return reducing_gap > 0 ? larger(1, (int)((double)length / side / reducing_gap)) : 1;
}

// Pillow's Image.resize for one box: reduce by whole steps first where that leaves `reducing_gap`
// times the wanted size; 0 is no reduction. `support` is the filter's, 2 bicubic, 1 bilinear.
// `confined`: pixels outside the box do not reach the filter, as if it had been cut out before.
ATAC_FUNCTION ViewPlan plan_of(Box b, int width, int height, int side, double support, double reducing_gap,
                               int confined) {
    int fx = whole_factor(b.right - b.left, side, reducing_gap);
    int fy = whole_factor(b.bottom - b.top, side, reducing_gap);
    Box source = {0, 0, width, height};
    if (confined) source = b;
    if (fx > 1 || fy > 1) {
        double reach_x = (support - 0.5) * ((double)(b.right - b.left) / side);
        double reach_y = (support - 0.5) * ((double)(b.bottom - b.top) / side);
        source.left = larger(source.left, (int)(b.left - reach_x));
        source.top = larger(source.top, (int)(b.top - reach_y));
        source.right = smaller(source.right, (int)ceil(b.right + reach_x));
        source.bottom = smaller(source.bottom, (int)ceil(b.bottom + reach_y));
    }
    ViewPlan plan;
    plan.source = source;
    plan.factor_x = fx;
    plan.factor_y = fy;
    plan.width = (source.right - source.left + fx - 1) / fx;
    plan.height = (source.bottom - source.top + fy - 1) / fy;
    plan.x0 = (float)((double)(b.left - source.left) / fx);
    plan.y0 = (float)((double)(b.top - source.top) / fy);
    plan.x1 = (float)((double)(b.right - source.left) / fx);
    plan.y1 = (float)((double)(b.bottom - source.top) / fy);
    return plan;
}

ATAC_FUNCTION bool is_reduced(const ViewPlan *plan) { return plan->factor_x > 1 || plan->factor_y > 1; }

// The mean of one block, in Pillow's integers; blocks at the right and lower border may be smaller.
ATAC_FUNCTION uint8_t block_mean(const uint8_t *frame, int width, int channels, const ViewPlan *plan, int x,
                                int y, int channel) {
    int left = plan->source.left + x * plan->factor_x;
    int top = plan->source.top + y * plan->factor_y;
    int right = smaller(left + plan->factor_x, plan->source.right);
    int bottom = smaller(top + plan->factor_y, plan->source.bottom);
    uint32_t count = (right - left) * (bottom - top);
    uint32_t sum = count / 2;
    for (int row = top; row < bottom; row++)
        for (int column = left; column < right; column++)
            sum += frame[((int64_t)row * width + column) * channels + channel];
    return (uint8_t)((sum * (uint32_t)((1u << 24) / count)) >> 24);
}

// `reduced` holds plan->height × plan->width × channels; untouched where nothing is reduced.
ATAC_KERNEL reduce(const uint8_t *frame, int width, int channels, const ViewPlan *plan, uint8_t *reduced) {
    int64_t items = is_reduced(plan) ? (int64_t)plan->width * plan->height * channels : 0;
    ATAC_EACH(i, items) {
        int64_t pixel = i / channels;
        reduced[i] = block_mean(frame, width, channels, plan, pixel % plan->width, pixel / plan->width,
                               i % channels);
    }
}

ATAC_FUNCTION double bicubic(double x) {
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0;
}

ATAC_FUNCTION double tap(double x, int cubic) {
    double linear = 1 - fabs(x);
    return cubic ? bicubic(x) : linear > 0 ? linear : 0;
}

enum { WEIGHT_BITS = 22 };  // 32 − 8 bits of pixel − 2 of head-room for negative lobes

// The first source pixel, the number of taps and their weights × 2²² for one output coordinate.
ATAC_FUNCTION void taps_of(int place, int side, int length, float from, float to, int cubic, int32_t *span,
                           int32_t *weights) {
    double scale = (double)(to - from) / side;
    double stretch = scale < 1 ? 1 : scale;
    double support = (cubic ? 2.0 : 1.0) * stretch;
    double centre = from + (place + 0.5) * scale;
    double shrink = 1.0 / stretch;
    int first = larger(0, (int)(centre - support + 0.5));
    int count = smaller(length, (int)(centre + support + 0.5)) - first;
    double sum = 0;
    for (int i = 0; i < count; i++) sum += tap((i + first - centre + 0.5) * shrink, cubic);
    for (int i = 0; i < count; i++) {
        double weight = tap((i + first - centre + 0.5) * shrink, cubic);
        if (sum != 0) weight /= sum;
        weights[i] = (int32_t)((weight < 0 ? -0.5 : 0.5) + weight * (1 << WEIGHT_BITS));
    }
    span[0] = first;
    span[1] = count;
}

// Columns first, then rows: `spans` (2, side, 2), `table` (2, side, capacity). Each makes the plan for
// itself, and the first one leaves it for the kernels that follow.
ATAC_KERNEL weights(const Box *box, int width, int height, int side, int cubic, double reducing_gap, int confined,
                    int capacity, ViewPlan *kept, int32_t *spans, int32_t *table) {
    ATAC_EACH(i, 2 * side) {
        ViewPlan plan = plan_of(*box, width, height, side, cubic ? 2.0 : 1.0, reducing_gap, confined);
        if (i == 0) *kept = plan;
        bool along_y = i >= side;
        taps_of(i % side, side, along_y ? plan.height : plan.width, along_y ? plan.y0 : plan.x0,
                along_y ? plan.y1 : plan.x1, cubic, spans + 2 * i, table + i * capacity);
    }
}

ATAC_FUNCTION uint8_t weighted(const uint8_t *first, int64_t step, int count, const int32_t *weights) {
    int32_t sum = 1 << (WEIGHT_BITS - 1);
    for (int i = 0; i < count; i++) sum += first[i * step] * weights[i];
    return (uint8_t)clamped(sum >> WEIGHT_BITS, 0, 255);
}

// Along which axis the first of the two steps runs: Pillow 13 takes the rows of tall images first. The
// steps round to 8 bits between them, so the order is seen, by one grey level.
ATAC_FUNCTION bool is_tall(const ViewPlan *plan, int side) {
    return plan->height > side && plan->height - side > 2 * (plan->width - side);
}

// The first source place that any tap of one axis (0: x, 1: y) reads, and how many there are.
ATAC_FUNCTION int first_read(const int32_t *spans, int side, int axis) { return spans[2 * side * axis]; }
ATAC_FUNCTION int count_read(const int32_t *spans, int side, int axis) {
    const int32_t *last = spans + 2 * (side * (axis + 1) - 1);
    return last[0] + last[1] - first_read(spans, side, axis);
}

// One axis resized, for every source place that the second step reads along the other: `halfway`
// (rows, side, channels), or (side, columns, channels) where the rows come first.
ATAC_KERNEL first_step(const uint8_t *frame, int width, int channels, const uint8_t *reduced, const ViewPlan *plan,
                       int side, int capacity, const int32_t *spans, const int32_t *table, uint8_t *halfway) {
    const uint8_t *source = frame + ((int64_t)plan->source.top * width + plan->source.left) * channels;
    int64_t pitch = (int64_t)width * channels;
    if (is_reduced(plan)) {
        source = reduced;
        pitch = (int64_t)plan->width * channels;
    }
    bool tall = is_tall(plan, side);
    int kept = count_read(spans, side, tall ? 0 : 1), skipped = first_read(spans, side, tall ? 0 : 1);
    int across = tall ? kept : side;
    ATAC_EACH(i, (int64_t)kept * side * channels) {
        int channel = i % channels, x = i / channels % across, y = i / channels / across;
        int place = tall ? side + y : x;
        int64_t column = tall ? skipped + x : spans[2 * place], row = tall ? spans[2 * place] : skipped + y;
        halfway[i] = weighted(source + row * pitch + column * channels + channel, tall ? pitch : channels,
                              spans[2 * place + 1], table + (int64_t)place * capacity);
    }
}

// The other axis: `small` (side, side, channels).
ATAC_KERNEL second_step(const uint8_t *halfway, int channels, const ViewPlan *plan, int side, int capacity,
                        const int32_t *spans, const int32_t *table, uint8_t *small) {
    bool tall = is_tall(plan, side);
    int skipped = first_read(spans, side, tall ? 0 : 1);
    int64_t pitch = (int64_t)(tall ? count_read(spans, side, 0) : side) * channels;
    ATAC_EACH(i, (int64_t)side * side * channels) {
        int channel = i % channels, x = i / channels % side, y = i / channels / side;
        int place = tall ? x : side + y;
        int64_t column = tall ? spans[2 * place] - skipped : x, row = tall ? y : spans[2 * place] - skipped;
        small[i] = weighted(halfway + row * pitch + column * channels + channel, tall ? channels : pitch,
                            spans[2 * place + 1], table + (int64_t)place * capacity);
    }
}

// ------------------------------------------------------------------------------------ CIE LAB

// OpenCV's 8-bit LAB in integers. The tables are those of engine.gpu.lab, one after another.
enum {
    GAMMA = 0,
    ROOT = GAMMA + 256,
    LIGHTNESS_Y = ROOT + 3072,
    LIGHTNESS_F = LIGHTNESS_Y + 256,
    CUBE = LIGHTNESS_F + 256,
    CUBE_FIRST = -8145,
    INVERSE = CUBE + 36864
};

ATAC_FUNCTION int rounded(int value, int bits) { return (value + (1 << (bits - 1))) >> bits; }
ATAC_FUNCTION int byte(int value) { return clamped(value, 0, 255); }

ATAC_FUNCTION void lab_of(const uint8_t *rgb, const int32_t *tables, int *lab) {
    int r = tables[GAMMA + rgb[0]], g = tables[GAMMA + rgb[1]], b = tables[GAMMA + rgb[2]];
    int x = tables[ROOT + rounded(1777 * r + 1541 * g + 778 * b, 12)];
    int y = tables[ROOT + rounded(871 * r + 2929 * g + 296 * b, 12)];
    int z = tables[ROOT + rounded(73 * r + 448 * g + 3575 * b, 12)];
    lab[0] = byte(rounded(296 * y - 1336934, 15));
    lab[1] = byte(rounded(500 * (x - y) + (128 << 15), 15));
    lab[2] = byte(rounded(200 * (y - z) + (128 << 15), 15));
}

ATAC_FUNCTION void rgb_of(const int *lab, const int32_t *tables, uint8_t *rgb) {
    int y = tables[LIGHTNESS_Y + lab[0]], f = tables[LIGHTNESS_F + lab[0]];
    // a / 500 and b / 200 in 1/2¹⁴, by multiplication
    int a = ((5 * lab[1] * 53687 + (1 << 7)) >> 13) - (128 << 14) / 500;
    int b = ((lab[2] * 41943 + (1 << 4)) >> 9) - (128 << 14) / 200 + 1;
    int x = tables[CUBE + f + a - CUBE_FIRST], z = tables[CUBE + f - b - CUBE_FIRST];
    int linear[3] = {12615 * x - 6296 * y - 2223 * z, -3773 * x + 7684 * y + 185 * z,
                     217 * x - 836 * y + 4715 * z};
    for (int i = 0; i < 3; i++) rgb[i] = tables[INVERSE + clamped(rounded(linear[i], 14), 0, 4095)];
}

// ------------------------------------------------------------------------------------ CLAHE

// What CLAHE equalises of colours: L of LAB. `pixels` (count, 3) → `plane` (count).
ATAC_KERNEL lightness(const uint8_t *pixels, int64_t count, const int32_t *tables, uint8_t *plane) {
    ATAC_EACH(i, count) {
        int lab[3];
        lab_of(pixels + 3 * i, tables, lab);
        plane[i] = lab[0];
    }
}

// Tiles are equal; where they do not fit, the image is mirrored about its last row and column.
ATAC_FUNCTION int tile_length(int length, int other, int tiles) {
    bool fits = length % tiles == 0 && other % tiles == 0;
    return fits ? length / tiles : (length + tiles - length % tiles) / tiles;
}

ATAC_FUNCTION int mirrored(int place, int length) {
    if (length == 1) return 0;
    while (place < 0 || place >= length) place = place < 0 ? -place : 2 * (length - 1) - place;
    return place;
}

// `histograms` (tiles, tiles, 256), zeroed before.
ATAC_KERNEL histogram(const uint8_t *plane, int width, int height, int tiles, int32_t *histograms) {
    int tile_w = tile_length(width, height, tiles), tile_h = tile_length(height, width, tiles);
    int64_t padded = (int64_t)tile_w * tiles;
    ATAC_EACH(i, padded * tile_h * tiles) {
        int x = i % padded, y = i / padded;
        int value = plane[(int64_t)mirrored(y, height) * width + mirrored(x, width)];
        add_one(histograms + ((int64_t)(y / tile_h) * tiles + x / tile_w) * 256 + value);
    }
}

ATAC_FUNCTION uint8_t level(float value) { return (uint8_t)clamped((int)rintf(value), 0, 255); }

// The grey level of one bin of a tile's clipped histogram. What was clipped goes to all bins, and what is
// left of it to every `step`th bin from the first on.
ATAC_FUNCTION uint8_t level_of(const int32_t *bins, int own, int area, double clip_limit) {
    int limit = larger(1, (int)(clip_limit * area / 256));
    int clipped = 0, sum = 0;
    for (int i = 0; i < 256; i++) {
        clipped += larger(0, bins[i] - limit);
        sum += i <= own ? smaller(bins[i], limit) : 0;
    }
    int rest = clipped % 256;
    sum += (own + 1) * (clipped / 256);
    if (rest) sum += smaller(rest, own / larger(1, 256 / rest) + 1);
    return level(sum * (255.0f / area));
}

// `levels` (tiles, tiles, 256): each sums up its own part of the histogram, so that nobody waits.
ATAC_KERNEL lookup(const int32_t *histograms, int width, int height, int tiles, double clip_limit, uint8_t *levels) {
    int area = tile_length(width, height, tiles) * tile_length(height, width, tiles);
    ATAC_EACH(i, tiles * tiles * 256) {
        levels[i] = level_of(histograms + i / 256 * 256, i % 256, area, clip_limit);
    }
}

// One grey value between the levels of the four nearest tiles.
ATAC_FUNCTION uint8_t equalised(const uint8_t *levels, int tiles, int tile_w, int tile_h, int x, int y, int value) {
    float across = x * (1.0f / tile_w) - 0.5f, down = y * (1.0f / tile_h) - 0.5f;
    int left = (int)floorf(across), top = (int)floorf(down);
    float right_share = across - left, lower_share = down - top;
    int right = smaller(left + 1, tiles - 1), bottom = smaller(top + 1, tiles - 1);
    left = larger(left, 0);
    top = larger(top, 0);
    float upper = levels[(top * tiles + left) * 256 + value] * (1.0f - right_share) +
                  levels[(top * tiles + right) * 256 + value] * right_share;
    float lower = levels[(bottom * tiles + left) * 256 + value] * (1.0f - right_share) +
                  levels[(bottom * tiles + right) * 256 + value] * right_share;
    return level(upper * (1.0f - lower_share) + lower * lower_share);
}

// `pixels` (height, width, channels) with `plane` equalised put in its place; in place is allowed. `shown`:
// mono becomes three channels, as the network takes them.
ATAC_KERNEL equalise(const uint8_t *pixels, int channels, const uint8_t *plane, int width, int height, int tiles,
                     const uint8_t *levels, const int32_t *tables, int shown, uint8_t *result) {
    int tile_w = tile_length(width, height, tiles), tile_h = tile_length(height, width, tiles);
    ATAC_EACH(i, (int64_t)width * height) {
        uint8_t value = equalised(levels, tiles, tile_w, tile_h, i % width, i / width, plane[i]);
        if (channels == 1 && shown) {
            result[3 * i] = result[3 * i + 1] = result[3 * i + 2] = value;
        } else if (channels == 1) {
            result[i] = value;
        } else {
            int lab[3];
            lab_of(pixels + 3 * i, tables, lab);
            lab[0] = value;
            rgb_of(lab, tables, result + 3 * i);
        }
    }
}

// The network takes three channels: RGB as it is, grey repeated.
ATAC_KERNEL colour(const uint8_t *pixels, int channels, int64_t count, uint8_t *rgb) {
    ATAC_EACH(i, 3 * count) { rgb[i] = pixels[channels == 1 ? i / 3 : i]; }
}
