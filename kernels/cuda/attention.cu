// What stands between the products of attention: minihra/layers/attention.py, relative_attention.py, shaw_attention.py
// and softmax.py have the equations. B batch, T frames, A heads, D their width. Products want the frames of a head
// beside each other, (B, A, T, D); the maps before and after want the heads of a frame so, (B, T, A, D).

#include "common.cuh"

// q + u, k and value by head, and q + v as q lies. What is 0 is not there or not wanted.
extern "C" __global__ void split_heads(
    const REAL* __restrict__ q,        // (B, T, A, D)
    const REAL* __restrict__ k,        // (B, T, A, D)
    const REAL* __restrict__ value,    // (B, T, A, D)
    const REAL* __restrict__ u,        // (A, D)
    const REAL* __restrict__ v,        // (A, D)
    REAL* __restrict__ to_content,     // (B, A, T, D)
    REAL* __restrict__ to_position,    // (B, T, A, D)
    REAL* __restrict__ k_by_head,      // (B, A, T, D)
    REAL* __restrict__ value_by_head,  // (B, A, T, D)
    int B, int T, int A, int D) {
    EACH_WARP(n, (Index)B * T) {
        const Index b = n / T, t = n % T;
        EACH_LANE(c, A * D) {
            const Index from = n * A * D + c, to = ((b * A + c / D) * T + t) * D + c % D;
            to_content[to] = q[from] + (u ? u[c] : 0);
            if (v) to_position[from] = q[from] + v[c];
            if (k) k_by_head[to] = k[from];
            if (value) value_by_head[to] = value[from];
        }
    }
}

// The way back, for y, or for the gradients of q, k and value. `also` is what q has from elsewhere.
extern "C" __global__ void merge_heads(
    const REAL* __restrict__ q_by_head,      // (B, A, T, D)
    const REAL* __restrict__ also,           // (B, T, A, D)  0 for none
    const REAL* __restrict__ k_by_head,      // (B, A, T, D)  0 for none
    const REAL* __restrict__ value_by_head,  // (B, A, T, D)  0 for none
    REAL* __restrict__ q,                    // (B, T, A, D)
    REAL* __restrict__ k,                    // (B, T, A, D)
    REAL* __restrict__ value,                // (B, T, A, D)
    int B, int T, int A, int D) {
    EACH_WARP(n, (Index)B * T) {
        const Index b = n / T, t = n % T;
        EACH_LANE(c, A * D) {
            const Index to = n * A * D + c, from = ((b * A + c / D) * T + t) * D + c % D;
            q[to] = q_by_head[from] + (also ? also[to] : 0);
            if (k_by_head) k[to] = k_by_head[from];
            if (value_by_head) value[to] = value_by_head[from];
        }
    }
}

// r_p = cosine_p + sine_p, and as sine is odd and cosine even, r_{-p} = cosine_p - sine_p. Rows are p = T-1 ... -(T-1).
extern "C" __global__ void fold_positions(
    const REAL* __restrict__ halves,  // (2, T, C)  sine_p, then cosine_p, of p = T-1 ... 0
    REAL* __restrict__ r,             // (2*T-1, C)
    int T, int C) {
    EACH_WARP(n, 2 * T - 1) {
        const Index sine = (n < T ? n : 2 * T - 2 - n) * C, cosine = sine + (Index)T * C;
        EACH_LANE(c, C) r[n * C + c] = halves[cosine + c] + (n < T ? halves[sine + c] : -halves[sine + c]);
    }
}

// Where the products of the query at frame t with all 2T-1 positions hold that for key 0; the next keys' follow.
__device__ __forceinline__ Index shifted_row(Index b, Index t, Index a, Index T, Index A) {
    return ((b * T + t) * A + a) * (2 * T - 1) + T - 1 - t;
}

