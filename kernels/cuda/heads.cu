// Mixed-task heads, o = h W + b with a W and b of each task: minihra/layers/heads.py has the equations, heads.py makes
// the tables, whose rows of -1 stand for nothing. An FFN head is two such maps; the relu is in the kernel of the first.
//
// A block computes a tile of a result: 64 rows of one task by 64, 48 or 32 columns, whichever fits a width best (144 is
// 3 x 48), so that 16 x 400 frames are 300 tiles, 2 or 3 for each of the 132 multiprocessors of an H100. Of each sum,
// 16 terms at a time lie in shared memory, while the next 16 are on their way to registers. A thread has 8 x COLUMNS
// sums, so that it multiplies at least 16 times for 10 numbers that it reads. Threads whose rows lie behind the last
// frame of a task do not: 25 frames cost as much as 32.

#include "common.cuh"

#define ROWS 8  // that a thread sums, below each other
#ifndef COLUMNS
#define COLUMNS 4  // and columns, ACROSS apart, so that neighbouring threads write neighbours; heads.py says 2, 3 or 4
#endif
#define ACROSS 16
#define DOWN 8
#define THREADS (ACROSS * DOWN)
#define BOUNDS THREADS, 4         // of a block, and blocks that must fit on a multiprocessor: 128 registers a thread
#define TALL (ROWS * DOWN)        // of a tile
#define WIDE (COLUMNS * ACROSS)   // the same
#define STEP 16                   // terms of a sum that lie in shared memory
#define PITCH (TALL + 4)          // of those there: in rows of 64, turned numbers would all go to the same banks

#define MY_ROW (ROWS * (threadIdx.x / ACROSS))
#define MY_COLUMN (threadIdx.x % ACROSS)
#define EACH_SUM(r, c) \
    for (int r = 0; r < ROWS; r++) \
        for (int c = 0; c < COLUMNS; c++)
// Blocks share the tiles of all rows, and those beside each other come first, as they read the same rows.
#define EACH_TILE(i, down, width) \
    for (int i = blockIdx.x; i < (down) * tiles_across(width); i += gridDim.x)

__device__ __forceinline__ int tiles_across(int width) { return (width + WIDE - 1) / WIDE; }

// SIDE rows of the left factor of a tile, or columns of the right one. Term k of row (or column) i is at [i][k] where
// it lies TURNED, so that threads side by side read terms, and else at [k][i].
template <int SIDE, bool TURNED>
struct Factor {
    const REAL* from;
    int pitch;  // from one row of memory to the next
    int size;   // rows (or columns) that there are, of SIDE
    REAL ahead[SIDE * STEP / THREADS];

    __device__ __forceinline__ Factor(const REAL* from, int pitch, int size) : from(from), pitch(pitch), size(size) {}

    // My j-th number is this term of this row (or column).
    static __device__ __forceinline__ int term(int j) {
        return TURNED ? threadIdx.x % STEP : (threadIdx.x + j * THREADS) / SIDE;
    }
    static __device__ __forceinline__ int place(int j) {
        return TURNED ? (threadIdx.x + j * THREADS) / STEP : (threadIdx.x + j * THREADS) % SIDE;
    }

    // Read my part of STEP terms from number `first` on; those there are not are 0.
    __device__ __forceinline__ void fetch(int first, int terms) {
#pragma unroll
        for (int j = 0; j < SIDE * STEP / THREADS; j++) {
            const int k = term(j), i = place(j);
            const int at = TURNED ? i * pitch + first + k : (first + k) * pitch + i;
            ahead[j] = i < size && first + k < terms ? from[at] : REAL(0);
        }
    }

    __device__ __forceinline__ void put(REAL* shared) const {
#pragma unroll
        for (int j = 0; j < SIDE * STEP / THREADS; j++) {
            const int k = term(j), i = place(j);
            shared[k * PITCH + i] = ahead[j];
        }
    }
};

// Let sums be those of my place in the tile; returns the sum of column threadIdx.x of b, if it is asked for.
template <class A, class B>
__device__ __forceinline__ REAL multiply(
    A a, B b, int terms, REAL* shared_a, REAL* shared_b, REAL (&sums)[ROWS][COLUMNS], bool of_columns = false) {
    REAL column = 0;
    EACH_SUM(r, c) sums[r][c] = 0;
    a.fetch(0, terms);
    b.fetch(0, terms);
    for (int first = 0; first < terms; first += STEP) {
        a.put(shared_a);
        b.put(shared_b);
        __syncthreads();
        if (first + STEP < terms) {
            a.fetch(first + STEP, terms);
            b.fetch(first + STEP, terms);
        }
        if (MY_ROW < a.size) {
#pragma unroll
            for (int k = 0; k < STEP; k++) {
                REAL left[ROWS], right[COLUMNS];
                for (int r = 0; r < ROWS; r++) left[r] = shared_a[k * PITCH + MY_ROW + r];
                for (int c = 0; c < COLUMNS; c++) right[c] = shared_b[k * PITCH + MY_COLUMN + c * ACROSS];
                EACH_SUM(r, c) sums[r][c] += left[r] * right[c];
            }
        }
        if (of_columns && threadIdx.x < WIDE)
            for (int k = 0; k < STEP; k++) column += shared_b[k * PITCH + threadIdx.x];
        __syncthreads();
    }
    return column;
}

