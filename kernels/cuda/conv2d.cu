// Convolutions over time and frequency, 3x3 with a stride of 2: minihra/layers/conv2d.py has the equations.
// B utterances, T frames of F frequencies become T2 = ceil(T/2) of F2 = ceil(F/2); I channels become O, or each of C
// stays on its own. A warp does what belongs to one frame and frequency, each lane some of the channels.

#include "common.cuh"

// Of the n-th frame and frequency: the row of its utterance in a mask, the frame and the frequency.
struct Spot {
    Index row;
    int t, f;
};

__device__ __forceinline__ Spot spot(Index n, int T, int F) { return {n / F / T, int(n / F % T), int(n % F)}; }

// Which row of x (B T F, I) the tap (i, j) of an output meets; -1 for a padded frame and beyond the borders.
__device__ __forceinline__ Index met(const Spot& at, int i, int j, const bool* valid, int T, int F) {
    const int t = 2 * at.t + i - 1, f = 2 * at.f + j - 1;
    const bool inside = t >= 0 && t < T && f >= 0 && f < F;
    return inside && valid[at.row * T + t] ? (at.row * T + t) * F + f : -1;
}

// Which row of the outputs (B T2 F2, O) has met a frame and frequency with its tap (i, j); -1 for none.
__device__ __forceinline__ Index met_by(const Spot& at, int i, int j, const bool* valid, int T, int T2, int F2) {
    const int t = at.t + 1 - i, f = at.f + 1 - j;  // 2 t2 and 2 f2
    const bool inside = t >= 0 && f >= 0 && t % 2 == 0 && f % 2 == 0 && t < 2 * T2 && f < 2 * F2;
    return inside && valid[at.row * T + t] ? (at.row * T2 + t / 2) * F2 + f / 2 : -1;
}

extern "C" __global__ void conv2d_patches(
    const REAL* __restrict__ x,      // (B, T, F, I)
    const bool* __restrict__ valid,  // (B, T)
    REAL* __restrict__ patches,      // (B, T2, F2, 9, I)
    int B, int T, int F, int T2, int F2, int I) {
    EACH_WARP(n, (Index)B * T2 * F2 * 9) {
        const int tap = n % 9;
        const Index from = met(spot(n / 9, T2, F2), tap / 3, tap % 3, valid, T, F);
        for (int c = threadIdx.x % LANES * PACK; c < I; c += LANES * PACK)
            store(patches + n * I + c, I - c, from < 0 ? Pack{} : load(x + from * I + c, I - c));
    }
}

// y becomes y + b, and 0 on padded frames.
extern "C" __global__ void conv2d_finish(
    REAL* __restrict__ y,            // (B, T2, F2, O)
    const REAL* __restrict__ b,      // (O)
    const bool* __restrict__ valid,  // (B, T)
    int B, int T, int F, int T2, int F2, int O) {
    EACH_WARP(n, (Index)B * T2 * F2) {
        const Spot at = spot(n, T2, F2);
        const bool real = valid[at.row * T + 2 * at.t];
        EACH_LANE(o, O) y[n * O + o] = real ? y[n * O + o] + b[o] : 0;
    }
}

// dx from the gradient of what the taps of all outputs have met.
extern "C" __global__ void conv2d_backward(
    const REAL* __restrict__ dpatches,  // (B, T2, F2, 9, I)
    const bool* __restrict__ valid,     // (B, T)
    REAL* __restrict__ dx,              // (B, T, F, I)
    int B, int T, int F, int T2, int F2, int I) {
    EACH_WARP(n, (Index)B * T * F) {
        const Spot at = spot(n, T, F);
        const bool real = valid[at.row * T + at.t];
        EACH_LANE(c, I) {
            REAL sum = 0;
            for (int tap = 0; tap < 9; tap++) {
                const Index by = met_by(at, tap / 3, tap % 3, valid, T, T2, F2);
                if (by >= 0) sum += dpatches[(by * 9 + tap) * I + c];
            }
            dx[n * I + c] = real ? sum : 0;
        }
    }
}

