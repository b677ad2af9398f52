// Layer norm and the norm with running statistics: minihra/layers/norms.py has the equations.
// N frames, C channels.

#include "common.cuh"

// Of x, or of a x + w u, which nobody else asks for: it is never written.
extern "C" __global__ void layer_norm_forward(
    const REAL* __restrict__ x,  // (N, C)
    const REAL* __restrict__ u,  // (N, C)  0 for x alone
    const REAL* __restrict__ g,  // (C)
    const REAL* __restrict__ b,  // (C)  0 for a norm without bias
    REAL* __restrict__ y,        // (N, C)
    REAL* __restrict__ normal,   // (N, C)
    REAL* __restrict__ scale,    // (N)
    int N, int C, REAL a, REAL w, REAL eps) {
    EACH_WARP(n, N) {
        const Index at = n * C;
        auto row = row_of<REAL, false>(C, [=](int c) { return u ? a * x[at + c] + w * u[at + c] : x[at + c]; });
        REAL sum = 0, squares = 0;
        row.each([&](int, REAL v) { sum += v; });
        const REAL mean = warp_sum(sum) / C;
        row.each([&](int, REAL v) { squares += (v - mean) * (v - mean); });
        const REAL s = 1 / sqrt(warp_sum(squares) / C + eps);
        row.each([&](int c, REAL v) {
            const REAL its_normal = (v - mean) * s;
            normal[at + c] = its_normal;
            y[at + c] = its_normal * g[c] + (b ? b[c] : 0);
        });
        if (threadIdx.x % LANES == 0) scale[n] = s;
    }
}

struct Both { REAL dnormal, normal; };

// dx = (dnormal - mean(dnormal) - normal mean(dnormal normal)) scale,  dnormal = dy g
extern "C" __global__ void layer_norm_backward(
    const REAL* __restrict__ dy,      // (N, C)
    const REAL* __restrict__ normal,  // (N, C)
    const REAL* __restrict__ scale,   // (N)
    const REAL* __restrict__ g,       // (C)
    REAL* __restrict__ dx,            // (N, C)
    int N, int C) {
    EACH_WARP(n, N) {
        const Index at = n * C;
        auto row = row_of<Both, false>(C, [=](int c) { return Both{dy[at + c] * g[c], normal[at + c]}; });
        REAL sum = 0, along = 0;
        row.each([&](int, Both v) {
            sum += v.dnormal;
            along += v.dnormal * v.normal;
        });
        const REAL mean = warp_sum(sum) / C, mean_along = warp_sum(along) / C, s = scale[n];
        row.each([&](int c, Both v) { dx[at + c] = (v.dnormal - mean - v.normal * mean_along) * s; });
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
