// Dropout's mask, drawn as NumPy's generator PCG64 draws it on the host: minihra/layers/dropout.py says of what.
//
//     s = a s + c  (mod 2^128)                      the state, from word to word
//     word = (high(s) xor low(s)) rotated right by the uppermost 6 bits of s
//     number = upper 24 bits of a half of the word / 2^24         the lower half first
//
// O'Neill 2014, PCG: a family of simple fast space-efficient statistically good algorithms for random number generation,
// "XSL RR" of 128 bits. Several steps at once are one step with another a and c (Brown 1994, Random number generation with
// arbitrary strides), so that each thread begins at a word of its own.

#include "common.cuh"

// a and c of 2^k steps for k < 32, and at 32 of as many steps as there are threads.
struct Strides {
    unsigned long long a_high[33];
    unsigned long long a_low[33];
    unsigned long long c_high[33];
    unsigned long long c_low[33];
};

struct State { unsigned long long high, low; };

__device__ __forceinline__ State stepped(State s, const Strides& by, int k) {
    State next = {by.a_high[k] * s.low + by.a_low[k] * s.high + __umul64hi(by.a_low[k], s.low), by.a_low[k] * s.low};
    next.low += by.c_low[k];
    next.high += by.c_high[k] + (next.low < by.c_low[k]);
    return next;
}

__device__ __forceinline__ unsigned long long word_of(State s) {
    const unsigned long long mixed = s.high ^ s.low;
    const int by = s.high >> 58;
    return mixed >> by | mixed << (-by & 63);
}

__device__ __forceinline__ bool kept(unsigned half, REAL rate) { return (half >> 8) * REAL(1.0 / (1 << 24)) >= rate; }

// Of N elements the first ones, `left` (0 or 1), have the half of a word that was left from before; W words follow.
extern "C" __global__ void draw_keep(
    Strides strides,
    bool* keep,  // (N)
    long long N, long long W, unsigned long long high, unsigned long long low, int left, unsigned long long half,
    REAL rate) {
    const Index first = blockIdx.x * (Index)blockDim.x + threadIdx.x, threads = (Index)gridDim.x * blockDim.x;
    if (first == 0 && left) keep[0] = kept(half, rate);
    State s = {high, low};
    for (int k = 0; (first + 1) >> k; k++)
        if ((first + 1) >> k & 1) s = stepped(s, strides, k);
    for (Index w = first; w < W; w += threads) {
        const unsigned long long word = word_of(s);
        const Index i = left + 2 * w;
        keep[i] = kept(word, rate);
        if (i + 1 < N) keep[i + 1] = kept(word >> 32, rate);
        s = stepped(s, strides, 32);
    }
}
