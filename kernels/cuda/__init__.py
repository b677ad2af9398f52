"""Twins for one NVIDIA GPU: kernels in CUDA C++ (*.cu), each beside the Python that calls it.

A twin has the signature, the results and the cache of its reference in `minihra.layers`, where the equations stand.
Products go to cuBLAS (products.py); what is left of a layer is one kernel or two. launch.py compiles and starts them.
"""
