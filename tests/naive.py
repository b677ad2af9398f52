"""The slow oracle: every layer once more as explicit float64 loops, written from the papers and not from our code.

Only tests may import this file. Forwards only, and no masks over time: an utterance with padding is computed alone on
its first n frames, so the padded frames are never read, and are zero in the result.

Letters: B batch, T frames, F mel bins, C width, N rows, A heads, D = C/A, K kernel width, H state, R bottleneck,
V labels, S label length. Weights are (inputs, outputs).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Maybe = np.ndarray | None
Ints = Sequence[int]
Reach = tuple[int | None, int | None] | None
EPS = 1e-5  # of every norm inside a block


def dot(a: Array, b: Array) -> float:
    """sum_i a_i b_i of two vectors."""
    total = 0.0
    for p, q in zip(a.tolist(), b.tolist(), strict=True):
        total += p * q
    return total


def elementwise(f: Callable[[float], float], x: Array) -> Array:
    """y_i = f(x_i) over the flat array, any shape."""
    return np.array([f(v) for v in x.ravel().tolist()], dtype=np.float64).reshape(x.shape)


def each_utterance(f: Callable[[Array], Array], x: Array, lengths: Ints, width: int) -> Array:
    """f (n, C) -> (n, width) on the first n frames of every utterance of x (B, T, C), alone; zeros elsewhere."""
    y = np.zeros((x.shape[0], x.shape[1], width))
    for b, n in enumerate(lengths):
        if n > 0:
            y[b, :n] = f(x[b, :n])
    return y


def linear(x: Array, W: Array, b: Maybe) -> Array:
    """y = x W + b; x (N, I), W (I, O), b (O,) or None -> (N, O)."""
    y = np.zeros((x.shape[0], W.shape[1]))
    for n, o in np.ndindex(y.shape):
        y[n, o] = dot(x[n], W[:, o]) + (0.0 if b is None else b[o])
    return y


def sigmoid_of(v: float) -> float:
    """1 / (1 + e^-v) of a number, by the form that cannot overflow."""
    return 1.0 / (1.0 + math.exp(-v)) if v >= 0 else math.exp(v) / (1.0 + math.exp(v))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), any shape."""
    return elementwise(sigmoid_of, x)


def swish(x: Array) -> Array:
    """x sigmoid(x), any shape. Ramachandran et al. 2017, arXiv 1710.05941."""
    return elementwise(lambda v: v * sigmoid_of(v), x)


def relu(x: Array) -> Array:
    """max(x, 0), any shape."""
    return elementwise(lambda v: 0.0 if v < 0 else v, x)


def gelu(x: Array) -> Array:
    """x Phi(x) with the exact normal distribution, any shape. Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2."""
    return elementwise(lambda v: v * 0.5 * (1.0 + math.erf(v / math.sqrt(2.0))), x)


def glu(x: Array) -> Array:
    """y = x_first sigmoid(x_second); x (N, 2C) -> (N, C). Dauphin et al. 2017, arXiv 1612.08083, equation 1."""
    C = x.shape[1] // 2
    y = np.zeros((x.shape[0], C))
    for n, c in np.ndindex(y.shape):
        y[n, c] = x[n, c] * sigmoid_of(x[n, C + c])
    return y


def residual(x: Array, u: Array, weights: tuple[float, float]) -> Array:
    """y = a x + w u. He et al. 2016, arXiv 1512.03385, section 3.1, with weights."""
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[i] = weights[0] * x[i] + weights[1] * u[i]
    return y


def dropout(x: Array, keep: Array, rate: float) -> Array:
    """y = x keep / (1 - rate), keep bool of the shape of x. Srivastava et al. 2014, in the inverted form."""
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[i] = x[i] / (1.0 - rate) if keep[i] else 0.0
    return y


def layer_norm(x: Array, g: Array, b: Array, eps: float) -> Array:
    """y = g (x - mean) / sqrt(var + eps) + b over a row, biased var; x (N, C). Ba et al. 2016, arXiv 1607.06450."""
    N, C = x.shape
    y = np.zeros((N, C))
    for n in range(N):
        mean = sum(x[n].tolist()) / C
        var = sum((v - mean) ** 2 for v in x[n].tolist()) / C
        for c in range(C):
            y[n, c] = g[c] * (x[n, c] - mean) / math.sqrt(var + eps) + b[c]
    return y


