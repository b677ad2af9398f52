// Log-mel features: minihra/layers/log_mel.py has the equations. A block takes a frame from the samples to its features
// in shared memory. The n = n_fft samples of a frame are taken as M = n/2 complex numbers z_k = x_2k + i x_{2k+1}, whose
// transform Z gives that of the real ones (Cooley, Lewis and Welch 1970):
//
//     X_k = (Z_k + conj Z_{M-k}) / 2 - i w^k (Z_k - conj Z_{M-k}) / 2     w = exp(-2 pi i / n), k = 0 ... M, Z_M = Z_0

#include "common.cuh"

struct __align__(2 * sizeof(REAL)) Complex { REAL re, im; };  // read and written at once

#define EACH_THREAD(i, n) for (int i = threadIdx.x; i < (n); i += blockDim.x)

__device__ __forceinline__ Complex product(Complex a, Complex b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// The powers of w, and between which bins the filter of each mel bin is not 0: triangles are 0 nearly everywhere.
extern "C" __global__ void log_mel_tables(
    const REAL* filters,  // (M+1, F)
    REAL* powers,         // (M+1, 2)
    int* bands,           // (F, 2)  the first bin, and the one behind the last
    int M, int F) {
    EACH(k, M + 1) {
        const double angle = 3.14159265358979323846 * k / M;
        powers[2 * k] = cos(angle);
        powers[2 * k + 1] = -sin(angle);
    }
    EACH_WARP(f, F) {
        REAL from_end = 0, end = 0;
        EACH_LANE(k, M + 1) {
            if (filters[(Index)k * F + f] == 0) continue;
            from_end = max(from_end, REAL(M + 1 - k));
            end = k + 1;
        }
        from_end = warp_max(from_end), end = warp_max(end);
        if (threadIdx.x % LANES == 0) bands[2 * f] = M + 1 - (int)from_end, bands[2 * f + 1] = (int)end;
    }
}

extern "C" __global__ void log_mel_forward(
    const REAL* samples,  // (B, n)
    const REAL* window,   // (W)
    const REAL* filters,  // (M+1, F)
    const REAL* powers,   // (M+1, 2)
    const int* bands,     // (F, 2)
    REAL* mel,            // (B, T, F)
    REAL* y,              // (B, T, F)
    int B, int T, int n, int W, int hop, int M, int F, REAL lowest) {
    extern __shared__ REAL memory[];  // (4 M)
    Complex *z = (Complex*)memory, *next = z + M;
    const Complex* w = (const Complex*)powers;
    for (Index frame = blockIdx.x; frame < (Index)B * T; frame += gridDim.x) {
        const REAL* x = samples + frame / T * n + frame % T * hop;
        EACH_THREAD(k, M) {
            z[k] = {2 * k < W ? x[2 * k] * window[2 * k] : 0, 2 * k + 1 < W ? x[2 * k + 1] * window[2 * k + 1] : 0};
        }
        __syncthreads();

        // Stockham's transform: from the transforms of length p to those of 2p, in their natural order.
        for (int p = 1; p < M; p *= 2) {
            EACH_THREAD(i, M / 2) {
                const int k = i & (p - 1);
                const Complex a = z[i], b = product(z[i + M / 2], w[k * (M / p)]);
                next[2 * i - k] = {a.re + b.re, a.im + b.im};
                next[2 * i - k + p] = {a.re - b.re, a.im - b.im};
            }
            __syncthreads();
            Complex* swap = z;
            z = next, next = swap;
        }

        REAL* power = (REAL*)next;  // (M+1) <= 2 M
        EACH_THREAD(k, M + 1) {
            const Complex a = z[k % M], b = z[(M - k) % M];
            const Complex odd = product({a.im + b.im, b.re - a.re}, w[k]);  // -i (a - conj b) w^k
            const Complex one = {(a.re + b.re + odd.re) / 2, (a.im - b.im + odd.im) / 2};
            power[k] = one.re * one.re + one.im * one.im;
        }
        __syncthreads();
        EACH_THREAD(f, F) {
            REAL sum = 0;
            for (int k = bands[2 * f]; k < bands[2 * f + 1]; k++) sum += power[k] * filters[(Index)k * F + f];
            mel[frame * F + f] = sum;
            y[frame * F + f] = log(sum < lowest ? lowest : sum);  // NaN stays
        }
    }
}
