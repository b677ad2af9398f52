// Activations, element by element, and the gated linear unit: minihra/layers/activations.py has the equations.
// N elements, or N rows of which a GLU reads 2C elements and gives C.

#include "common.cuh"

extern "C" __global__ void sigmoid_forward(
    const REAL* x,  // (N)
    REAL* y,        // (N)
    long long N) {
    EACH(i, N) y[i] = sigmoid(x[i]);
}

extern "C" __global__ void sigmoid_backward(
    const REAL* dy,  // (N)
    const REAL* y,   // (N)
    REAL* dx,        // (N)
    long long N) {
    EACH(i, N) dx[i] = dy[i] * y[i] * (1 - y[i]);
}

extern "C" __global__ void swish_forward(
    const REAL* x,  // (N)
    REAL* y,        // (N)
    REAL* slope,    // (N)
    long long N) {
    EACH_PACK(i, N) {
        const Pack in = load(x + i, N - i);
        Pack out, bend;
        for (int k = 0; k < PACK; k++) {
            const REAL s = sigmoid(in.v[k]);
            out.v[k] = in.v[k] * s;
            bend.v[k] = s + out.v[k] * (1 - s);
        }
        store(y + i, N - i, out);
        store(slope + i, N - i, bend);
    }
}

extern "C" __global__ void swish_backward(
    const REAL* dy,     // (N)
    const REAL* slope,  // (N)
    REAL* dx,           // (N)
    long long N) {
    EACH_PACK(i, N) {
        const Pack above = load(dy + i, N - i), bend = load(slope + i, N - i);
        Pack below;
        for (int k = 0; k < PACK; k++) below.v[k] = above.v[k] * bend.v[k];
        store(dx + i, N - i, below);
    }
}

extern "C" __global__ void glu_forward(
    const REAL* x,  // (N, 2*C)
    REAL* y,        // (N, C)
    REAL* s,        // (N, C)
    REAL* slope,    // (N, C)
    int N, int C) {
    EACH_WARP(n, N) {
        for (int c = threadIdx.x % LANES * PACK; c < C; c += LANES * PACK) {
            const REAL* a = x + n * 2 * C + c;
            const Pack in = load(a, C - c), gate = load(a + C, C - c);
            Pack out, open, bend;
            for (int k = 0; k < PACK; k++) {
                open.v[k] = sigmoid(gate.v[k]);
                out.v[k] = in.v[k] * open.v[k];
                bend.v[k] = out.v[k] * (1 - open.v[k]);
            }
            store(y + n * C + c, C - c, out);
            store(s + n * C + c, C - c, open);
            store(slope + n * C + c, C - c, bend);
        }
    }
}

extern "C" __global__ void glu_backward(
    const REAL* dy,     // (N, C)
    const REAL* s,      // (N, C)
    const REAL* slope,  // (N, C)
    REAL* dx,           // (N, 2*C)
    int N, int C) {
    EACH_WARP(n, N) {
        for (int c = threadIdx.x % LANES * PACK; c < C; c += LANES * PACK) {
            const Index i = n * C + c;
            const Pack above = load(dy + i, C - c), open = load(s + i, C - c), bend = load(slope + i, C - c);
            Pack da, dg;
            for (int k = 0; k < PACK; k++) {
                da.v[k] = above.v[k] * open.v[k];
                dg.v[k] = above.v[k] * bend.v[k];
            }
            store(dx + n * 2 * C + c, C - c, da);
            store(dx + n * 2 * C + C + c, C - c, dg);
        }
    }
}

extern "C" __global__ void relu_forward(
    const REAL* x,   // (N)
    REAL* y,         // (N)
    bool* positive,  // (N)
    long long N) {
    EACH(i, N) {
        positive[i] = x[i] > 0;
        y[i] = x[i] > 0 || x[i] != x[i] ? x[i] : 0;  // NaN stays
    }
}

extern "C" __global__ void relu_backward(
    const REAL* dy,        // (N)
    const bool* positive,  // (N)
    REAL* dx,              // (N)
    long long N) {
    EACH(i, N) dx[i] = dy[i] * positive[i];
}

extern "C" __global__ void gelu_forward(
    const REAL* x,  // (N)
    REAL* y,        // (N)
    REAL* phi,      // (N)
    long long N) {
    EACH(i, N) {
        const REAL below = REAL(0.5) * (1 + erf(x[i] * REAL(0.70710678118654752440)));  // 1 / sqrt(2)
        phi[i] = below;
        y[i] = x[i] * below;
    }
}

extern "C" __global__ void gelu_backward(
    const REAL* dy,   // (N)
    const REAL* x,    // (N)
    const REAL* phi,  // (N)
    REAL* dx,         // (N)
    long long N) {
    EACH(i, N) {
        const REAL density = exp(REAL(-0.5) * x[i] * x[i]) * REAL(0.39894228040143267794);  // 1 / sqrt(2 pi)
        dx[i] = dy[i] * (phi[i] + x[i] * density);
    }
}
