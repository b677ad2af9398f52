// Sums over the rows of a matrix, for the gradients of biases and gains. No atomics, so that the order, and with it the
// bits, are always the same: P slices of the rows are summed on their own, then their sums.

#include "common.cuh"

extern "C" __global__ void column_sums(
    const REAL* a,  // (N, C)
    const REAL* b,  // (N, C)  factors, 0 for none
    REAL* sums,     // (P, C)
    int N, int C, int P) {
    EACH(i, (Index)P * C) {
        const int c = i % C, p = i / C;
        REAL sum = 0;
        for (Index n = (Index)N * p / P; n < (Index)N * (p + 1) / P; n++) sum += a[n * C + c] * (b ? b[n * C + c] : 1);
        sums[i] = sum;
    }
}
