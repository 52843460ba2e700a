"""What formats share: weights turned so that each block has a lane of its own, and float16 among bytes.

Turned, element `16 * i + k` is the i-th weight of the k-th block (or part of one):
a loop over i works on sixteen blocks at once, and adds up each block's sums in the
order of its weights, as a loop over one block would.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.halves import HALF_INFINITY
from aq2_pipeline.kernels.lanes import LANES, load, magnitude, splat, transpose, where
from aq2_pipeline.kernels.widening import float_from_half

ZERO, ONE = np.float32(0), np.float32(1)

#: What a sum of squares, times this, is below, is smaller: whatever a few dozen additions on both sides lost.
SURELY = np.float32(1 - 2.0**-16)


@helper
def turn_16(values: Any, target: Any) -> None:
    """Turn 16 blocks of 16."""
    transpose(values, 0, 16, target, 0)


@helper
def turn_32(values: Any, target: Any) -> None:
    """Turn 16 blocks of 32."""
    transpose(values, 0, 32, target, 0)
    transpose(values, 16, 32, target, 256)


@helper
def furthest(columns: Any) -> Any:
    """Return, of each lane, the first weight of the largest magnitude, with its sign."""
    found, size = splat(ZERO), splat(ZERO)
    for i in range(0, columns.size, LANES):
        x = load(columns, i)
        larger = magnitude(x) > size
        found, size = where(larger, x, found), where(larger, magnitude(x), size)
    return found


@helper
def inverse_or_zero(x: Any) -> Any:
    """Return `1 / x`, and 0 where x is."""
    return where(x == ZERO, splat(ZERO), ONE / x)


@helper
def finite_inverse(x: Any) -> Any:
    """Return `1 / x`, and 0 where x is 0 or so small that the inverse would be infinite."""
    inverse = ONE / x
    return where(magnitude(inverse) > LARGEST, splat(ZERO), inverse)


@helper
def store_half(data: Any, at: Any, bits: Any) -> Any:
    """Write the bits of a float16; return whether it is finite."""
    data[at], data[at + 1] = np.uint8(bits & 255), np.uint8(bits >> 8)
    return bits & 0x7FFF != HALF_INFINITY


@helper
def half_at(data: Any, at: Any) -> Any:
    """Return a float16 as float32; infinity or NaN as they are."""
    return float_from_half(np.int32(data[at]) | np.int32(data[at + 1]) << 8)
