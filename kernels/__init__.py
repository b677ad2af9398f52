"""Twins of hot layers: Numba for the CPU, CUDA text for the GPU, each tested against its reference in `minihra.layers`.

None exists yet. Everything here is optional: with this folder deleted the library runs on the reference layers alone.
"""