def batch_norm(
    x: Array, lengths: Ints, g: Array, b: Array, mean: Array, var: Array, eps: float, momentum: float
) -> tuple[Array, Array, Array]:
    """Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1, over the valid frames of x (B, T, C) together; the running
    mean and var (C,) move by momentum, and var towards the unbiased variance of the batch. Gives y, mean, var."""
    y, new_mean, new_var = np.zeros(x.shape), mean.copy(), var.copy()
    frames = [(i, t) for i, n in enumerate(lengths) for t in range(n)]
    if not frames:
        return y, new_mean, new_var
    for c in range(x.shape[2]):
        m = sum(float(x[i, t, c]) for i, t in frames) / len(frames)
        squares = sum((float(x[i, t, c]) - m) ** 2 for i, t in frames)
        for i, t in frames:
            y[i, t, c] = g[c] * (x[i, t, c] - m) / math.sqrt(squares / len(frames) + eps) + b[c]
        new_mean[c] = (1 - momentum) * mean[c] + momentum * m
        new_var[c] = (1 - momentum) * var[c] + momentum * squares / max(len(frames) - 1, 1)
    return y, new_mean, new_var


def running_norm(x: Array, g: Array, b: Array, mean: Array, var: Array, eps: float) -> Array:
    """y = g (x - mean) / sqrt(var + eps) + b, x (N, C), the rest (C,). Ioffe & Szegedy 2015, algorithm 2, line 11."""
    y = np.zeros(x.shape)
    for n, c in np.ndindex(x.shape):
        y[n, c] = g[c] * (x[n, c] - mean[c]) / math.sqrt(var[c] + eps) + b[c]
    return y


def instance_norm(x: Array, lengths: Ints, g: Array, b: Array, eps: float) -> Array:
    """y = g (x - mean) / sqrt(var + eps) + b over the frames of one utterance and channel, biased var; x (B, T, C).
    Ulyanov et al. 2016, arXiv 1607.08022, equation 3."""
    y = np.zeros(x.shape)
    for i, n in enumerate(lengths):
        for c in range(x.shape[2] if n > 0 else 0):
            frames = x[i, :n, c].tolist()
            mean = sum(frames) / n
            var = sum((v - mean) ** 2 for v in frames) / n
            for t in range(n):
                y[i, t, c] = g[c] * (frames[t] - mean) / math.sqrt(var + eps) + b[c]
    return y


def softmax_of(s: list[float]) -> list[float]:
    """e^s_j / sum_k e^s_k of a list of numbers, which may be empty."""
    top = max(s, default=0.0)
    e = [math.exp(v - top) for v in s]
    total = sum(e)
    return [v / total for v in e]


def masked_softmax(s: Array, mask: Array) -> Array:
    """Softmax over the True entries of the last axis; s, mask (..., T); 0 where False. Vaswani et al. 2017, 3.2.1."""
    y = np.zeros(s.shape)
    for i in np.ndindex(s.shape[:-1]):
        seen = [j for j in range(s.shape[-1]) if mask[(*i, j)]]
        for j, w in zip(seen, softmax_of([float(s[(*i, j)]) for j in seen]), strict=True):
            y[(*i, j)] = w
    return y


