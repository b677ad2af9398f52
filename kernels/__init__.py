"""Twins of hot layers: Numba for the CPU, each tested against its reference in `minihra.layers`.

Everything here is optional: with this folder deleted the library runs on the reference layers alone, slower.
"""
