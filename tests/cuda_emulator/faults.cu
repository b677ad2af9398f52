// Kernels that are right where `wrong` is 0, and have a fault each where it is not. test_emulator.py looks for them.
#define FULL 0xffffffffu

__device__ __forceinline__ REAL warp_sum(REAL v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(FULL, v, o);
  return v;
}

__device__ __forceinline__ REAL block_sum(REAL v, REAL* parts) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  v = warp_sum(v);
  __syncthreads();  // the parts of an earlier sum may still be read
  if (lane == 0) parts[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? parts[lane] : 0);
}

extern "C" __global__ void __launch_bounds__(256)
    centre_rows(const REAL* __restrict__ x, REAL* __restrict__ y, int columns) {
  __shared__ REAL parts[32];
  const REAL* row = x + (size_t)blockIdx.x * columns;
  REAL sum = 0, squares = 0;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += row[c];
  const REAL mean = block_sum(sum, parts) / columns;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) squares += (row[c] - mean) * (row[c] - mean);
  const REAL scale = rsqrt(block_sum(squares, parts) / columns);
  for (int c = threadIdx.x; c < columns; c += blockDim.x)
    y[(size_t)blockIdx.x * columns + c] = (row[c] - mean) * scale;
}

extern "C" __global__ void double_all(const REAL* x, REAL* y, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = 2 * x[i];
}

// Ten threads, of which three take part.
extern "C" __global__ void largest_of_three(const REAL* x, REAL* y) {
  REAL v = x[threadIdx.x];
  if (threadIdx.x < 3) {
    v = max(v, __shfl_sync(7u, v, (threadIdx.x + 1) % 3));
    v = max(v, __shfl_sync(7u, v, (threadIdx.x + 1) % 3));
    if (__any_sync(7u, v > 1e6) || !__all_sync(7u, v < 1e6) || __ballot_sync(7u, threadIdx.x == 1) != 2u) v = -1;
  }
  y[threadIdx.x] = v;
}

#define TILE 8
// c = a b, with wrong & 1 no barrier before the tiles are read, and with wrong & 2 none before they are overwritten.
extern "C" __global__ void product(const REAL* a, const REAL* b, REAL* c, int M, int N, int K, int wrong) {
  __shared__ REAL left[TILE][TILE + 1], right[TILE][TILE];
  const int m = blockIdx.y * TILE + threadIdx.y, n = blockIdx.x * TILE + threadIdx.x;
  REAL sum = 0;
  for (int first = 0; first < K; first += TILE) {
    const int k_left = first + threadIdx.x, k_right = first + threadIdx.y;
    left[threadIdx.y][threadIdx.x] = m < M && k_left < K ? a[m * K + k_left] : 0;
    right[threadIdx.y][threadIdx.x] = n < N && k_right < K ? b[k_right * N + n] : 0;
    if (!(wrong & 1)) __syncthreads();
    for (int k = 0; k < TILE; ++k) sum += left[threadIdx.y][k] * right[k][threadIdx.x];
    if (!(wrong & 2)) __syncthreads();
  }
  if (m < M && n < N) c[m * N + n] = sum;
}

extern "C" __global__ void reverse(const REAL* x, REAL* y, int wrong) {
  extern __shared__ REAL line[];
  line[threadIdx.x] = x[threadIdx.x];
  if (!wrong) __syncthreads();
  y[threadIdx.x] = line[blockDim.x - 1 - threadIdx.x];
}

// All lanes read the value of lane 0, which then replaces it.
extern "C" __global__ void swap_lanes(const REAL* x, REAL* y, int wrong) {
  __shared__ REAL values[64];
  values[threadIdx.x] = x[threadIdx.x];
  if (wrong != 1) __syncwarp();
  y[threadIdx.x] = values[threadIdx.x ^ 1] + values[threadIdx.x & 32];
  if (wrong != 2) __syncwarp(0xffffffffu);
  if (threadIdx.x % 32 == 0) values[threadIdx.x] += 1;
}