def sinusoids(T: int, C: int) -> Array:
    """Rows p = T-1 .. -(T-1): columns 2i, 2i+1 are sin, cos of p / 10000^(2i/C); (2T-1, C), C even.
    Vaswani et al. 2017, section 3.5, of the relative positions of Dai et al. 2019, arXiv 1901.02860, appendix B."""
    y = np.zeros((2 * T - 1, C))
    for row in range(2 * T - 1):
        position = T - 1 - row
        for i in range(C // 2):
            angle = position / 10000.0 ** (2 * i / C)
            y[row, 2 * i], y[row, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return y


def attend(score: Callable[[int, int, int, int], float], v: Array, lengths: Ints, reach: Reach) -> Array:
    """y_i = sum_j softmax_j(score(b, a, i, j) / sqrt(D)) v_j for i-left <= j <= i+right; v (B, T, A, D).
    Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1."""
    B, _, A, D = v.shape
    left, right = (None, None) if reach is None else reach
    y = np.zeros(v.shape)
    for b, a in itertools.product(range(B), range(A)):
        n = lengths[b]
        for i in range(n):
            first = 0 if left is None else max(0, i - left)
            last = n - 1 if right is None else min(n - 1, i + right)
            scores = [score(b, a, i, j) / math.sqrt(D) for j in range(first, last + 1)]
            for j, w in zip(range(first, last + 1), softmax_of(scores), strict=True):
                for d in range(D):
                    y[b, i, a, d] += w * v[b, j, a, d]
    return y


def attention(q: Array, k: Array, v: Array, lengths: Ints, reach: Reach) -> Array:
    """Scores q_i.k_j; q, k, v (B, T, A, D). Vaswani et al. 2017, arXiv 1706.03762, equation 1."""
    return attend(lambda b, a, i, j: dot(q[b, i, a], k[b, j, a]), v, lengths, reach)


def relative_attention(
    q: Array, k: Array, v: Array, r: Array, u: Array, vbias: Array, lengths: Ints, reach: Reach
) -> Array:
    """Scores (q_i + u).k_j + (q_i + vbias).r_{i-j}.
    q, k, v (B, T, A, D), r (2T-1, A, D), u, vbias (A, D). Dai et al. 2019, arXiv 1901.02860, section 3.3."""
    T = q.shape[1]

    def score(b: int, a: int, i: int, j: int) -> float:
        return dot(q[b, i, a] + u[a], k[b, j, a]) + dot(q[b, i, a] + vbias[a], r[T - 1 - (i - j), a])

    return attend(score, v, lengths, reach)


def shaw_attention(q: Array, k: Array, v: Array, w: Array, left: int, lengths: Ints, reach: Reach) -> Array:
    """Scores q_i.(k_j + w_{j-i}), w (P, D) has the distances -left .. P-1-left; one beyond counts as the last.
    q, k, v (B, T, A, D). Shaw et al. 2018, arXiv 1803.02155, equations 2 and 4, with a^V = 0."""
    right = w.shape[0] - 1 - left

    def score(b: int, a: int, i: int, j: int) -> float:
        return dot(q[b, i, a], k[b, j, a] + w[left + max(-left, min(right, j - i))])

    return attend(score, v, lengths, reach)


def rotary(x: Array, base: float) -> Array:
    """The point (x_i, x_{i+D/2}) of frame t turns by t base^(-2i/D), i = 0 .. D/2-1; x (B, T, A, D).
    Su et al. 2021, arXiv 2104.09864, equations 13 to 15, with the pairs of GPT-NeoX."""
    B, T, A, D = x.shape
    y = np.zeros(x.shape)
    for b, t, a, i in itertools.product(range(B), range(T), range(A), range(D // 2)):
        angle = t * base ** (-2 * i / D)
        one, two = x[b, t, a, i], x[b, t, a, i + D // 2]
        y[b, t, a, i] = one * math.cos(angle) - two * math.sin(angle)
        y[b, t, a, i + D // 2] = one * math.sin(angle) + two * math.cos(angle)
    return y


def depthwise_conv(x: Array, lengths: Ints, W: Array, b: Array, causal: bool = False) -> Array:
    """y_t = b + sum_k W_k x_{t+k-left}, left = (K-1)//2, or K-1 if causal, zero outside; x (B, T, C), W (K, C), b (C,).
    Gulati et al. 2020, arXiv 2005.08100, section 2.2; causal as van den Oord et al. 2016, arXiv 1609.03499, 2.1."""
    K, C = W.shape
    left = K - 1 if causal else (K - 1) // 2
    y = np.zeros(x.shape)
    for i, n in enumerate(lengths):
        for t, c in itertools.product(range(n), range(C)):
            total = float(b[c])
            for k in range(K):
                if 0 <= t + k - left < n:
                    total += W[k, c] * x[i, t + k - left, c]
            y[i, t, c] = total
    return y


def conv1d(x: Array, lengths: Ints, W: Array, b: Array, stride: int, pad: int) -> Array:
    """y_t = b + sum_k x_{t stride + k} W_k over an utterance with pad zeros on both sides, as often as the kernel fits;
    x (B, T, I), W (K, I, O), b (O,) -> (B, T2, O). Baevski et al. 2020, arXiv 2006.11477, section 2."""
    K, I, O = W.shape

    def alone(rows: Array) -> list[list[float]]:
        zeros = [np.zeros(I)] * pad
        frames, y = [*zeros, *rows, *zeros], []
        start = 0
        while start + K <= len(frames):
            y.append([float(b[o]) + sum(dot(frames[start + k], W[k, :, o]) for k in range(K)) for o in range(O)])
            start += stride
        return y

    y = np.zeros((x.shape[0], len(alone(np.zeros(x.shape[1:]))), O))
    for i, n in enumerate(lengths):
        for t, row in enumerate(alone(x[i, :n]) if n > 0 else []):
            y[i, t] = row
    return y


def conv2d(x: Array, lengths: Ints, W: Array, b: Array) -> Array:
    """y_{t,f} = b + sum_{j,k} x_{2t+j-1, 2f+k-1} W_{j,k}, zero outside; x (B, T, F, I), W (3, 3, I, O), b (O,)
    -> (B, ceil(T/2), ceil(F/2), O); n frames give ceil(n/2). The stride of Gulati et al. 2020, section 2."""
    B, T, F, _ = x.shape
    O = W.shape[3]
    y = np.zeros((B, (T + 1) // 2, (F + 1) // 2, O))
    for i, n in enumerate(lengths):
        for t, f, o in itertools.product(range((n + 1) // 2), range((F + 1) // 2), range(O)):
            total = float(b[o])
            for j, k in itertools.product(range(3), range(3)):
                if 0 <= 2 * t + j - 1 < n and 0 <= 2 * f + k - 1 < F:
                    total += dot(x[i, 2 * t + j - 1, 2 * f + k - 1], W[j, k, :, o])
            y[i, t, f, o] = total
    return y


def depthwise_conv2d(x: Array, lengths: Ints, W: Array, b: Array) -> Array:
    """conv2d of each channel on its own; x (B, T, F, C), W (3, 3, C), b (C,) -> (B, ceil(T/2), ceil(F/2), C).
    Rekesh et al. 2023, arXiv 2305.05084, section 2.1."""
    channels = range(x.shape[3])
    return np.concatenate(
        [conv2d(x[..., c : c + 1], lengths, W[:, :, c, None, None], b[c : c + 1]) for c in channels], axis=3
    )


def gru(x: Array, h: Array, W: Array, U: Array, b: Array, c: Array) -> Array:
    """r, z = sigmoid(xW + b + hU); n = tanh(xW_n + b_n + r (hU_n + c)); (1 - z) n + z h. x (N, C), h (N, H), W (C, 3H),
    U (H, 3H), b (3H,), c (H,), gates r, z, n. Cho et al. 2014, arXiv 1406.1078v1, in the reset-after form."""
    y, H = np.zeros(h.shape), h.shape[1]
    for i, k in np.ndindex(h.shape):
        r = sigmoid_of(dot(x[i], W[:, k]) + b[k] + dot(h[i], U[:, k]))
        z = sigmoid_of(dot(x[i], W[:, H + k]) + b[H + k] + dot(h[i], U[:, H + k]))
        q = dot(h[i], U[:, 2 * H + k]) + c[k]
        n = math.tanh(dot(x[i], W[:, 2 * H + k]) + b[2 * H + k] + r * q)
        y[i, k] = (1 - z) * n + z * h[i, k]
    return y


def indrnn(x: Array, h: Array, W: Array, u: Array, b: Array) -> Array:
    """relu(xW + u h + b); x (N, C), h (N, H), W (C, H), u, b (H,). Li et al. 2018, arXiv 1803.04831, section 3."""
    y = np.zeros(h.shape)
    for i, k in np.ndindex(h.shape):
        y[i, k] = max(dot(x[i], W[:, k]) + u[k] * h[i, k] + b[k], 0.0)
    return y


def rnn(x: Array, h: Array, W: Array, U: Array, b: Array) -> Array:
    """tanh(xW + hU + b); x (N, C), h (N, H), W (C, H), U (H, H), b (H,). Elman 1990."""
    y = np.zeros(h.shape)
    for i, k in np.ndindex(h.shape):
        y[i, k] = math.tanh(dot(x[i], W[:, k]) + dot(h[i], U[:, k]) + b[k])
    return y


def li_gru(x: Array, h: Array, W: Array, U: Array, b: Array) -> Array:
    """z = sigmoid(xW_z + hU_z + b_z), n = relu(xW_n + hU_n + b_n); z h + (1 - z) n. x (N, C), h (N, H), W (C, 2H),
    U (H, 2H), b (2H,), gates z, n. Ravanelli et al. 2018, arXiv 1803.10225, section III, without batch norm."""
    y, H = np.zeros(h.shape), h.shape[1]
    for i, k in np.ndindex(h.shape):
        z = sigmoid_of(dot(x[i], W[:, k]) + dot(h[i], U[:, k]) + b[k])
        n = max(dot(x[i], W[:, H + k]) + dot(h[i], U[:, H + k]) + b[H + k], 0.0)
        y[i, k] = z * h[i, k] + (1 - z) * n
    return y


def no_recurrence(x: Array, h: Array, W: Array, b: Array) -> Array:
    """relu(xW + b), the control that ignores h; x (N, C), h (N, H), W (C, H), b (H,)."""
    return relu(linear(x, W, b))


def linear_head(h: Array, W: Array, b: Array) -> Array:
    """hW + b; h (N, H), W (H, C), b (C,) -> (N, C). Munkhdalai et al. 2024, arXiv 2403.19709, the linear head."""
    return linear(h, W, b)


def ffn_head(h: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> Array:
    """relu(h W1 + b1) W2 + b2; h (N, H), W1 (H, R), W2 (R, C) -> (N, C). Munkhdalai et al. 2024, the FFN head."""
    return linear(relu(linear(h, W1, b1)), W2, b2)


def ctc_loss(logits: Array, lengths: Ints, labels: Sequence[Ints], blank: int) -> tuple[Array, list[bool]]:
    """-log of the summed probability of all V^n paths that collapse to the label; logits (B, T, V) -> (B,), infeasible.
    Graves et al. 2006, section 3.1. A label that no path gives has loss 0 and is infeasible."""
    B, _, V = logits.shape
    losses, infeasible = np.zeros(B), []
    for b, n in enumerate(lengths):
        logs = []
        for t in range(n):
            top = max(logits[b, t].tolist())
            total = sum(math.exp(v - top) for v in logits[b, t].tolist())
            logs.append([v - top - math.log(total) for v in logits[b, t].tolist()])
        paths = []
        for path in itertools.product(range(V), repeat=n):
            collapsed = [v for v, _ in itertools.groupby(path) if v != blank]
            if collapsed == list(labels[b]):
                paths.append(sum(logs[t][v] for t, v in enumerate(path)))
        infeasible.append(not paths)
        if paths:  # summed in logs, so that an improbable label is not taken for an impossible one
            top = max(paths)
            losses[b] = -top - math.log(sum(math.exp(p - top) for p in paths))
    return losses, infeasible


def hz_to_mel_htk(hz: float) -> float:
    """2595 log10(1 + f / 700). O'Shaughnessy 1987; Young et al., The HTK Book, section 5.4."""
    return 2595.0 * math.log10(1.0 + hz / 700.0)


def mel_to_hz_htk(mel: float) -> float:
    """The inverse of hz_to_mel_htk."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def hz_to_mel_slaney(hz: float) -> float:
    """Mels of 200/3 Hz up to 1000 Hz, above it 27 mels for a factor of 6.4. Slaney 1998, Auditory Toolbox 2, mfcc.m."""
    return hz / (200.0 / 3.0) if hz < 1000.0 else 15.0 + 27.0 * math.log(hz / 1000.0, 6.4)


def mel_to_hz_slaney(mel: float) -> float:
    """The inverse of hz_to_mel_slaney."""
    return mel * (200.0 / 3.0) if mel < 15.0 else 1000.0 * 6.4 ** ((mel - 15.0) / 27.0)


def hz_to_mel_kaldi(hz: float) -> float:
    """1127 ln(1 + f / 700). Povey et al. 2011, The Kaldi speech recognition toolkit; its mel-computations.h."""
    return 1127.0 * math.log(1.0 + hz / 700.0)


def mel_to_hz_kaldi(mel: float) -> float:
    """The inverse of hz_to_mel_kaldi."""
    return 700.0 * (math.exp(mel / 1127.0) - 1.0)


def mel_filters(sample_rate: int, n_fft: int, F: int, low: float, high: float, scale: str = "htk") -> Array:
    """Triangles over F+2 points equally spaced in mel from low to high Hz, linear between the points in Hz (in mel for
    kaldi), at the frequencies k sample_rate / n_fft; (n_fft//2+1, F). Peak 1 for htk (The HTK Book, section 5.4) and
    kaldi, area 1 for slaney (Slaney 1998, Auditory Toolbox 2, mfcc.m)."""
    to_mel, to_hz = {
        "htk": (hz_to_mel_htk, mel_to_hz_htk),
        "slaney": (hz_to_mel_slaney, mel_to_hz_slaney),
        "kaldi": (hz_to_mel_kaldi, mel_to_hz_kaldi),
    }[scale]
    bottom, top = to_mel(low), to_mel(high)
    points = [to_hz(bottom + (top - bottom) * i / (F + 1)) for i in range(F + 2)]
    y = np.zeros((n_fft // 2 + 1, F))
    for k in range(n_fft // 2 + 1):
        hz = k * sample_rate / n_fft
        for f in range(F):
            start, peak, end = points[f : f + 3]
            if scale == "kaldi":
                hz, start, peak, end = to_mel(k * sample_rate / n_fft), to_mel(start), to_mel(peak), to_mel(end)
            if start < hz <= peak:
                y[k, f] = (hz - start) / (peak - start)
            elif peak < hz < end:
                y[k, f] = (end - hz) / (end - peak)
            if scale == "slaney":
                y[k, f] /= (end - start) / 2  # the area of a triangle of height 1
    return y


def log_mel(audio: Array, window: Array, filters: Array, hop: int, n_fft: int, floor: float) -> Array:
    """log(max(|DFT(window x frame)|^2 filters, floor)), T = 1 + (samples - W) // hop frames, no centring, zeros behind
    the frame up to n_fft; audio (samples,), window (W,), filters (n_fft//2+1, F) -> (T, F)."""
    W = len(window)
    T = 0 if len(audio) < W else 1 + (len(audio) - W) // hop
    y = np.zeros((T, filters.shape[1]))
    for t in range(T):
        frame = [float(audio[t * hop + w] * window[w]) for w in range(W)]
        power = np.zeros(n_fft // 2 + 1)
        for k in range(n_fft // 2 + 1):
            real, imaginary = 0.0, 0.0
            for w, v in enumerate(frame):
                # k w is reduced by whole turns first: sin of a large angle would lose digits
                angle = 2.0 * math.pi * (k * w % n_fft) / n_fft
                real, imaginary = real + v * math.cos(angle), imaginary - v * math.sin(angle)
            power[k] = real * real + imaginary * imaginary
        for f in range(filters.shape[1]):
            y[t, f] = math.log(max(dot(power, filters[:, f]), floor))
    return y


def adamw(
    p: Array, g: Array, m: Array, v: Array, step: int, lr: float, beta1: float, beta2: float, eps: float, decay: float
) -> tuple[Array, Array, Array]:
    """p (1 - lr decay) - lr mhat / (sqrt(vhat) + eps), step from 1; gives the new p, m, v, any shape.
    Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2, with the decay times lr as in torch.optim.AdamW."""
    p, m, v = p.copy(), m.copy(), v.copy()
    for i in np.ndindex(p.shape):
        m[i] = beta1 * m[i] + (1 - beta1) * g[i]
        v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i]
        mhat, vhat = m[i] / (1 - beta1**step), v[i] / (1 - beta2**step)
        p[i] = p[i] * (1 - lr * decay) - lr * mhat / (math.sqrt(vhat) + eps)
    return p, m, v


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"swish": swish, "gelu": gelu, "relu": relu}


def norm(x: Array, p: Any, eps: float) -> Array:
    """Layer norm with its parameters in a tree, whose bias may be missing; x (N, C)."""
    return layer_norm(x, p.g, np.zeros(x.shape[1]) if p.b is None else p.b, eps)


def feed_forward(x: Array, p: Any, activation: str = "swish", eps: float = EPS) -> Array:
    """down(swish(up(norm(x)))); x (N, C). Gulati et al. 2020, arXiv 2005.08100, section 2.3."""
    hidden = ACTIVATIONS[activation](linear(norm(x, p.norm, eps), p.up.W, p.up.b))
    return linear(hidden, p.down.W, p.down.b)


def self_attention(x: Array, p: Any, form: Any, lengths: Ints, eps: float = EPS) -> Array:
    """out(attention of query, key, value of norm(x)); x (B, T, C); head a has the columns aD .. aD+D-1. Gulati et al.
    2020, arXiv 2005.08100, section 2.1; positions by one of the schemes above, or by none."""
    C, heads = x.shape[2], form.heads
    D = C // heads

    def alone(rows: Array) -> Array:
        n = rows.shape[0]
        z = norm(rows, p.norm, eps)
        turned = z
        if form.position == "rotary_input":
            turned = rotary(z.reshape(1, n, heads, D), form.rotary_base).reshape(n, C)
        q, k, v = (
            linear(given, m.W, m.b).reshape(1, n, heads, D)
            for given, m in ((turned, p.query), (turned, p.key), (z, p.value))
        )
        if form.position == "rotary":
            q, k = rotary(q, form.rotary_base), rotary(k, form.rotary_base)
        if form.position == "relative":
            r = linear(sinusoids(n, C), p.position.W, None).reshape(2 * n - 1, heads, D)
            y = relative_attention(q, k, v, r, p.position.u, p.position.v, [n], form.reach)
        elif form.position == "shaw":
            y = shaw_attention(q, k, v, p.position.E, form.shaw_left, [n], form.reach)
        else:
            y = attention(q, k, v, [n], form.reach)
        return linear(y.reshape(n, C), p.out.W, p.out.b)

    return each_utterance(alone, x, lengths, C)


def convolution(
    x: Array, p: Any, lengths: Ints, statistics: Any = None, causal: bool = False, activation: str = "swish",
    eps: float = EPS,
) -> Array:  # fmt: skip
    """pointwise2(swish(inner_norm(depthwise(glu(pointwise1(norm(x))))))); x (B, T, C). Gulati et al. 2020, section 2.2;
    inner_norm is the paper's batch norm at inference where there are statistics, else a layer norm or nothing."""

    def alone(rows: Array) -> Array:
        z = glu(linear(norm(rows, p.norm, eps), p.pointwise1.W, p.pointwise1.b))
        bias = np.zeros(z.shape[1]) if p.depthwise.b is None else p.depthwise.b
        z = depthwise_conv(z[None], [z.shape[0]], p.depthwise.W, bias, causal)[0]
        if statistics is not None:
            z = running_norm(z, p.inner_norm.g, p.inner_norm.b, statistics.mean, statistics.var, EPS)
        elif p.inner_norm is not None:
            z = norm(z, p.inner_norm, eps)
        return linear(ACTIVATIONS[activation](z), p.pointwise2.W, p.pointwise2.b)

    return each_utterance(alone, x, lengths, x.shape[2])


def conformer_block(x: Array, p: Any, form: Any, lengths: Ints, statistics: Any = None) -> Array:
    """x = a x + w step(x) for ffn1, attention, conv and ffn2, with (a, w) = (1, 1/2), (1, 1), (1, 1), (1, 1/2), and the
    norm; x (B, T, C). Gulati et al. 2020, section 2.4, equation 1; `form` has what a model may do in another way."""
    how, (one, two, three, four) = (form.activation, form.eps), form.weights

    def alone(rows: Array) -> Array:
        n = [rows.shape[0]]
        z = one[0] * rows + one[1] * feed_forward(rows, p.ffn1, *how)
        z = two[0] * z + two[1] * self_attention(z[None], p.attention, form.attention, n, form.eps)[0]
        z = three[0] * z + three[1] * convolution(z[None], p.conv, n, statistics, form.causal, *how)[0]
        z = four[0] * z + four[1] * feed_forward(z, p.ffn2, *how)
        return norm(z, p.norm, form.eps)

    return each_utterance(alone, x, lengths, x.shape[2])


def subsampling(features: Array, lengths: Ints, p: Any, scale: float = 1.0) -> tuple[Array, list[int]]:
    """scale out(flat(relu(conv(... relu(conv(x)))))), flat over (frequency, channel); features (B, T, F) -> (B, T', C),
    and lengths after each halving, which rounds up. The convolution subsampling of Gulati et al. 2020, section 2,
    figure 1; or with depthwise convolutions and pointwise maps, Rekesh et al. 2023, arXiv 2305.05084."""
    x, n = features[:, :, :, None], list(lengths)
    for conv in p.convs:
        if hasattr(conv, "depthwise"):
            z = depthwise_conv2d(x, n, conv.depthwise.W, conv.depthwise.b)
            rows = linear(z.reshape(-1, z.shape[3]), conv.pointwise.W, conv.pointwise.b)
            x = relu(rows.reshape(*z.shape[:3], -1))
        else:
            x = relu(conv2d(x, n, conv.W, conv.b))
        n = [(m + 1) // 2 for m in n]
    flat = x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3])
    return each_utterance(lambda rows: scale * linear(rows, p.out.W, p.out.b), flat, n, p.out.W.shape[1]), n


def stages(features: Array, lengths: Ints, p: Any, forms: Sequence[Any]) -> tuple[Array, list[int]]:
    """activation(norm(map(x))) of each stage in turn, each utterance alone; features (B, T, F) -> (B, T', C), and the
    lengths. Baevski et al. 2020, arXiv 2006.11477, section 2, where the maps are convolutions."""
    outputs = []
    for b, n in enumerate(lengths):
        x = features[b, :n]
        for q, form in zip(p, forms, strict=True):
            if q.map is not None and q.map.W.ndim == 3:
                bias = np.zeros(q.map.W.shape[2]) if q.map.b is None else q.map.b
                x = conv1d(x[None], [len(x)], q.map.W, bias, form.stride, form.pad)[0]
            elif q.map is not None:
                x = linear(x, q.map.W, q.map.b)
            if form.norm == "layer":
                x = norm(x, q.norm, form.eps)
            elif form.norm == "instance":
                x = instance_norm(x[None], [len(x)], q.norm.g, q.norm.b, form.eps)[0]
            if form.activation is not None:
                x = ACTIVATIONS[form.activation](x)
        outputs.append(x)
    y = np.zeros((len(outputs), max(len(x) for x in outputs), outputs[0].shape[1]))
    for row, x in zip(y, outputs, strict=True):
        row[: len(x)] = x
    return y, [len(x) for x in outputs]


CELLS: dict[str, tuple[Callable[..., Array], str, int]] = {  # the cell, its parameters in order, its count of gates
    "gru": (gru, "WUbc", 3), "indrnn": (indrnn, "Wub", 1), "rnn": (rnn, "WUb", 1), "li_gru": (li_gru, "WUb", 2),
    "none": (no_recurrence, "Wb", 1),
}  # fmt: skip


def hra_conformer(
    features: Array, lengths: Ints, config: Any, p: Any, adapter: Any, cell: str, tasks: Sequence[str],
    statistics: Sequence[Any],
) -> Array:  # fmt: skip
    """x_l = block_l(x'_{l-1}); h_l = cell(x_l, h_{l-1}), h_0 = 0; x'_l = x_l + head_task(h_l); logits = readout(x'_L).
    features (B, T, F) -> (B, T', V). Munkhdalai et al. 2024, arXiv 2403.19709; a row of task "base" has no adapter."""
    if hasattr(config.front_end, "stages"):
        x, frames = stages(features, lengths, p.front_end, config.front_end.stages)
    else:
        x, frames = subsampling(features, lengths, p.front_end, config.front_end.scale)
    logits = np.zeros((x.shape[0], x.shape[1], p.readout.linear.W.shape[1]))
    for b, (n, task) in enumerate(zip(frames, tasks, strict=True)):
        z, h = x[b, :n], None
        for layer, its_statistics in zip(p.layers, statistics, strict=True):
            z = conformer_block(z[None], layer, config.form, [n], its_statistics)[0]
            if task == "base":
                continue
            step, names, gates = CELLS[cell]
            h = np.zeros((n, adapter.controller.W.shape[1] // gates)) if h is None else h
            h = step(z, h, *(getattr(adapter.controller, name) for name in names))
            head = adapter.heads[task]
            if hasattr(head, "up"):
                z = z + ffn_head(h, head.up.W, head.up.b, head.down.W, head.down.b)
            else:
                z = z + linear_head(h, head.W, head.b)
        if p.readout.norm is not None:
            z = norm(z, p.readout.norm, config.out_norm)
        logits[b, :n] = linear(z, p.readout.linear.W, p.readout.linear.b)
    return logits
