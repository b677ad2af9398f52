// Connectionist temporal classification: minihra/layers/ctc.py has the equations, here in the same log domain.
// B utterances, T frames, V labels, Z = 2S+1 states of S labels. The recursions over the frames have a block for each
// utterance; what knows no order of frames, the log softmax and the gradient, has a warp for each frame.

#include "common.cuh"

#define NEVER (-1 / REAL(0))  // the logarithm of 0

#define EACH_STATE(s, Z) for (int s = threadIdx.x; s < (Z); s += blockDim.x)

__device__ __forceinline__ REAL log_add(REAL a, REAL b, REAL c) {
    const REAL most = max(a, max(b, c)), base = most == NEVER ? 0 : most;  // no infinity is taken from another
    return base + log(exp(a - base) + exp(b - base) + exp(c - base));
}

// A path may skip the blank before state s: it goes from one label to another. State 0 is a blank.
__device__ __forceinline__ bool may_skip_to(const int* label, int s, int Z) {
    return s >= 2 && s < Z && label[s] != label[0] && label[s] != label[s - 2];
}

// NaN for what is no label: the host cannot ask for labels without waiting, so the loss must show it.
__device__ __forceinline__ REAL emission(const REAL* log_y, int label, int V) {
    return label >= 0 && label < V ? log_y[label] : NEVER * 0;
}

// log_y, of padded frames, which may hold anything, as of zeros.
extern "C" __global__ void ctc_log_softmax(
    const REAL* logits,  // (N, V)
    const bool* valid,   // (N)
    REAL* log_y,         // (N, V)
    int N, int V) {
    EACH_WARP(n, N) {
        const REAL* x = logits + n * V;
        const bool real = valid[n];
        REAL most = NEVER, total = 0;
        EACH_LANE(v, V) most = max(most, real ? x[v] : 0);
        most = warp_max(most);
        EACH_LANE(v, V) total += exp((real ? x[v] : 0) - most);
        total = log(warp_sum(total));
        EACH_LANE(v, V) log_y[n * V + v] = (real ? x[v] : 0) - most - total;
    }
}

// Eq. 6 to 8: alpha of the frame before lies in shared memory, in one of two rows, so that a frame takes one barrier.
// A thread fetches the emission of its first state, and mostly it has no other, a frame ahead: the recursion does not
// wait for memory.
extern "C" __global__ void __launch_bounds__(1024) ctc_alpha(
    const REAL* log_y,               // (B, T, V)
    const bool* valid,               // (B, T)
    const long long* labels,         // (B, S)
    const long long* label_lengths,  // (B)
    REAL* log_alpha,                 // (B, T, Z)
    long long* states,               // (B, Z)
    bool* skip,                      // (B, Z)
    REAL* log_end,                   // (B, Z)
    REAL* log_likelihood,            // (B)
    bool* feasible,                  // (B)
    REAL* loss,                      // (B)
    int B, int T, int V, int S, int Z, int blank) {
    extern __shared__ REAL rows[];  // (2, Z+2): alpha, with two states below the first one, in which no path is
    int* label = (int*)(rows + 2 * (Z + 2));  // (Z)
    const int first = threadIdx.x;
    const Index b = blockIdx.x;
    if (b >= B) return;
    const Index last = 2 * label_lengths[b], row = b * Z;
    EACH_STATE(s, Z) {
        const long long one = s % 2 && s < last ? labels[b * S + s / 2] : blank;
        label[s] = one == (int)one ? (int)one : -1;
        states[row + s] = one;
        log_end[row + s] = s == last || s == last - 1 ? 0 : NEVER;
    }
    EACH_STATE(s, Z + 2) rows[s] = s == 2 ? 0 : NEVER;
    EACH_STATE(s, 2) rows[Z + 2 + s] = NEVER;
    __syncthreads();
    EACH_STATE(s, Z) skip[row + s] = may_skip_to(label, s, Z);

    REAL *before = rows, *alpha = rows + Z + 2, ahead = 0;
    const REAL* y = log_y + b * T * V;
    if (first < Z && T > 0) ahead = emission(y, label[first], V);
    for (int t = 0; t < T; t++) {
        const REAL here = ahead;
        if (first < Z && t + 1 < T) ahead = emission(y + V, label[first], V);
        const bool real = valid[b * T + t];
        EACH_STATE(s, Z) {
            REAL now = before[s + 2];
            if (real) {
                now = log_add(now, before[s + 1], may_skip_to(label, s, Z) ? before[s] : NEVER);
                now += s == first ? here : emission(y, label[s], V);
            }
            alpha[s + 2] = now;
            log_alpha[(b * T + t) * Z + s] = now;
        }
        __syncthreads();
        REAL* swap = before;
        before = alpha, alpha = swap, y += V;
    }
    if (threadIdx.x == 0) {
        const bool ends = last >= 0 && last < Z;
        const REAL total = log_add(ends ? before[last + 2] : NEVER, ends ? before[last + 1] : NEVER, NEVER);
        const bool possible = total != NEVER;  // NaN is: a diverged model must show
        feasible[b] = possible;
        log_likelihood[b] = possible ? total : 0;
        loss[b] = possible ? 0 - total : 0;  // 0 - 0 is 0, but -0 is -0.0
    }
}

