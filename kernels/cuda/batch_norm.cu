// Batch norm with the statistics of the batch: minihra/layers/norms.py has the equations. N = B*T frames, of which the
// valid ones count, C channels. Sums over frames are made in P slices, which are then added up, always in one order.

#include "common.cuh"

extern "C" __global__ void frame_sums(
    const REAL* x,      // (N, C)
    const bool* valid,  // (N)
    REAL* sums,         // (P, C)
    int N, int C, int P) {
    EACH(i, (Index)P * C) {
        const int c = i % C, p = i / C;
        REAL sum = 0;
        for (Index n = (Index)N * p / P; n < (Index)N * (p + 1) / P; n++)
            if (valid[n]) sum += x[n * C + c];
        sums[i] = sum;
    }
}

extern "C" __global__ void square_sums(
    const REAL* x,      // (N, C)
    const bool* valid,  // (N)
    const REAL* mean,   // (C)
    REAL* sums,         // (P, C)  of (x - mean)^2
    int N, int C, int P) {
    EACH(i, (Index)P * C) {
        const int c = i % C, p = i / C;
        REAL sum = 0;
        for (Index n = (Index)N * p / P; n < (Index)N * (p + 1) / P; n++) {
            const REAL centred = x[n * C + c] - mean[c];
            if (valid[n]) sum += centred * centred;
        }
        sums[i] = sum;
    }
}

// The scale of each channel and the new running statistics.
extern "C" __global__ void batch_statistics(
    const REAL* n,         // ()  valid frames of the whole batch
    const REAL* mean,      // (C)
    const REAL* squares,   // (C)
    const REAL* old_mean,  // (C)
    const REAL* old_var,   // (C)
    REAL* scale,           // (C)
    REAL* new_mean,        // (C)
    REAL* new_var,         // (C)
    int C, REAL eps, REAL momentum) {
    EACH(c, C) {
        const REAL frames = n[0] > 1 ? n[0] : 1, others = n[0] > 2 ? n[0] - 1 : 1;
        const REAL var = squares[c] / frames, unbiased = var * frames / others;
        const REAL weight = n[0] > 0 ? momentum : 0;
        scale[c] = 1 / sqrt(var + eps);
        new_mean[c] = old_mean[c] + weight * (mean[c] - old_mean[c]);
        new_var[c] = old_var[c] + weight * (unbiased - old_var[c]);
    }
}

extern "C" __global__ void batch_norm_forward(
    const REAL* x,      // (N, C)
    const bool* valid,  // (N)
    const REAL* mean,   // (C)
    const REAL* scale,  // (C)
    const REAL* g,      // (C)
    const REAL* b,      // (C)
    REAL* y,            // (N, C)
    REAL* normal,       // (N, C)
    int N, int C) {
    EACH_WARP(n, N) {
        EACH_LANE(c, C) {
            const Index i = n * C + c;
            const REAL v = (x[i] - mean[c]) * scale[c];
            normal[i] = valid[n] ? v : 0;
            y[i] = valid[n] ? v * g[c] + b[c] : 0;
        }
    }
}

extern "C" __global__ void batch_norm_gradient_sums(
    const REAL* dy,      // (N, C)
    const REAL* normal,  // (N, C)
    const bool* valid,   // (N)
    REAL* sums,          // (P, 2, C)  of dy normal and of dy
    int N, int C, int P) {
    EACH(i, (Index)P * C) {
        const int c = i % C, p = i / C;
        REAL dg = 0, db = 0;
        for (Index n = (Index)N * p / P; n < (Index)N * (p + 1) / P; n++)
            if (valid[n]) {
                dg += dy[n * C + c] * normal[n * C + c];
                db += dy[n * C + c];
            }
        sums[(Index)2 * p * C + c] = dg;
        sums[(Index)(2 * p + 1) * C + c] = db;
    }
}

// dx = g (dy - (db + normal dg) / frames) scale, with dg and db of the whole batch
extern "C" __global__ void batch_norm_backward(
    const REAL* dy,      // (N, C)
    const REAL* normal,  // (N, C)
    const bool* valid,   // (N)
    const REAL* frames,  // ()
    const REAL* scale,   // (C)
    const REAL* g,       // (C)
    const REAL* dg,      // (C)
    const REAL* db,      // (C)
    REAL* dx,            // (N, C)
    int N, int C) {
    EACH_WARP(n, N) {
        EACH_LANE(c, C) {
            const Index i = n * C + c;
            const REAL through_statistics = (db[c] + normal[i] * dg[c]) / frames[0];
            dx[i] = valid[n] ? g[c] * (dy[i] - through_statistics) * scale[c] : 0;
        }
    }
}
