// The optimiser's step over many leaves at once: AdamW, of which minihra/layers/adamw.py has the equations, clipping by
// the norm over all leaves (minihra/optim.py), and sums of gradients over the layers (minihra/model.py).
//
// Up to 64 leaves come as a table of addresses, by value: it travels with the start of the kernel, so that nothing is
// uploaded. Each leaf is cut into pieces of P elements, and a block takes a piece: a matrix has many blocks at work, and
// a bias one.

#include "common.cuh"

struct Leaves {
    REAL* p[64];
    const REAL* g[64];
    REAL* m[64];
    REAL* v[64];
    double* step[64];
    double decay[64];
    long long size[64];  // in elements
    int first[64];       // piece of the leaf, of all pieces
};

struct Gradients {
    const REAL* g[64];
    REAL* scaled[64];
    long long size[64];
    int first[64];
};

struct Sums {
    REAL* total[64];
    const REAL* other[64];
    long long size[64];
    int first[64];
};

// Which of the n leaves has the piece: the last one that begins at or before it.
template <class Table> __device__ __forceinline__ int leaf_of(const Table& leaves, int piece, int n) {
    int low = 0, high = n;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (leaves.first[middle] <= piece ? low : high) = middle;
    }
    return low;
}

#define EACH_PIECE(piece, pieces) for (int piece = blockIdx.x; piece < (pieces); piece += gridDim.x)
// Over the elements i of a piece of leaf l, as many at once as a thread loads; `left` of them up to the end of the piece.
#define EACH_PACK_OF(i, left, leaves, l, piece, P) \
    for (Index i = (Index)(piece - leaves.first[l]) * P + PACK * threadIdx.x, \
               end = min(leaves.size[l], (Index)(piece - leaves.first[l] + 1) * P), left = end - i; \
         left > 0; i += PACK * blockDim.x, left = end - i)

// Counts the step of each leaf, and writes what depends on it and on the rate, in double precision as in the reference.
extern "C" __global__ void adamw_scales(
    Leaves leaves,
    const double* lr,  // (1)
    REAL* scales,      // (n, 3)
    int n, double beta1, double beta2) {
    EACH(l, n) {
        const double step = *leaves.step[l] += 1;
        scales[3 * l] = *lr / (1 - pow(beta1, step));
        scales[3 * l + 1] = 1 / (1 - pow(beta2, step));
        scales[3 * l + 2] = 1 - *lr * leaves.decay[l];
    }
}

extern "C" __global__ void adamw_leaves(
    Leaves leaves,
    const REAL* scales,  // (n, 3)
    int n, int pieces, int P, REAL beta1, REAL new1, REAL beta2, REAL new2, REAL eps) {
    EACH_PIECE(piece, pieces) {
        const int l = leaf_of(leaves, piece, n);
        const REAL first = scales[3 * l], second = scales[3 * l + 1], shrink = scales[3 * l + 2];
        EACH_PACK_OF(i, left, leaves, l, piece, P) {
            const Pack g = load(leaves.g[l] + i, left);
            Pack p = load(leaves.p[l] + i, left), m = load(leaves.m[l] + i, left), v = load(leaves.v[l] + i, left);
            for (int k = 0; k < PACK; k++) {
                m.v[k] = beta1 * m.v[k] + new1 * g.v[k];
                v.v[k] = beta2 * v.v[k] + new2 * (g.v[k] * g.v[k]);
                p.v[k] = shrink * p.v[k] - first * m.v[k] / (sqrt(v.v[k] * second) + eps);
            }
            store(leaves.m[l] + i, left, m);
            store(leaves.v[l] + i, left, v);
            store(leaves.p[l] + i, left, p);
        }
    }
}

// The sum of what the threads of a block have, in each of them; always in the same order. Whole warps.
__device__ __forceinline__ REAL block_sum(REAL v, REAL* of_warp) {
    const int lane = threadIdx.x % LANES;
    v = warp_sum(v);
    if (lane == 0) of_warp[threadIdx.x / LANES] = v;
    __syncthreads();
    v = warp_sum(lane < blockDim.x / LANES ? of_warp[lane] : 0);
    __syncthreads();  // before of_warp is written again
    return v;
}

extern "C" __global__ void squares_of_pieces(
    Gradients leaves,
    REAL* squares,  // (pieces)
    int n, int pieces, int P) {
    __shared__ REAL of_warp[LANES];
    EACH_PIECE(piece, pieces) {
        const int l = leaf_of(leaves, piece, n);
        REAL sum = 0;
        EACH_PACK_OF(i, left, leaves, l, piece, P) {
            const Pack g = load(leaves.g[l] + i, left);
            for (int k = 0; k < PACK; k++) sum += g.v[k] * g.v[k];
        }
        sum = block_sum(sum, of_warp);
        if (threadIdx.x == 0) squares[piece] = sum;
    }
}

// By one block.
extern "C" __global__ void norm_of_pieces(
    const REAL* squares,  // (pieces)
    REAL* norm,           // (1)
    REAL* scale,          // (1)
    int pieces, REAL limit) {
    __shared__ REAL of_warp[LANES];
    REAL sum = 0;
    for (int piece = threadIdx.x; piece < pieces; piece += blockDim.x) sum += squares[piece];
    sum = sqrt(block_sum(sum, of_warp));
    if (threadIdx.x == 0) {
        *norm = sum;
        *scale = limit / (sum < limit ? limit : sum);  // NaN stays
    }
}

extern "C" __global__ void scale_leaves(
    Gradients leaves,
    const REAL* scale,  // (1)
    int n, int pieces, int P) {
    EACH_PIECE(piece, pieces) {
        const int l = leaf_of(leaves, piece, n);
        EACH_PACK_OF(i, left, leaves, l, piece, P) {
            Pack g = load(leaves.g[l] + i, left);
            for (int k = 0; k < PACK; k++) g.v[k] *= *scale;
            store(leaves.scaled[l] + i, left, g);
        }
    }
}

extern "C" __global__ void add_leaves(
    Sums leaves,
    int n, int pieces, int P) {
    EACH_PIECE(piece, pieces) {
        const int l = leaf_of(leaves, piece, n);
        EACH_PACK_OF(i, left, leaves, l, piece, P) {
            Pack total = load(leaves.total[l] + i, left);
            const Pack other = load(leaves.other[l] + i, left);
            for (int k = 0; k < PACK; k++) total.v[k] += other.v[k];
            store(leaves.total[l] + i, left, total);
        }
    }
}
