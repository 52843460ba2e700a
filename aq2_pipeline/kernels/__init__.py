"""Bare loops over flat arrays: NumPy and Numba only, no Arrow, no engine.

A kernel reads contiguous read-only inputs, writes into outputs that the caller
allocated, allocates nothing, raises nothing and returns an int64 status: -1, or
the position of the first value that it cannot take.
"""

from aq2_pipeline.kernels._jit import DECODE, ENCODE, ERROR, MEASURE, helper, kernel

__all__ = ["DECODE", "ENCODE", "ERROR", "MEASURE", "helper", "kernel"]
