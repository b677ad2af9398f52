// The depthwise convolution over time, alone and as the middle of a frozen convolution module:
// minihra/layers/conv.py and minihra/blocks/convolution.py have the equations. B utterances, T frames, C channels, a
// kernel of K frames. A thread computes AT_ONCE neighbouring frames of one channel, so that each frame that it reads
// serves all of them; the threads of a warp have neighbouring channels, and ask together which frames are padding.

#include "common.cuh"

#define AT_ONCE 8

// sums_r += sum_k factor(k) frame(k + r) for k = 0, ..., K-1; fetch(s, frames) reads the frames s, ..., s+AT_ONCE-1.
template <typename Factor, typename Fetch>
__device__ __forceinline__ void slide(int K, Factor factor, Fetch fetch, REAL (&sums)[AT_ONCE]) {
    REAL window[2 * AT_ONCE], w[AT_ONCE];  // all loops over them are unrolled, which makes them registers
    fetch(0, window);
    for (int k = 0; k < K; k += AT_ONCE) {
        fetch(k + AT_ONCE, window + AT_ONCE);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) w[j] = k + j < K ? factor(k + j) : REAL(0);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (k + j < K)  // beyond the kernel, 0 times NaN would be NaN
#pragma unroll
                for (int r = 0; r < AT_ONCE; r++) sums[r] += w[j] * window[j + r];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) window[j] = window[AT_ONCE + j];
    }
}

__device__ __forceinline__ int tiles(int T) { return (T + AT_ONCE - 1) / AT_ONCE; }

// What the n-th warp computes: the frames t, ..., t+AT_ONCE-1 of an utterance, of a channel c for each lane.
struct Place {
    Index utterance;
    int t, c;
    __device__ __forceinline__ Place(Index n, int T, int C) {
        const int groups = (C + LANES - 1) / LANES;
        const Index tile = n / groups;
        utterance = tile / tiles(T);
        t = int(tile % tiles(T)) * AT_ONCE;
        c = int(n % groups) * LANES + threadIdx.x % LANES;
    }
};

#define EACH_PLACE(n, B, T, C) EACH_WARP(n, (Index)(B) * tiles(T) * (((C) + LANES - 1) / LANES))

// Which of the frames t, ..., t+AT_ONCE-1 are there and no padding, a bit each. All lanes ask for the same.
__device__ __forceinline__ unsigned real_frames(const bool* valid, int t, int T) {
    const int lane = threadIdx.x % LANES, mine = t + lane;
    return __ballot_sync(ALL_LANES, lane < AT_ONCE && mine >= 0 && mine < T && valid[mine]);
}

// The frames of a lane's channel of an utterance, if it has one.
struct Channel {
    const REAL* x;
    const bool* valid;
    int T, C;
    bool here;

    // The frames t, ..., t+AT_ONCE-1; padded ones, and those beyond the ends, are 0.
    __device__ __forceinline__ void read(int t, REAL* frames) const {
        const unsigned real = real_frames(valid, t, T);
        const REAL* from = x + (Index)t * C;
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) frames[j] = here && real >> j & 1 ? from[j * C] : 0;
    }
};

// y_t = b + sum_k W_k x_{t+k-left}, or with the kernel turned, sum_k W_{K-1-k} x_{t+k-left}, which the backward is.
extern "C" __global__ void depthwise_conv(
    const REAL* __restrict__ x,      // (B, T, C)
    const bool* __restrict__ valid,  // (B, T)
    const REAL* __restrict__ W,      // (K, C)
    const REAL* __restrict__ b,      // (C)  0 for none
    REAL* __restrict__ y,            // (B, T, C)
    int B, int T, int C, int K, int left, bool turned) {
    EACH_PLACE(n, B, T, C) {
        const Place at(n, T, C);
        const Index row = at.utterance * T;
        const bool here = at.c < C;
        const Channel channel = {x + row * C + at.c, valid + row, T, C, here};
        REAL sums[AT_ONCE] = {};
        slide(
            K, [&](int k) { return here ? W[(turned ? K - 1 - k : k) * C + at.c] : 0; },
            [&](int s, REAL* frames) { channel.read(at.t + s - left, frames); }, sums);
        const REAL bias = b && here ? b[at.c] : 0;
        const unsigned real = real_frames(valid + row, at.t, T);
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++)
            if (here && at.t + r < T) y[(row + at.t + r) * C + at.c] = real >> r & 1 ? sums[r] + bias : 0;
    }
}

// Copies x between frames of zeros, for the gradient of the kernel; padded frames become zeros, too.
extern "C" __global__ void pad_frames(
    const REAL* __restrict__ x,      // (B, T, C)
    const bool* __restrict__ valid,  // (B, T)
    REAL* __restrict__ padded,       // (B, T+K-1, C)
    int B, int T, int C, int K, int left) {
    const int frames = T + K - 1;
    EACH(i, (Index)B * frames * C) {
        const Index n = i / C, row = n / frames * T;
        const int t = int(n % frames) - left;
        padded[i] = t >= 0 && t < T && valid[row + t] ? x[(row + t) * C + i % C] : 0;
    }
}

