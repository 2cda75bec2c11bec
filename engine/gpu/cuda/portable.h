// One source for two compilers: nvcc makes kernels of it, a C++ compiler plain functions that do
// the same work in one thread. The tests compare the latter with engine.view and engine.attention.
//
// A kernel is a loop over independent items (ATAC_EACH). It uses no shared memory and no barrier,
// so the number of blocks and threads changes how fast it is, never what it computes.
#pragma once

#include <math.h>
#include <stdint.h>
#ifndef __CUDACC__
#include <string.h>
#endif

#ifdef __CUDACC__
#define ATAC_FUNCTION static __device__ inline
#define ATAC_KERNEL extern "C" __global__ void
#define ATAC_EACH(item, items)                                                      \
    for (int64_t item = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; item < (items); \
         item += gridDim.x * (int64_t)blockDim.x)
ATAC_FUNCTION void add_one(int32_t *where) { atomicAdd(where, 1); }
// Most values raise nothing: those that read so do not queue.
ATAC_FUNCTION void raise_to(int32_t *where, int32_t value) {
    if (*where < value) atomicMax(where, value);
}
ATAC_FUNCTION int32_t bits_of(float value) { return __float_as_int(value); }
ATAC_FUNCTION float float_of(int32_t bits) { return __int_as_float(bits); }
#else
#define ATAC_FUNCTION static inline
#define ATAC_KERNEL extern "C" void
#define ATAC_EACH(item, items) for (int64_t item = 0; item < (items); item++)
ATAC_FUNCTION void add_one(int32_t *where) { *where += 1; }
ATAC_FUNCTION void raise_to(int32_t *where, int32_t value) { *where = value > *where ? value : *where; }
ATAC_FUNCTION int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
ATAC_FUNCTION float float_of(int32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
#endif

ATAC_FUNCTION int smaller(int a, int b) { return a < b ? a : b; }
ATAC_FUNCTION int larger(int a, int b) { return a > b ? a : b; }
ATAC_FUNCTION int clamped(int value, int low, int high) { return larger(low, smaller(value, high)); }

// A box in pixels, XYXY, half-open: engine.frame.Box.
struct Box {
    int32_t left, top, right, bottom;
};
