// Layer norm and the norm with running statistics: minihra/layers/norms.py has the equations.
// N frames, C channels.

#include "common.cuh"

// Of x, or of a x + w u, which nobody else asks for: it is never written.
extern "C" __global__ void layer_norm_forward(
    const REAL* x,   // (N, C)
    const REAL* u,   // (N, C)  0 for x alone
    const REAL* g,   // (C)
    const REAL* b,   // (C)  0 for a norm without bias
    REAL* y,         // (N, C)
    REAL* normal,    // (N, C)
    REAL* scale,     // (N)
    int N, int C, REAL a, REAL w, REAL eps) {
    const auto value = [&](Index i) { return u ? a * x[i] + w * u[i] : x[i]; };
    EACH_WARP(n, N) {
        const Index row = n * C;
        REAL sum = 0, squares = 0;
        EACH_LANE(c, C) sum += value(row + c);
        const REAL mean = warp_sum(sum) / C;
        EACH_LANE(c, C) squares += (value(row + c) - mean) * (value(row + c) - mean);
        const REAL s = 1 / sqrt(warp_sum(squares) / C + eps);
        EACH_LANE(c, C) {
            const REAL v = (value(row + c) - mean) * s;
            normal[row + c] = v;
            y[row + c] = v * g[c] + (b ? b[c] : 0);
        }
        if (threadIdx.x % LANES == 0) scale[n] = s;
    }
}

// dx = (dnormal - mean(dnormal) - normal mean(dnormal normal)) scale,  dnormal = dy g
extern "C" __global__ void layer_norm_backward(
    const REAL* dy,      // (N, C)
    const REAL* normal,  // (N, C)
    const REAL* scale,   // (N)
    const REAL* g,       // (C)
    REAL* dx,            // (N, C)
    int N, int C) {
    EACH_WARP(n, N) {
        const Index row = n * C;
        REAL sum = 0, along = 0;
        EACH_LANE(c, C) {
            const REAL dnormal = dy[row + c] * g[c];
            sum += dnormal;
            along += dnormal * normal[row + c];
        }
        const REAL mean = warp_sum(sum) / C, mean_along = warp_sum(along) / C;
        EACH_LANE(c, C) dx[row + c] = (dy[row + c] * g[c] - mean - normal[row + c] * mean_along) * scale[n];
    }
}

extern "C" __global__ void running_norm_forward(
    const REAL* x,     // (N, C)
    const REAL* mean,  // (C)
    const REAL* var,   // (C)
    const REAL* g,     // (C)
    const REAL* b,     // (C)
    REAL* y,           // (N, C)
    REAL* normal,      // (N, C)  0 when the parameters are frozen
    long long N, int C, REAL eps) {
    EACH(i, N * C) {
        const int c = i % C;
        const REAL v = (x[i] - mean[c]) * (1 / sqrt(var[c] + eps));
        if (normal) normal[i] = v;
        y[i] = v * g[c] + b[c];
    }
}

extern "C" __global__ void running_norm_backward(
    const REAL* dy,     // (N, C)
    const REAL* g,      // (C)
    const REAL* scale,  // (C)
    REAL* dx,           // (N, C)
    long long N, int C) {
    EACH(i, N * C) dx[i] = dy[i] * (g[i % C] * scale[i % C]);
}
