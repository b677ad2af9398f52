// Rotary positions: minihra/layers/rotary.py has the equation. B batch, T frames, A heads, D their width.

#include "common.cuh"

extern "C" __global__ void turn(
    const REAL* x,       // (B, T, A, D)
    const REAL* cosine,  // (T, D)
    const REAL* sine,    // (T, D)
    REAL* y,             // (B, T, A, D)
    int B, int T, int A, int D, int direction) {  // 1, or -1 for the way back
    EACH_WARP(n, (Index)B * T * A) {
        const Index row = n * D, t = n / A % T;
        EACH_LANE(d, D) {
            // x, turned by a quarter of a circle
            const REAL quarter = d < D / 2 ? -x[row + d + D / 2] : x[row + d - D / 2];
            y[row + d] = x[row + d] * cosine[t * D + d] + direction * quarter * sine[t * D + d];
        }
    }
}
