// The strided convolution over time: minihra/layers/conv.py has the equations. B utterances, of T frames of I channels
// and T2 outputs of O; a kernel of K frames. cuBLAS multiplies; what is left is to bring together what each output
// reads, and to give back to each frame what has read it. A warp does what belongs to one frame.

#include "common.cuh"

// The K frames that each output reads; padded ones, and those beyond the ends, are 0.
extern "C" __global__ void conv1d_windows(
    const REAL* __restrict__ x,      // (B, T, I)
    const bool* __restrict__ valid,  // (B, T)
    REAL* __restrict__ windows,      // (B, T2, K, I)
    int B, int T, int T2, int K, int I, int stride, int pad) {
    EACH_WARP(n, (Index)B * T2 * K) {
        const Index b = n / K / T2, t = n / K % T2 * stride + n % K - pad;
        const bool real = t >= 0 && t < T && valid[b * T + t];
        EACH_LANE(c, I) windows[n * I + c] = real ? x[(b * T + t) * I + c] : 0;
    }
}

// y becomes y + b, and 0 on outputs that reach beyond the `frames` of their utterance and its padding, or if it has none.
extern "C" __global__ void conv1d_finish(
    REAL* __restrict__ y,                  // (B, T2, O)
    const REAL* __restrict__ b,            // (O)  0 for none
    const long long* __restrict__ frames,  // (B)
    int B, int T2, int O, int K, int stride, int pad) {
    EACH_WARP(n, (Index)B * T2) {
        const long long its = frames[n / T2], reached = n % T2 * stride + K - 2 * pad;
        const bool real = its > 0 && reached <= its;
        EACH_LANE(o, O) y[n * O + o] = real ? y[n * O + o] + (b ? b[o] : 0) : 0;
    }
}

// dx of a frame, from all windows that hold it.
extern "C" __global__ void conv1d_backward(
    const REAL* __restrict__ dwindows,  // (B, T2, K, I)
    const bool* __restrict__ valid,     // (B, T)
    REAL* __restrict__ dx,              // (B, T, I)
    int B, int T, int T2, int K, int I, int stride, int pad) {
    EACH_WARP(n, (Index)B * T) {
        const Index b = n / T, t = n % T + pad;
        EACH_LANE(c, I) {
            REAL sum = 0;
            for (int k = 0; k < K; k++) {
                const Index from = t - k;
                if (from >= 0 && from % stride == 0 && from / stride < T2)
                    sum += dwindows[((b * T2 + from / stride) * K + k) * I + c];
            }
            dx[n * I + c] = valid[n] ? sum : 0;
        }
    }
}
