"""Twins for the CPU: loops that Numba compiles, one thread each, called without the interpreter's lock.

A twin has the signature, the results and the cache of its reference in `minihra.layers`. It may write several arrays in
one pass, and leave out of the cache what its own backward does not read. Products stay with NumPy.
"""