// y = x W + b, and where a relu follows, y = max(y, 0)
extern "C" __global__ void __launch_bounds__(BOUNDS) heads_forward(
    const REAL* x,                 // (N, I)
    const int* tiles,              // (M, 3)  slot of a task, first frame, how many frames
    const unsigned long long* Ws,  // (S)  addresses of (I, O)
    const unsigned long long* bs,  // (S)  addresses of (O), 0 for a map without bias
    REAL* y,                       // (N, O)
    bool* positive,                // (N, O)  0 where no relu follows
    int N, int I, int O, int S, int M) {
    __shared__ __align__(16) REAL a[STEP * PITCH];
    __shared__ __align__(16) REAL b[STEP * PITCH];
    EACH_TILE(i, M, O) {
        const int *tile = tiles + 3 * (i / tiles_across(O)), column = WIDE * (i % tiles_across(O));
        const int slot = tile[0], frames = tile[2];
        const Index first = tile[1];
        if (slot < 0) continue;
        const REAL *W = (const REAL*)Ws[slot], *bias = (const REAL*)bs[slot];
        REAL sums[ROWS][COLUMNS];
        const Factor<TALL, true> left(x + first * I, I, frames);
        const Factor<WIDE, false> right(W + column, O, O - column);
        multiply(left, right, I, a, b, sums);
        EACH_SUM(r, c) {
            const int row = MY_ROW + r, o = column + MY_COLUMN + c * ACROSS;
            if (row < frames && o < O) {
                const REAL v = sums[r][c] + (bias ? bias[o] : 0);
                const Index at = (first + row) * O + o;
                y[at] = !positive || v > 0 || v != v ? v : 0;  // NaN stays
                if (positive) positive[at] = v > 0;
            }
        }
    }
}

// dx = dy W', and where x came from a relu, 0 where that was 0
extern "C" __global__ void __launch_bounds__(BOUNDS) heads_backward(
    const REAL* dy,                // (N, O)
    const int* tiles,              // (M, 3)  as above
    const unsigned long long* Ws,  // (S)
    const bool* positive,          // (N, I)  0 where there was no relu
    REAL* dx,                      // (N, I)
    int N, int I, int O, int S, int M) {
    __shared__ __align__(16) REAL a[STEP * PITCH];
    __shared__ __align__(16) REAL b[STEP * PITCH];
    EACH_TILE(i, M, I) {
        const int *tile = tiles + 3 * (i / tiles_across(I)), column = WIDE * (i % tiles_across(I));
        const int slot = tile[0], frames = tile[2];
        const Index first = tile[1];
        if (slot < 0) continue;
        const Factor<TALL, true> left(dy + first * O, O, frames);
        const Factor<WIDE, true> right((const REAL*)Ws[slot] + (Index)column * O, O, I - column);
        REAL sums[ROWS][COLUMNS];
        multiply(left, right, O, a, b, sums);
        EACH_SUM(r, c) {
            const int row = MY_ROW + r, n = column + MY_COLUMN + c * ACROSS;
            const Index at = (first + row) * I + n;
            if (row < frames && n < I) dx[at] = positive ? sums[r][c] * positive[at] : sums[r][c];
        }
    }
}

// dW = x' dy, and in the row below it db, the sums of dy. Many frames of a task are cut into slices, for more blocks:
// the first goes to its place in `gradients`, the others wait in `more`.
extern "C" __global__ void __launch_bounds__(BOUNDS) heads_gradients(
    const REAL* x,      // (N, I)
    const REAL* dy,     // (N, O)
    const int* slices,  // (Z, 3)  place: a slot, or S and more; first frame, how many frames, which may be 0
    REAL* gradients,    // (S, I+1, O)
    REAL* more,         // (E, I+1, O)
    int N, int I, int O, int S, int Z, int E) {
    __shared__ __align__(16) REAL a[STEP * PITCH];
    __shared__ __align__(16) REAL b[STEP * PITCH];
    const int down = (I + TALL - 1) / TALL, across = tiles_across(O);
    EACH_TILE(i, Z * down, O) {
        const int* slice = slices + 3 * (i / across / down);
        const int above = TALL * (i / across % down), column = WIDE * (i % across);
        const int place = slice[0], frames = slice[2];
        const Index first = slice[1];
        if (place < 0) continue;
        const Factor<TALL, false> left(x + first * I + above, I, I - above);
        const Factor<WIDE, false> right(dy + first * O + column, O, O - column);
        REAL sums[ROWS][COLUMNS];
        const REAL bias = multiply(left, right, frames, a, b, sums, above == 0);
        const Index size = (I + (Index)1) * O;
        REAL* to = column + (place < S ? gradients + place * size : more + (place - S) * size);
        EACH_SUM(r, c) {
            const int row = above + MY_ROW + r, o = MY_COLUMN + c * ACROSS;
            if (row < I && column + o < O) to[(Index)row * O + o] = sums[r][c];
        }
        if (above == 0 && threadIdx.x < WIDE && column + threadIdx.x < O) to[(Index)I * O + threadIdx.x] = bias;
    }
}

// Add the other slices to the first, always in the same order.
extern "C" __global__ void heads_gradients_sum(
    const REAL* more,   // (E, G)
    const int* splits,  // (Z, 3)  slot, its first in `more`, and the one behind its last
    REAL* gradients,    // (S, G)
    int S, int E, int G, int Z) {
    EACH(i, (Index)Z * G) {
        const int *split = splits + 3 * (i / G), g = i % G;
        if (split[0] < 0) continue;
        REAL sum = gradients[(Index)split[0] * G + g];
#pragma unroll 8
        for (int e = split[1]; e < split[2]; e++) sum += more[(Index)e * G + g];
        gradients[(Index)split[0] * G + g] = sum;
    }
}