extern "C" __global__ void hide_frames(
    const REAL* __restrict__ dy,     // (B, T2, F2, O)
    const bool* __restrict__ valid,  // (B, T)
    REAL* __restrict__ rows,         // (B, T2, F2, O)
    int B, int T, int F, int T2, int F2, int O) {
    EACH_WARP(n, (Index)B * T2 * F2) {
        const Spot at = spot(n, T2, F2);
        const bool real = valid[at.row * T + 2 * at.t];
        EACH_LANE(o, O) rows[n * O + o] = real ? dy[n * O + o] : 0;
    }
}

// Each channel on its own, I = C; or the only one for all of them, I = 1.
extern "C" __global__ void depthwise_conv2d_forward(
    const REAL* __restrict__ x,      // (B, T, F, I)
    const bool* __restrict__ valid,  // (B, T)
    const REAL* __restrict__ W,      // (3, 3, C)
    const REAL* __restrict__ b,      // (C)
    REAL* __restrict__ y,            // (B, T2, F2, C)
    int B, int T, int F, int T2, int F2, int I, int C) {
    EACH_WARP(n, (Index)B * T2 * F2) {
        const Spot at = spot(n, T2, F2);
        const bool real = valid[at.row * T + 2 * at.t];
        EACH_LANE(c, C) {
            REAL sum = 0;
#pragma unroll
            for (int tap = 0; tap < 9; tap++) {
                const Index from = met(at, tap / 3, tap % 3, valid, T, F);
                if (from >= 0) sum += W[tap * C + c] * x[from * I + (I == 1 ? 0 : c)];
            }
            y[n * C + c] = real ? sum + b[c] : 0;
        }
    }
}

extern "C" __global__ void depthwise_conv2d_backward(
    const REAL* __restrict__ dy,     // (B, T2, F2, C)
    const bool* __restrict__ valid,  // (B, T)
    const REAL* __restrict__ W,      // (3, 3, C)
    REAL* __restrict__ dx,           // (B, T, F, C)
    int B, int T, int F, int T2, int F2, int C) {
    EACH_WARP(n, (Index)B * T * F) {
        const Spot at = spot(n, T, F);
        const bool real = valid[at.row * T + at.t];
        EACH_LANE(c, C) {
            REAL sum = 0;
#pragma unroll
            for (int tap = 0; tap < 9; tap++) {
                const Index by = met_by(at, tap / 3, tap % 3, valid, T, T2, F2);
                if (by >= 0) sum += W[tap * C + c] * dy[by * C + c];
            }
            dx[n * C + c] = real ? sum : 0;
        }
    }
}

// The gradients of the kernel and, in place of a tenth tap, of the bias, for each of P slices of the outputs. Sums over
// the slices follow, always in the same order.
extern "C" __global__ void depthwise_conv2d_slices(
    const REAL* __restrict__ x,      // (B, T, F, I)
    const bool* __restrict__ valid,  // (B, T)
    const REAL* __restrict__ dy,     // (B, T2, F2, C)
    REAL* __restrict__ slices,       // (P, 10, C)
    int B, int T, int F, int T2, int F2, int I, int C, int P) {
    const Index N = (Index)B * T2 * F2;
    EACH(i, (Index)P * C) {
        const int c = i % C, p = i / C;
        REAL sums[10] = {};
        for (Index n = N * p / P; n < N * (p + 1) / P; n++) {
            const Spot at = spot(n, T2, F2);
            if (!valid[at.row * T + 2 * at.t]) continue;
            const REAL d = dy[n * C + c];
#pragma unroll
            for (int tap = 0; tap < 9; tap++) {
                const Index from = met(at, tap / 3, tap % 3, valid, T, F);
                if (from >= 0) sums[tap] += d * x[from * I + (I == 1 ? 0 : c)];
            }
            sums[9] += d;
        }
#pragma unroll
        for (int tap = 0; tap < 10; tap++) slices[((Index)p * 10 + tap) * C + c] = sums[tap];
    }
}
