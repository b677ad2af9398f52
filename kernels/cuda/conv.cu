// The depthwise convolution over time, alone and as the middle of a frozen convolution module:
// minihra/layers/conv.py and minihra/blocks/convolution.py have the equations. B utterances, T frames, C channels, a
// kernel of K frames. A thread computes AT_ONCE neighbouring frames of one channel, so that each frame that it reads
// serves all of them.

#include "common.cuh"

#define AT_ONCE 8

// sums_r += sum_k factor(k) frame(k + r) for k = 0, ..., K-1
template <typename Factor, typename Frame>
__device__ __forceinline__ void slide(int K, Factor factor, Frame frame, REAL (&sums)[AT_ONCE]) {
    REAL window[2 * AT_ONCE - 1], w[AT_ONCE];  // all loops over them are unrolled, which makes them registers
#pragma unroll
    for (int j = 0; j < AT_ONCE - 1; j++) window[j] = frame(j);
    for (int k = 0; k < K; k += AT_ONCE) {
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {  // on their way together
            window[AT_ONCE - 1 + j] = frame(k + AT_ONCE - 1 + j);
            w[j] = k + j < K ? factor(k + j) : REAL(0);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (k + j < K)  // beyond the kernel, 0 times NaN would be NaN
#pragma unroll
                for (int r = 0; r < AT_ONCE; r++) sums[r] += w[j] * window[j + r];
#pragma unroll
        for (int j = 0; j < AT_ONCE - 1; j++) window[j] = window[AT_ONCE + j];
    }
}

// The frames of one channel of an utterance; padded ones, and those beyond its ends, are 0.
struct Channel {
    const REAL* x;
    const bool* valid;
    int T, C;
    __device__ __forceinline__ REAL operator()(int t) const {
        if (t < 0 || t >= T) return 0;
        const REAL v = x[(Index)t * C];
        return valid[t] ? v : 0;
    }
};

// What the i-th thread computes: the frames t, ..., t+AT_ONCE-1 of channel c of an utterance.
struct Place {
    Index utterance;
    int t, c;
};

__device__ __forceinline__ int tiles(int T) { return (T + AT_ONCE - 1) / AT_ONCE; }

__device__ __forceinline__ Place place_of(Index i, int T, int C) {
    const Index tile = i / C;
    return {tile / tiles(T), int(tile % tiles(T)) * AT_ONCE, int(i % C)};
}

// y_t = b + sum_k W_k x_{t+k-left}, or with the kernel turned, sum_k W_{K-1-k} x_{t+k-left}, which the backward is.
extern "C" __global__ void depthwise_conv(
    const REAL* __restrict__ x,      // (B, T, C)
    const bool* __restrict__ valid,  // (B, T)
    const REAL* __restrict__ W,      // (K, C)
    const REAL* __restrict__ b,      // (C)  0 for none
    REAL* __restrict__ y,            // (B, T, C)
    int B, int T, int C, int K, int left, bool turned) {
    EACH(i, (Index)B * tiles(T) * C) {
        const Place at = place_of(i, T, C);
        const Index row = at.utterance * T;
        const Channel channel = {x + row * C + at.c, valid + row, T, C};
        REAL sums[AT_ONCE] = {};
        slide(
            K, [&](int k) { return W[(turned ? K - 1 - k : k) * C + at.c]; },
            [&](int s) { return channel(at.t + s - left); }, sums);
        const REAL bias = b ? b[at.c] : 0;
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const int t = at.t + r;
            if (t < T) y[(row + t) * C + at.c] = valid[row + t] ? sums[r] + bias : 0;
        }
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
        const Channel channel = {x + row * C + i % C, valid + row, T, C};
        padded[i] = channel(int(n % frames) - left);
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
    EACH(i, (Index)B * P * tiles(K) * C) {
        const Place at = place_of(i, K, C);  // at.t is a frame of the kernel
        const Index row = at.utterance / P * T;
        const int p = at.utterance % P, first = (Index)T * p / P, end = (Index)T * (p + 1) / P;
        const Channel above = {dy + row * C + at.c, valid + row, T, C};
        const REAL* x = padded + at.utterance / P * frames * C + at.c;
        REAL sums[AT_ONCE] = {}, bias = 0;
        slide(
            end - first,
            [&](int t) {
                const REAL d = above(first + t);
                bias += d;
                return d;
            },
            [&](int s) {
                const int t = first + at.t + s;
                return t < frames ? x[(Index)t * C] : 0;
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
    EACH(i, (Index)B * tiles(T) * C) {
        const Place at = place_of(i, T, C);
        const int c = at.c;
        const Index row = at.utterance * T;
        const Channel channel = {x + row * C + c, valid + row, T, C};
        REAL sums[AT_ONCE] = {};
        slide(K, [&](int k) { return W[k * C + c]; }, [&](int s) { return channel(at.t + s - left); }, sums);
        const REAL m = mean[c], gain = g[c], shift = b[c], conv_shift = bias ? bias[c] : 0;
        const REAL its_scale = 1 / sqrt(var[c] + eps);
        if (i < C) scale[c] = its_scale;
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const int t = at.t + r;
            if (t < T) {
                const REAL conv = valid[row + t] ? sums[r] + conv_shift : 0;
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
    EACH(i, (Index)B * tiles(T) * C) {
        const Place at = place_of(i, T, C);
        const int c = at.c;
        const Index row = at.utterance * T;
        const Channel above = {dy + row * C + c, valid + row, T, C}, bend = {slope + row * C + c, valid + row, T, C};
        const auto frame = [&](int s) {
            const int t = at.t + s - (K - 1 - left);
            return above(t) * bend(t);
        };
        REAL sums[AT_ONCE] = {};
        slide(K, [&](int k) { return W[(K - 1 - k) * C + c]; }, frame, sums);
        const REAL through_norm = g[c] * scale[c];  // the same for all frames, so that it can follow their sum
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const int t = at.t + r;
            if (t < T) dx[(row + t) * C + c] = valid[row + t] ? sums[r] * through_norm : 0;
        }
    }
}
