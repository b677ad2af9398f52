// What every kernel is compiled with. -DREAL=float or -DREAL=double says what a number is.
#ifndef REAL
#define REAL float
#endif

typedef long long Index;  // of an element: an array may have more than 2^31

#define ALL_LANES 0xffffffffu
#define LANES 32

// Loops that any number of blocks may share: over elements, a thread each, and over rows, a warp each.
#define EACH(i, n) \
    for (Index i = blockIdx.x * (Index)blockDim.x + threadIdx.x; i < (n); i += (Index)gridDim.x * blockDim.x)
#define EACH_WARP(n, N) \
    for (Index n = (blockIdx.x * (Index)blockDim.x + threadIdx.x) / LANES; n < (N); \
         n += (Index)gridDim.x * blockDim.x / LANES)
#define EACH_LANE(c, C) for (int c = threadIdx.x % LANES; c < (C); c += LANES)

// A warp's row of C numbers, of which each lane reads every LANES-th once, up to KEPT of them, into registers; those of a
// longer row are read again each time. Read(c) is the number in column c, and f(c, number) what is done with each. Where
// a number is dear to compute, a row STOPS behind its last one; else it is faster to begin all reads at once.
#define KEPT 16

template <class Number, bool STOPS, class Read> struct Row {
    Number kept[KEPT];
    int C;
    Read read;

    __device__ __forceinline__ Row(int C, Read read) : C(C), read(read) {
        const int lane = threadIdx.x % LANES;
#pragma unroll
        for (int j = 0; j < KEPT; j++) {
            if (STOPS && j * LANES >= C) break;
            kept[j] = lane + j * LANES < C ? read(lane + j * LANES) : Number{};
        }
    }

    template <class F> __device__ __forceinline__ void each(F f) {
        const int lane = threadIdx.x % LANES;
#pragma unroll
        for (int j = 0; j < KEPT; j++) {
            if (STOPS && j * LANES >= C) break;
            if (lane + j * LANES < C) f(lane + j * LANES, kept[j]);
        }
        for (int c = lane + KEPT * LANES; c < C; c += LANES) {
            Number again = read(c);
            f(c, again);
        }
    }
};

template <class Number, bool STOPS, class Read>
__device__ __forceinline__ Row<Number, STOPS, Read> row_of(int C, Read read) {
    return Row<Number, STOPS, Read>(C, read);
}

// The sum or the largest of what the lanes of a warp have, in each of them. The order of the sum is always the same.
__device__ __forceinline__ REAL warp_sum(REAL v) {
    for (int step = LANES / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

__device__ __forceinline__ REAL warp_max(REAL v) {
    for (int step = LANES / 2; step > 0; step /= 2) {
        const REAL other = __shfl_xor_sync(ALL_LANES, v, step);
        v = other > v || other != other ? other : v;  // NaN stays
    }
    return v;
}

__device__ __forceinline__ REAL sigmoid(REAL x) { return REAL(0.5) * (1 + tanh(REAL(0.5) * x)); }
__device__ __forceinline__ REAL relu(REAL x) { return x > 0 || x != x ? x : 0; }  // NaN stays

// Neighbouring numbers that are loaded and stored together: 16 bytes, where an address allows and there are so many.
struct __align__(16) Pack { REAL v[16 / sizeof(REAL)]; };
#define PACK (int)(sizeof(Pack) / sizeof(REAL))
#define EACH_PACK(i, n) \
    for (Index i = PACK * (blockIdx.x * (Index)blockDim.x + threadIdx.x); i < (n); \
         i += PACK * (Index)gridDim.x * blockDim.x)

__device__ __forceinline__ Pack load(const REAL* x, Index number) {
    if (number >= PACK && (size_t)x % sizeof(Pack) == 0) return *(const Pack*)x;
    Pack pack = {};
    for (int k = 0; k < PACK; k++)
        if (k < number) pack.v[k] = x[k];
    return pack;
}

__device__ __forceinline__ void store(REAL* y, Index number, const Pack& pack) {
    if (number >= PACK && (size_t)y % sizeof(Pack) == 0) {
        *(Pack*)y = pack;
    } else {
        for (int k = 0; k < PACK; k++)
            if (k < number) y[k] = pack.v[k];
    }
}
