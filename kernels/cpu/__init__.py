"""Twins for the CPU: loops that Numba compiles, one thread each, called without the interpreter's lock.

A twin has the signature, the results and the cache of its reference in `minihra.layers` or `minihra.blocks`, where the
equations stand. One pass over an array writes what the reference needs several for; products stay with NumPy, but for
those of the front end of a frozen model and of mixed-task heads (product.py, subsampling.py, heads.py).
"""
