"""Built-in voices: a small formant synthesiser, so that everything can be tried without a recording.

It stands in for data; what is measured on it is no result. A glottal source (pulses with jitter, and breath) goes
through a cascade of four resonators (Klatt 1980, J. Acoust. Soc. Am. 67, section II), whose frequencies glide from
phoneme to phoneme; consonants add bands of noise. Vowels have the mean formants of the men in Peterson and Barney
1952 (J. Acoust. Soc. Am. 24, table II).

A voice differs in pitch, length of the vocal tract, tempo, breathiness, its way of saying each vowel, and background
noise. SEEN and UNSEEN voices come from disjoint ranges of the tract's length: unseen ones are shorter or longer than
any seen one, and shift their vowels further.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.signal import butter, lfilter

from minihra.arrays import Array

RATE = 8000  # Hz
BLOCK = 40  # samples, 5 ms, in which the resonators stand still
BANDWIDTHS = (60.0, 90.0, 150.0, 250.0)  # Hz, of the four formants

VOWELS = {
    "iy": (270, 2290, 3010), "ih": (390, 1990, 2550), "eh": (530, 1840, 2480), "aa": (730, 1090, 2440),
    "ao": (570, 840, 2410), "uh": (440, 1020, 2240), "uw": (300, 870, 2240), "ah": (640, 1190, 2390),
}  # fmt: skip
"""Formants (Hz) of the vowels."""

SONORANTS = {
    "m": (250, 1000, 2200), "n": (250, 1500, 2500), "l": (360, 1100, 2700), "r": (420, 1200, 1600),
    "w": (300, 700, 2200), "y": (270, 2250, 3000), "v": (280, 1100, 2300), "z": (280, 1500, 2500),
}  # fmt: skip
"""Formants (Hz) of voiced consonants, which are quieter."""

NOISES = {
    "s": (2600, 3900, 0.12), "z": (2600, 3900, 0.06), "f": (1000, 3800, 0.04), "v": (1000, 3800, 0.015),
    "th": (1400, 3900, 0.03), "p": (400, 1500, 0.08), "t": (2400, 3800, 0.12), "k": (1300, 2600, 0.12),
    "d": (2400, 3800, 0.06), "g": (1300, 2600, 0.06),
}  # fmt: skip
"""Band (Hz) and loudness of the noise of a consonant."""

STOPS = ("p", "t", "k", "d", "g")
SECONDS = {"vowel": 0.11, "sonorant": 0.06, "noise": 0.09, "closure": 0.035, "burst": 0.025}

SPELLING = {
    "zero": "z ih r ao uw", "one": "w ah n", "two": "t uw", "three": "th r iy", "four": "f ao r", "five": "f aa ih v",
    "six": "s ih k s", "seven": "s eh v ah n", "eight": "eh iy t", "nine": "n aa ih n", "yes": "y eh s",
    "no": "n ao uw", "up": "ah p", "down": "d aa uw n", "left": "l eh f t", "right": "r aa ih t", "go": "g ao uw",
    "stop": "s t aa p", "on": "aa n", "off": "ao f",
}  # fmt: skip
WORDS = tuple(SPELLING)

SEEN, UNSEEN = "seen", "unseen"


class Range(NamedTuple):
    """From where the voices of a kind are drawn; of several spans, each is as likely."""

    tract: tuple[tuple[float, float], ...]  # length, as a share of the mean: formants are divided by it
    shift: tuple[float, float]  # of a vowel's formants, as a share, up or down
    pitch: tuple[tuple[float, float], ...]  # Hz
    tempo: tuple[float, float]  # durations are divided by it


RANGES = {
    SEEN: Range(((0.94, 1.06),), (0.0, 0.03), ((95.0, 210.0),), (0.9, 1.1)),
    UNSEEN: Range(((0.72, 0.80), (1.22, 1.33)), (0.06, 0.13), ((65.0, 85.0), (230.0, 300.0)), (0.75, 1.3)),
}
"""The ranges of the two kinds of voices."""


@dataclass(frozen=True)
class Voice:
    """A speaker."""

    name: str
    tract: float
    pitch: float  # Hz
    tempo: float
    breath: float  # loudness of the breath, as a share of the pulses'
    noise: float  # loudness of the background
    shifts: tuple[tuple[float, float], ...]  # of F1 and F2 of each vowel, as shares


def voice(number: int, kind: str = SEEN, seed: int = 1) -> Voice:
    """Return a voice; the same arguments give the same one.

    Raises:
        ValueError: the kind is neither "seen" nor "unseen".
    """
    if kind not in RANGES:
        raise ValueError(f"a voice is {SEEN!r} or {UNSEEN!r}, got {kind!r}")
    rng = np.random.default_rng([seed, number, kind == UNSEEN])
    limits = RANGES[kind]

    def one_of(spans: tuple[tuple[float, float], ...]) -> float:
        return float(rng.uniform(*spans[rng.integers(len(spans))]))

    size = rng.uniform(*limits.shift, (len(VOWELS), 2)) * rng.choice([-1, 1], (len(VOWELS), 2))
    return Voice(
        f"{kind}-{number:02d}",
        one_of(limits.tract),
        one_of(limits.pitch),
        float(rng.uniform(*limits.tempo)),
        float(rng.uniform(0.01, 0.06)),
        float(rng.uniform(0.0005, 0.003)),
        tuple((float(a), float(b)) for a, b in size),
    )


class Segment(NamedTuple):
    """A stretch of sound, all of it of one kind."""

    phoneme: str
    seconds: float
    voicing: float  # loudness of the glottal source
    noise: float  # loudness of the noise band


def segments(word: str) -> list[Segment]:
    """Return the segments of a word at tempo 1."""
    found = []
    for phoneme in SPELLING[word].split():
        if phoneme in VOWELS:
            found.append(Segment(phoneme, SECONDS["vowel"], 1.0, 0.0))
        elif phoneme in STOPS:
            found.append(Segment(phoneme, SECONDS["closure"], 0.0, 0.0))
            found.append(Segment(phoneme, SECONDS["burst"], 0.0, NOISES[phoneme][2]))
        elif phoneme in SONORANTS:
            found.append(Segment(phoneme, SECONDS["sonorant"], 0.4, NOISES.get(phoneme, (0, 0, 0.0))[2]))
        else:
            found.append(Segment(phoneme, SECONDS["noise"], 0.0, NOISES[phoneme][2]))
    return found


def formants(phoneme: str, speaker: Voice) -> Array:
    """Return the four formants (4,) in Hz of a phoneme in a voice; a noise leaves the mouth as a neutral vowel does."""
    base = np.array([*(VOWELS | SONORANTS).get(phoneme, (500, 1500, 2500)), 3400.0])
    if phoneme in VOWELS:
        base[:2] *= 1 + np.array(speaker.shifts[list(VOWELS).index(phoneme)])
    return np.minimum(base / speaker.tract, 0.48 * RATE)


def say(word: str, speaker: Voice, take: int) -> Array:
    """Return a recording (n,), float32 in (-1, 1), of a word; takes differ a little in tempo, pitch and loudness.

    Raises:
        ValueError: the word is not one of WORDS.
    """
    if word not in SPELLING:
        raise ValueError(f"unknown word {word!r}; known: {', '.join(WORDS)}")
    rng = np.random.default_rng([WORDS.index(word), take, *np.frombuffer(repr(speaker).encode(), np.uint8)])
    parts = segments(word)
    lengths = [
        max(1, round(part.seconds / speaker.tempo * rng.uniform(0.9, 1.1) * RATE / BLOCK)) * BLOCK for part in parts
    ]
    n = sum(lengths)
    edges = np.cumsum([0, *lengths])
    middles = (edges[:-1] + edges[1:]) / 2

    def glide(values: list[float]) -> Array:
        return np.interp(np.arange(n), middles, values)

    voicing = glide([part.voicing for part in parts])
    sound = resonate(
        source(n, speaker, rng) * voicing, np.stack([formants(part.phoneme, speaker) for part in parts]), middles
    )
    sound /= np.abs(sound).max() + 1e-9
    for part, start, stop in zip(parts, edges[:-1], edges[1:], strict=True):
        if part.noise:
            low, high, _ = NOISES[part.phoneme]
            band = np.clip(np.array([low, high]) / speaker.tract, 100, 0.49 * RATE)
            b, a = butter(2, band, "bandpass", fs=RATE)
            shape = np.minimum(1, np.minimum(np.arange(stop - start), np.arange(stop - start)[::-1]) / BLOCK)
            sound[start:stop] += 4 * part.noise * shape * lfilter(b, a, rng.standard_normal(stop - start))
    sound += speaker.noise * rng.standard_normal(n)
    return (sound * (rng.uniform(0.3, 0.7) / np.abs(sound).max())).astype(np.float32)


def source(n: int, speaker: Voice, rng: np.random.Generator) -> Array:
    """Return n samples of the glottal source: pulses at a falling, jittered pitch, and breath."""
    pitch = speaker.pitch * rng.uniform(0.95, 1.05) * np.linspace(1.06, 0.9, n)
    pitch = pitch * (1 + 0.01 * np.repeat(rng.standard_normal(n // BLOCK + 1), BLOCK)[:n])
    phase = np.cumsum(pitch / RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0)
    return lfilter([1.0], [1.0, -0.9], pulses) + speaker.breath * rng.standard_normal(n)


def resonate(sound: Array, targets: Array, middles: Array) -> Array:
    """Return `sound` (n,) after four resonators in a row, gliding between `targets` (P, 4) Hz at sample `middles` (P,).

    y_t = A x_t + B y_{t-1} + C y_{t-2} with the coefficients of Klatt 1980, equation 2.
    """
    for f, bandwidth in enumerate(BANDWIDTHS):
        out, state = np.empty_like(sound), np.zeros(2)
        c = -np.exp(-2 * np.pi * bandwidth / RATE)
        for start in range(0, len(sound), BLOCK):
            hertz = np.interp(start + BLOCK / 2, middles, targets[:, f])
            b = 2 * np.exp(-np.pi * bandwidth / RATE) * np.cos(2 * np.pi * hertz / RATE)
            stop = start + BLOCK
            out[start:stop], state = lfilter([1 - b - c], [1.0, -b, -c], sound[start:stop], zi=state)
        sound = out
    return sound


def corpus(speakers: Iterable[Voice], words: Iterable[str], takes: Iterable[int]) -> Iterator[tuple[Array, str, str]]:
    """Yield (samples, text, name of the voice) for every voice, word and take."""
    words, takes = list(words), list(takes)
    for speaker in speakers:
        for word in words:
            for take in takes:
                yield say(word, speaker, take), word, speaker.name