// y_j = exp(score(j)) / their sum, over the j for which kept(j) is true; 0 for the others. y may be what score reads.
template <class Kept, class Score>
__device__ __forceinline__ void softmax(REAL* y, int T, Kept kept, Score score) {
    const REAL lowest = sizeof(REAL) == 8 ? -1.7e308 : -3.4e38;  // not infinite: the difference of two must be 0
    auto row = row_of<REAL, true>(T, [=](int j) { return kept(j) ? score(j) : lowest; });
    REAL largest = lowest, sum = 0;
    row.each([&](int, REAL s) { largest = s > largest ? s : largest; });  // NaN shows in the sum
    const REAL most = warp_max(largest);
    row.each([&](int, REAL& s) {
        s = exp(s - most);
        sum += s;
    });
    const REAL scale = 1 / warp_sum(sum);
    row.each([&](int j, REAL s) {
        // what is not in registers is still a score
        y[j] = kept(j) ? (j < KEPT * LANES ? s : exp(s - most)) * scale : 0;
    });
}

// Scores become weights in place: query t sees the valid keys from t - left to t + right, and none if it is padding.
extern "C" __global__ void attention_weights(
    REAL* s,            // (B, A, T, T)  products of queries and keys, not yet scaled
    const REAL* w,      // (B, T, A, 2*T-1)  products of queries and positions, 0 for none
    const bool* valid,  // (B, T)
    int B, int A, int T, int left, int right, REAL scale) {
    EACH_WARP(n, (Index)B * A * T) {
        const Index b = n / T / A, a = n / T % A, t = n % T;
        const bool* real = valid + b * T;
        const bool query = real[t];
        REAL* row = s + n * T;
        const REAL* shifted = w ? w + shifted_row(b, t, a, T, A) : 0;
        softmax(
            row, T, [=](int j) { return query && real[j] && t - left <= j && j <= t + right; },
            [=](int j) { return (row[j] + (shifted ? shifted[j] : 0)) * scale; });
    }
}

struct Weight { REAL y, dy; };

// ds_j = y_j (dy_j - sum_i dy_i y_i) scale in place of dy, and the same in dw where w was read, 0 elsewhere.
extern "C" __global__ void attention_weights_backward(
    const REAL* y,  // (B, A, T, T)
    REAL* ds,       // (B, A, T, T)  holds dy
    REAL* dw,       // (B, T, A, 2*T-1)  0 for none
    int B, int A, int T, REAL scale) {
    EACH_WARP(n, (Index)B * A * T) {
        const Index b = n / T / A, a = n / T % A, t = n % T, row = n * T, shifted = shifted_row(b, t, a, T, A);
        REAL sum = 0;
        auto weights = row_of<Weight, true>(T, [=](int j) { return Weight{y[row + j], ds[row + j]}; });
        weights.each([&](int, Weight v) { sum += v.dy * v.y; });
        const REAL along = warp_sum(sum);
        weights.each([&](int j, Weight v) {
            const REAL its_ds = v.y * (v.dy - along) * scale;
            ds[row + j] = its_ds;
            if (dw) dw[shifted + j] = its_ds;
        });
        if (!dw) continue;
        EACH_LANE(j, T - 1 - t) dw[shifted - 1 - j] = 0;
        EACH_LANE(j, t) dw[shifted + T + j] = 0;
    }
}

extern "C" __global__ void masked_softmax_forward(
    const REAL* s,     // (N, T)
    const bool* mask,  // (N, T)
    REAL* y,           // (N, T)
    int N, int T) {
    EACH_WARP(n, N) {
        const Index row = n * T;
        softmax(y + row, T, [=](int j) { return mask[row + j]; }, [=](int j) { return s[row + j]; });
    }
}

extern "C" __global__ void masked_softmax_backward(
    const REAL* y,   // (N, T)
    const REAL* dy,  // (N, T)
    REAL* ds,        // (N, T)
    int N, int T) {
    EACH_WARP(n, N) {
        const Index row = n * T;
        REAL sum = 0;
        EACH_LANE(j, T) sum += dy[row + j] * y[row + j];
        const REAL along = warp_sum(sum);
        EACH_LANE(j, T) ds[row + j] = y[row + j] * (dy[row + j] - along);
    }
}