// The gradients of the kernel, sum_t padded_{t+k} dy_t, and, in place of a K-th frame of it, of the bias, sum_t dy_t:
// for each of P slices of the frames of an utterance. Sums over the slices follow, always in the same order.
extern "C" __global__ void depthwise_conv_slices(
    const REAL* __restrict__ padded,  // (B, T+K-1, C)
    const bool* __restrict__ valid,   // (B, T)
    const REAL* __restrict__ dy,      // (B, T, C)
    REAL* __restrict__ slices,        // (B, P, K+1, C)
    int B, int T, int C, int K, int P) {
    const int frames = T + K - 1;
    EACH_PLACE(n, B * P, K, C) {
        const Place at(n, K, C);  // at.t is a frame of the kernel
        if (at.c >= C) continue;
        const Index row = at.utterance / P * T;
        const int p = at.utterance % P, first = (Index)T * p / P, end = (Index)T * (p + 1) / P;
        const REAL* x = padded + at.utterance / P * frames * C + at.c;
        REAL sums[AT_ONCE] = {}, bias = 0;
        slide(
            end - first,
            [&](int t) {
                const Index above = row + first + t;
                const REAL d = valid[above] ? dy[above * C + at.c] : 0;
                bias += d;
                return d;
            },
            [&](int s, REAL* read) {
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) {
                    const int t = first + at.t + s + j;
                    read[j] = t < frames ? x[(Index)t * C] : 0;
                }
            },
            sums);
        REAL* slice = slices + at.utterance * (K + 1) * C + at.c;
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++)
            if (at.t + r < K) slice[(Index)(at.t + r) * C] = sums[r];
        if (at.t == 0) slice[(Index)K * C] = bias;
    }
}

// Depthwise convolution, norm with running statistics, and swish: a is the norm's output, y = a s(a).
extern "C" __global__ void conv_norm_swish_forward(
    const REAL* __restrict__ x,      // (B, T, C)
    const bool* __restrict__ valid,  // (B, T)
    const REAL* __restrict__ W,      // (K, C)
    const REAL* __restrict__ bias,   // (C)  of the convolution, 0 for none
    const REAL* __restrict__ mean,   // (C)
    const REAL* __restrict__ var,    // (C)
    const REAL* __restrict__ g,      // (C)
    const REAL* __restrict__ b,      // (C)
    REAL* __restrict__ scale,        // (C)  1 / sqrt(var + eps)
    REAL* __restrict__ y,            // (B, T, C)
    REAL* __restrict__ slope,        // (B, T, C)  dy/da
    int B, int T, int C, int K, int left, REAL eps) {
    EACH_PLACE(n, B, T, C) {
        const Place at(n, T, C);
        const int c = at.c;
        const bool here = c < C;
        const Index row = at.utterance * T;
        const Channel channel = {x + row * C + c, valid + row, T, C, here};
        REAL sums[AT_ONCE] = {};
        slide(
            K, [&](int k) { return here ? W[k * C + c] : 0; },
            [&](int s, REAL* frames) { channel.read(at.t + s - left, frames); }, sums);
        const unsigned real = real_frames(valid + row, at.t, T);
        if (!here) continue;
        const REAL m = mean[c], gain = g[c], shift = b[c], conv_shift = bias ? bias[c] : 0;
        const REAL its_scale = 1 / sqrt(var[c] + eps);
        if (at.utterance == 0 && at.t == 0) scale[c] = its_scale;
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const int t = at.t + r;
            if (t < T) {
                const REAL conv = real >> r & 1 ? sums[r] + conv_shift : 0;
                const REAL a = (conv - m) * its_scale * gain + shift, s = sigmoid(a), out = a * s;
                y[(row + t) * C + c] = out;
                slope[(row + t) * C + c] = s + out * (1 - s);
            }
        }
    }
}

extern "C" __global__ void conv_norm_swish_backward(
    const REAL* __restrict__ dy,     // (B, T, C)
    const REAL* __restrict__ slope,  // (B, T, C)
    const bool* __restrict__ valid,  // (B, T)
    const REAL* __restrict__ W,      // (K, C)
    const REAL* __restrict__ g,      // (C)
    const REAL* __restrict__ scale,  // (C)
    REAL* __restrict__ dx,           // (B, T, C)
    int B, int T, int C, int K, int left) {
    EACH_PLACE(n, B, T, C) {
        const Place at(n, T, C);
        const int c = at.c;
        const bool here = c < C;
        const Index row = at.utterance * T;
        REAL sums[AT_ONCE] = {};
        slide(
            K, [&](int k) { return here ? W[(K - 1 - k) * C + c] : 0; },
            [&](int s, REAL* frames) {
                const int t = at.t + s - (K - 1 - left);
                const unsigned real = real_frames(valid + row, t, T);
                const Index from = (row + t) * C + c;
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++)
                    frames[j] = here && real >> j & 1 ? dy[from + j * C] * slope[from + j * C] : 0;
            },
            sums);
        const unsigned real = real_frames(valid + row, at.t, T);
        if (!here) continue;
        const REAL through_norm = g[c] * scale[c];  // the same for all frames, so that it can follow their sum
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++)
            if (at.t + r < T) dx[(row + at.t + r) * C + c] = real >> r & 1 ? sums[r] * through_norm : 0;
    }
}