// Eq. 10 and 11, from the last frame to the first, and the share of the paths that are in each state of each frame.
// Of the frame after, `go` holds beta with the emission; it lies in one of two rows, as alpha does above.
extern "C" __global__ void __launch_bounds__(1024) ctc_occupancy(
    const REAL* log_y,           // (B, T, V)
    const bool* valid,           // (B, T)
    const long long* states,     // (B, Z)
    const REAL* log_alpha,       // (B, T, Z)
    const REAL* log_end,         // (B, Z)
    const REAL* log_likelihood,  // (B)
    const bool* feasible,        // (B)
    REAL* occupancy,             // (B, T, Z)  of real frames of feasible utterances alone
    int B, int T, int V, int Z) {
    extern __shared__ REAL rows[];  // (2, Z+2): go, with two states above the last one, in which no path is
    int* label = (int*)(rows + 2 * (Z + 2));  // (Z)
    const int first = threadIdx.x;
    const Index b = blockIdx.x;
    if (b >= B || !feasible[b]) return;
    EACH_STATE(s, Z) {
        const long long one = states[b * Z + s];
        label[s] = one == (int)one ? (int)one : -1;
    }
    EACH_STATE(s, 2) rows[Z + s] = rows[Z + 2 + Z + s] = NEVER;
    __syncthreads();

    REAL *after = rows, *go = rows + Z + 2, ahead = 0, alpha_ahead = 0;
    const REAL* y = log_y + (b * T + T - 1) * V;
    const REAL* alpha = log_alpha + (b * T + T - 1) * Z;
    if (first < Z && T > 0) ahead = emission(y, label[first], V), alpha_ahead = alpha[first];
    const REAL whole = log_likelihood[b];
    bool is_last = true;
    for (int t = T - 1; t >= 0; t--, y -= V, alpha -= Z) {
        const REAL here = ahead, alpha_here = alpha_ahead;
        if (first < Z && t > 0) ahead = emission(y - V, label[first], V), alpha_ahead = (alpha - Z)[first];
        if (!valid[b * T + t]) continue;
        EACH_STATE(s, Z) {
            REAL beta;
            if (is_last) {
                beta = log_end[b * Z + s];
            } else {
                beta = log_add(after[s], after[s + 1], may_skip_to(label, s + 2, Z) ? after[s + 2] : NEVER);
            }
            occupancy[(b * T + t) * Z + s] = exp((s == first ? alpha_here : alpha[s]) + beta - whole);
            go[s] = beta + (s == first ? here : emission(y, label[s], V));
        }
        __syncthreads();
        REAL* swap = after;
        after = go, go = swap, is_last = false;
    }
}

// For each label the list of its states, as far as they are no blanks between labels: head has the first one, next the
// one after each, -1 ends it.
extern "C" __global__ void ctc_chains(
    const long long* states,  // (B, Z)
    int* head,                // (B, V)
    int* next,                // (B, Z)  of the states that a list holds
    int B, int V, int Z) {
    EACH(i, (Index)B * V) {
        const Index row = i / V * Z;
        const int v = i % V;
        int before = -1;
        head[i] = -1;
        for (int s = 1; s < Z; s += 2) {
            if (states[row + s] != v) continue;
            (before < 0 ? head[i] : next[row + before]) = s;
            before = s;
        }
        if (before >= 0) next[row + before] = -1;
    }
}

// Eq. 16. The blank has more than half of the states, which the warp adds up together; any other label has few or none,
// which one lane finds in its list. So the work is V + Z a frame, whether V is 32 or 1025, and the order is always the
// same.
extern "C" __global__ void ctc_gradient(
    const REAL* dloss,        // (B)
    const REAL* log_y,        // (B, T, V)
    const REAL* occupancy,    // (B, T, Z)
    const bool* feasible,     // (B)
    const bool* valid,        // (B, T)
    const long long* states,  // (B, Z)
    const int* head,          // (B, V)
    const int* next,          // (B, Z)
    REAL* dlogits,            // (B, T, V)
    int B, int T, int V, int Z) {
    EACH_WARP(n, (Index)B * T) {
        const Index b = n / T;
        if (!(valid[n] && feasible[b])) {
            EACH_LANE(v, V) dlogits[n * V + v] = 0;
            continue;
        }
        const REAL* share = occupancy + n * Z;
        const long long *label = states + b * Z, blank = label[0];
        REAL of_blank = 0;
        EACH_LANE(s, Z) of_blank += label[s] == blank ? share[s] : 0;
        of_blank = warp_sum(of_blank);
        EACH_LANE(v, V) {
            REAL sum = v == blank ? of_blank : 0;
            if (v != blank) {
                for (int s = head[b * V + v]; s >= 0; s = next[b * Z + s]) sum += share[s];
            }
            dlogits[n * V + v] = (exp(log_y[n * V + v]) - sum) * dloss[b];
        }
    }
}
