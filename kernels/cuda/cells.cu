// The cells of the controller: minihra/layers/{gru,indrnn,rnn,li_gru,no_recurrence}.py have the equations. Products come
// in without biases; what is left is one kernel each way. N frames, a state of H units: a thread has all gates of one
// unit in one frame, number i of the state's.

#include "common.cuh"

#define EACH_UNIT(i, N, H) EACH(i, (Index)(N) * (H))
#define FRAME(i, H) ((i) / (H))
#define UNIT(i, H) ((int)((i) % (H)))

extern "C" __global__ void gru_forward(
    const REAL* a,  // (N, 3*H)  x W
    const REAL* g,  // (N, 3*H)  h U
    const REAL* b,  // (3*H)
    const REAL* c,  // (H)
    const REAL* h,  // (N, H)
    REAL* r,        // (N, H)
    REAL* z,        // (N, H)
    REAL* n,        // (N, H)
    REAL* q,        // (N, H)
    REAL* h_next,   // (N, H)
    int N, int H) {
    EACH_UNIT(i, N, H) {
        const int j = UNIT(i, H);
        const Index k = FRAME(i, H) * 3 * H + j;  // of its first gate; the others are H and 2 H behind
        const REAL ri = sigmoid(a[k] + b[j] + g[k]);
        const REAL zi = sigmoid(a[k + H] + b[j + H] + g[k + H]);
        const REAL qi = g[k + 2 * H] + c[j];
        const REAL ni = tanh(a[k + 2 * H] + b[j + 2 * H] + ri * qi);
        r[i] = ri;
        z[i] = zi;
        q[i] = qi;
        n[i] = ni;
        h_next[i] = (1 - zi) * ni + zi * h[i];
    }
}

extern "C" __global__ void gru_backward(
    const REAL* dh_next,  // (N, H)
    const REAL* h,        // (N, H)
    const REAL* r,        // (N, H)
    const REAL* z,        // (N, H)
    const REAL* n,        // (N, H)
    const REAL* q,        // (N, H)
    REAL* da,             // (N, 3*H)
    REAL* dg,             // (N, 3*H)
    REAL* dh,             // (N, H)  but for dg U'
    int N, int H) {
    EACH_UNIT(i, N, H) {
        const Index k = FRAME(i, H) * 3 * H + UNIT(i, H);
        const REAL ri = r[i], zi = z[i], ni = n[i], dhi = dh_next[i];
        const REAL dn = dhi * (1 - zi) * (1 - ni * ni);
        const REAL dr = dn * q[i] * ri * (1 - ri);
        const REAL dz = dhi * (h[i] - ni) * zi * (1 - zi);
        da[k] = dg[k] = dr;
        da[k + H] = dg[k + H] = dz;
        da[k + 2 * H] = dn;
        dg[k + 2 * H] = dn * ri;
        dh[i] = dhi * zi;
    }
}

// h_next = relu(a + u h + b)
extern "C" __global__ void indrnn_forward(
    const REAL* a,   // (N, H)  x W
    const REAL* h,   // (N, H)  0 for no recurrence
    const REAL* u,   // (H)     the same
    const REAL* b,   // (H)
    bool* positive,  // (N, H)
    REAL* h_next,    // (N, H)
    int N, int H) {
    EACH_UNIT(i, N, H) {
        const int j = UNIT(i, H);
        const REAL v = (h ? a[i] + u[j] * h[i] : a[i]) + b[j];
        positive[i] = v > 0;
        h_next[i] = relu(v);
    }
}

extern "C" __global__ void indrnn_backward(
    const REAL* dh_next,   // (N, H)
    const bool* positive,  // (N, H)
    const REAL* u,         // (H)     0 for no recurrence
    REAL* da,              // (N, H)
    REAL* dh,              // (N, H)  the same
    int N, int H) {
    EACH_UNIT(i, N, H) {
        const REAL v = dh_next[i] * positive[i];
        da[i] = v;
        if (dh) dh[i] = v * u[UNIT(i, H)];
    }
}

extern "C" __global__ void rnn_forward(
    const REAL* a,  // (N, H)  x W + h U
    const REAL* b,  // (H)
    REAL* h_next,   // (N, H)
    int N, int H) {
    EACH_UNIT(i, N, H) h_next[i] = tanh(a[i] + b[UNIT(i, H)]);
}

extern "C" __global__ void rnn_backward(
    const REAL* dh_next,  // (N, H)
    const REAL* h_next,   // (N, H)
    REAL* da,             // (N, H)
    int N, int H) {
    EACH_UNIT(i, N, H) da[i] = dh_next[i] * (1 - h_next[i] * h_next[i]);
}

extern "C" __global__ void li_gru_forward(
    const REAL* a,  // (N, 2*H)  x W + h U
    const REAL* b,  // (2*H)
    const REAL* h,  // (N, H)
    REAL* z,        // (N, H)
    REAL* n,        // (N, H)
    REAL* h_next,   // (N, H)
    int N, int H) {
    EACH_UNIT(i, N, H) {
        const int j = UNIT(i, H);
        const Index k = FRAME(i, H) * 2 * H + j;
        const REAL zi = sigmoid(a[k] + b[j]), ni = relu(a[k + H] + b[j + H]);
        z[i] = zi;
        n[i] = ni;
        h_next[i] = zi * h[i] + (1 - zi) * ni;
    }
}

extern "C" __global__ void li_gru_backward(
    const REAL* dh_next,  // (N, H)
    const REAL* h,        // (N, H)
    const REAL* z,        // (N, H)
    const REAL* n,        // (N, H)
    REAL* da,             // (N, 2*H)
    REAL* dh,             // (N, H)  but for da U'
    int N, int H) {
    EACH_UNIT(i, N, H) {
        const Index k = FRAME(i, H) * 2 * H + UNIT(i, H);
        const REAL zi = z[i], ni = n[i], dhi = dh_next[i];
        da[k] = dhi * (h[i] - ni) * zi * (1 - zi);
        da[k + H] = dhi * (1 - zi) * (ni > 0);
        dh[i] = dhi * zi;
    }
}
