// The bias of a linear map: minihra/layers/linear.py has the equation, and cuBLAS computes x W.

#include "common.cuh"

extern "C" __global__ void add_bias(
    REAL* y,        // (N, O)
    const REAL* b,  // (O)
    int N, int O) {
    EACH_WARP(n, N) {
        EACH_LANE(o, O) y[n * O + o] += b[o];
    }
}
