// The residual step and dropout: minihra/layers/residual.py and minihra/layers/dropout.py have the equations.

#include "common.cuh"

extern "C" __global__ void residual_forward(
    const REAL* x,  // (N)
    const REAL* u,  // (N)
    REAL* y,        // (N)
    long long N, REAL a, REAL w) {
    EACH_PACK(i, N) {
        const Pack past = load(x + i, N - i), branch = load(u + i, N - i);
        Pack sum;
        for (int k = 0; k < PACK; k++) sum.v[k] = a * past.v[k] + w * branch.v[k];
        store(y + i, N - i, sum);
    }
}

extern "C" __global__ void dropout(
    const REAL* x,     // (N)
    const bool* keep,  // (N)
    REAL* y,           // (N)
    long long N, REAL scale) {
    EACH(i, N) y[i] = x[i] * keep[i] * scale;
}
