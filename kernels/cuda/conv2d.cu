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

// Which row each tap of an output meets, as each lane below nine finds out for one of them.
__device__ __forceinline__ Index met_by_lane(const Spot& at, const bool* valid, int T, int F) {
    const int tap = threadIdx.x % LANES;
    return tap < 9 ? met(at, tap / 3, tap % 3, valid, T, F) : -1;
}

extern "C" __global__ void conv2d_patches(
    const REAL* __restrict__ x,      // (B, T, F, I)
    const bool* __restrict__ valid,  // (B, T)
    REAL* __restrict__ patches,      // (B, T2, F2, 9, I)
    int B, int T, int F, int T2, int F2, int I) {
    EACH_WARP(n, (Index)B * T2 * F2) {
        const Index mine = met_by_lane(spot(n, T2, F2), valid, T, F);
        for (int tap = 0; tap < 9; tap++) {
            const Index from = __shfl_sync(ALL_LANES, mine, tap), to = (n * 9 + tap) * I;
            for (int c = threadIdx.x % LANES * PACK; c < I; c += LANES * PACK)
                store(patches + to + c, I - c, from < 0 ? Pack{} : load(x + from * I + c, I - c));
        }
    }
}

// The patches of a second convolution, of what a first one of a single channel and relu make of the features x. That is
// never written as such: each of its outputs is computed for each of the four or fewer patches in which it stands. Nine
// of them together read 7 x 7 features, which all lanes have in registers.
extern "C" __global__ void first_patches(
    const REAL* __restrict__ x,      // (B, T, F)
    const bool* __restrict__ valid,  // (B, T)
    const REAL* __restrict__ W,      // (9, I)
    const REAL* __restrict__ b,      // (I)
    REAL* __restrict__ patches,      // (B, T4, F4, 9, I)
    int B, int T, int F, int T4, int F4, int I) {
    const int T2 = (T + 1) / 2, F2 = (F + 1) / 2, lane = threadIdx.x % LANES;
    EACH_WARP(n, (Index)B * T4 * F4) {
        const Spot at = spot(n, T4, F4);
        REAL mine[2], window[49];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int s = lane + j * LANES, t = 4 * at.t - 3 + s / 7, f = 4 * at.f - 3 + s % 7;
            const bool inside = s < 49 && t >= 0 && t < T && f >= 0 && f < F;
            mine[j] = inside && valid[at.row * T + t] ? x[(at.row * T + t) * F + f] : 0;
        }
#pragma unroll
        for (int s = 0; s < 49; s++) window[s] = __shfl_sync(ALL_LANES, mine[s / LANES], s % LANES);
        const int t2 = 2 * at.t - 1 + lane / 3, f2 = 2 * at.f - 1 + lane % 3;  // of the lane's tap
        const bool inside = lane < 9 && t2 >= 0 && t2 < T2 && f2 >= 0 && f2 < F2;
        const unsigned there = __ballot_sync(ALL_LANES, inside && valid[at.row * T + 2 * t2]);
        EACH_LANE(c, I) {
            REAL w[9];
#pragma unroll
            for (int k = 0; k < 9; k++) w[k] = W[k * I + c];
            const REAL bias = b[c];
#pragma unroll
            for (int tap = 0; tap < 9; tap++) {
                REAL sum = 0;
#pragma unroll
                for (int k = 0; k < 9; k++) sum += w[k] * window[(2 * (tap / 3) + k / 3) * 7 + 2 * (tap % 3) + k % 3];
                patches[(n * 9 + tap) * I + c] = there >> tap & 1 ? relu(sum + bias) : 0;
            }
        }
    }
}

// y becomes y + b, what is below 0 becomes 0 if it is `bent`, and all does on padded frames.
extern "C" __global__ void conv2d_finish(
    REAL* __restrict__ y,            // (B, T2, F2, O)
    const REAL* __restrict__ b,      // (O)
    const bool* __restrict__ valid,  // (B, T)
    int B, int T, int F, int T2, int F2, int O, bool bent) {
    EACH_WARP(n, (Index)B * T2 * F2) {
        const Spot at = spot(n, T2, F2);
        const bool real = valid[at.row * T + 2 * at.t];
        EACH_LANE(o, O) {
            const REAL v = y[n * O + o] + b[o];
            y[n * O + o] = !real ? 0 : bent ? relu(v) : v;
        }
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
        const Index mine = met_by_lane(at, valid, T, F);
        const REAL only = I == 1 && mine >= 0 ? x[mine] : 0;
        Index from[9];
        REAL value[9];
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            from[tap] = __shfl_sync(ALL_LANES, mine, tap);
            value[tap] = __shfl_sync(ALL_LANES, only, tap);
        }
        EACH_LANE(c, C) {
            REAL sum = 0;
#pragma unroll
            for (int tap = 0; tap < 9; tap++)
                if (from[tap] >= 0) sum += W[tap * C + c] * (I == 1 ? value[tap] : x[from[tap] * I + c]);
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