// A shuffle tells a value; it does not put memory in order.
extern "C" __global__ void shuffle_is_no_barrier(REAL* y, int wrong) {
  __shared__ REAL value;
  if (threadIdx.x == 0) value = 3;
  int first = __shfl_sync(FULL, (int)threadIdx.x, 0);
  if (!wrong) __syncwarp();
  y[threadIdx.x] = value + first;
}

extern "C" __global__ void fill_half(REAL* y, int wrong) {
  __shared__ REAL values[64];
  const bool fills = wrong == 0 || (wrong == 1 && threadIdx.x < 32) || (wrong == 2 && blockIdx.x == 0);
  if (fills) values[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void bytes(unsigned char* y, bool* is_odd) {
  __shared__ unsigned char values[64];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = values[63 - threadIdx.x];
  is_odd[threadIdx.x] = values[threadIdx.x] & 1;
}

extern "C" __global__ void barrier(REAL* y, int wrong) {
  if (wrong == 1 && threadIdx.x == 5) return;
  if (wrong == 2 && threadIdx.x >= 32) __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = 1;
}

extern "C" __global__ void shuffles(REAL* y, int wrong) {
  REAL v = threadIdx.x;
  if (wrong == 0) v = __shfl_up_sync(FULL, v, 1);
  if (wrong == 1 && threadIdx.x < 16) v = __shfl_xor_sync(FULL, v, 8);
  if (wrong == 2) {
    if (threadIdx.x == 7) __syncthreads();
    else
      v = __shfl_xor_sync(FULL, v, 8);
  }
  if (wrong == 3) v = __shfl_sync(0xfffffffeu, v, 1);
  if (wrong == 4 && threadIdx.x < 16) v = __shfl_down_sync(0xffffu, v, 8);
  if (wrong == 5 && threadIdx.x == 9) return;
  if (wrong == 5) __syncwarp();  // which may name lanes that have ended
  y[threadIdx.x] = v;
}

extern "C" __global__ void count(const int* x, int* sums, unsigned long long* all, REAL* total, int n, int wrong) {
  __shared__ int here;
  if (threadIdx.x == 0) here = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    atomicAdd(&here, x[i]);
    atomicAdd(all, 1ull);
    atomicMax(&sums[1], x[i]);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  atomicAdd(total, (REAL)here);
  if (wrong) sums[0] += here;
  else
    atomicAdd(&sums[0], here);
}

extern "C" __global__ void shift(const float4* x, float4* y, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  float4 v = x[i];
  v.x += 1, v.y += 2, v.z += 3, v.w += 4;
  y[i] = v;
}

extern "C" __global__ void beyond_shared(REAL* y, int i) {
  __shared__ REAL values[16];
  values[threadIdx.x + i] = 1;
  y[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void through_table(const unsigned long long* table, int n) {
  const REAL* x = reinterpret_cast<const REAL*>(table[0]);
  REAL* y = reinterpret_cast<REAL*>(table[1]);
  if (threadIdx.x < n) y[threadIdx.x] = -x[threadIdx.x];
}

// What a racy kernel gives depends on who is first.
extern "C" __global__ void last_one(int* y) { *y = blockIdx.x * blockDim.x + threadIdx.x; }

// Every thread of `step` reads what the last thread of the last block writes.
extern "C" __global__ void refresh(REAL* y, REAL* seen, int step) {
  if (threadIdx.x % step != 0) return;
  const REAL v = y[0];
  seen[blockIdx.x * blockDim.x + threadIdx.x] = v;
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == blockDim.x - 1) y[0] = v + 1;
}

// Each half of a warp keeps to itself.
extern "C" __global__ void halves(const REAL* x, REAL* y, int wrong) {
  __shared__ REAL values[32];
  const unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  for (int step = 0; step < 3; ++step) {
    values[threadIdx.x] = x[threadIdx.x] + step;
    __syncwarp(mask);
    y[threadIdx.x] = values[threadIdx.x ^ (wrong ? 16 : 15)];
    __syncwarp(mask);
  }
}
