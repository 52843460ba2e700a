"""Logarithms and powers over lanes that have the same bits on every CPU: polynomials of `+` and `*`, no libm.

The polynomials interpolate at Chebyshev nodes, and are within 4.5e-8 of log2(1 + t) / t and 2e-9 of 2**f. What
is left is float32's rounding: `power` is within 2.5e-6 of its result, for bases from the smallest normal float on
and exponents from -0.7 to 0.7; `tests/kernels/test_powers.py` compares with NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import ROUND
from aq2_pipeline.kernels.lanes import reinterpreted, splat, to

#: The highest power first: of log2(1 + t) / t for mantissas 1 + t from sqrt(1/2) to sqrt(2), of 2**f for |f| <= 1/2.
LOG2 = tuple(map(np.float32, (
    0.12614846229553223, -0.20742103457450867, 0.21566985547542572, -0.23892034590244293, 0.2879183292388916,
    -0.36070483922958374, 0.48091059923171997, -0.7213473320007324, 1.4426950216293335,
)))  # fmt: skip
EXP2 = tuple(map(np.float32, (
    0.00015469732170458883, 0.0013400432653725147, 0.00961802527308464, 0.05550327152013779, 0.24022650718688965,
    0.6931471824645996, 1.0,
)))  # fmt: skip
#: The bits of sqrt(1/2), from which on a mantissa counts for the next exponent.
ROOT_BITS = np.int32(0x3F3504F3)


@helper
def log2(x: Any) -> Any:
    """Return the binary logarithm of positive normal floats."""
    pattern = reinterpreted(x, np.int32)
    exponent = (pattern - ROOT_BITS) >> np.int32(23)
    t = reinterpreted(pattern - (exponent << np.int32(23)), np.float32) - np.float32(1)
    found = splat(LOG2[0])
    for k in range(1, 9):
        found = found * t + LOG2[k]
    return to(exponent, np.float32) + found * t


@helper
def exp2(x: Any) -> Any:
    """Return two to the power of floats from -126 to 127."""
    whole = (x + ROUND) - ROUND
    f = x - whole
    found = splat(EXP2[0])
    for k in range(1, 7):
        found = found * f + EXP2[k]
    return reinterpreted(reinterpreted(found, np.int32) + (to(whole, np.int32) << np.int32(23)), np.float32)


@helper
def power(x: Any, exponent: Any) -> Any:
    """Return positive normal floats to the power of a number."""
    return exp2(log2(x) * exponent)
