"""Sums that do not depend on how the work was cut: fixed blocks, fixed lanes, a fixed order.

A row is summed in blocks of 4,096 values. Value *i* of a block goes to lane
`i % 64`; at the end of a block its lanes are added in order, in float64, to the
row's sums. The lanes also let LLVM vectorise without reassociating: neighbours
go to different accumulators. Moments of blocks are combined with the pairwise
formulas of P. Pebay, "Formulas for robust, one-pass parallel computation of
covariances and arbitrary-order statistical moments", Sandia SAND2008-6212.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import INFINITY_BITS, MAGNITUDE, float_of, ordered

BLOCK_SIZE = 4096
N_LANES = 64

#: What an error kernel sums, in `sums` and, times `N_LANES`, in `lanes`.
SQUARED_ERROR, SQUARED_WEIGHT, SQUARED_DECODED, PRODUCT, MAX_ERROR = range(5)
N_ERROR_SUMS = 5

#: Where each sum's lanes begin.
_LANES = tuple(np.uint64(k * N_LANES) for k in range(N_ERROR_SUMS))

#: What `add_moments` counts, and the state that it carries from block to block.
ZEROS, NON_FINITE = range(2)
N_COUNTS = 2
N_FINITE, MEAN, M2, M3, M4, MIN, MAX = range(7)
N_MOMENTS = 7


@helper
def add_error(weight: Any, decoded: Any, lane: Any, lanes: Any) -> None:
    """Add one value and what it decodes to.

    The index is unsigned because Numba lets a signed one count from the end: that
    test a value kept the loops around this from vectorising (3.4 ms per million
    weights against 0.9).
    """
    at = np.uint64(lane)
    w, d = np.float64(weight), np.float64(decoded)
    e = w - d
    lanes[at + _LANES[SQUARED_ERROR]] += e * e
    lanes[at + _LANES[SQUARED_WEIGHT]] += w * w
    lanes[at + _LANES[SQUARED_DECODED]] += d * d
    lanes[at + _LANES[PRODUCT]] += w * d
    lanes[at + _LANES[MAX_ERROR]] = max(lanes[at + _LANES[MAX_ERROR]], abs(e))


@helper
def add_value(weight: Any, decoded: Any, position: Any, lanes: Any, sums: Any) -> None:
    """Add the value at a position of its row, and the block that it ends: for codecs that go value by value."""
    add_error(weight, decoded, position % N_LANES, lanes)
    if (position + 1) % BLOCK_SIZE == 0:
        flush_lanes(lanes, sums)


@helper
def flush_lanes(lanes: Any, sums: Any) -> None:
    """Add the lanes of a block to the row's sums, in order, and empty them."""
    for k in range(MAX_ERROR):
        total = 0.0
        for i in range(N_LANES):
            total += lanes[k * N_LANES + i]
            lanes[k * N_LANES + i] = 0.0
        sums[k] += total
    for i in range(N_LANES):
        sums[MAX_ERROR] = max(sums[MAX_ERROR], lanes[MAX_ERROR * N_LANES + i])
        lanes[MAX_ERROR * N_LANES + i] = 0.0


@helper
def block_mean(values: Any, lanes: Any) -> Any:
    """Return (number of finite values, their mean) of one block."""
    pattern = values.view(np.int32)
    n_finite = 0
    lanes[:N_LANES] = 0.0
    for start in range(0, values.size, N_LANES):
        block, bits = values[start : start + N_LANES], pattern[start : start + N_LANES]
        for i in range(block.size):
            finite = (bits[i] & MAGNITUDE) < INFINITY_BITS
            n_finite += finite
            lanes[i] += np.float64(block[i]) if finite else 0.0
    total = 0.0
    for i in range(N_LANES):
        total += lanes[i]
    return n_finite, total / max(n_finite, 1)


@helper
def block_moments(values: Any, mean: Any, lanes: Any) -> Any:
    """Return the sums of the second, third and fourth powers of (value - mean) of one block."""
    pattern = values.view(np.int32)
    lanes[: 3 * N_LANES] = 0.0
    for start in range(0, values.size, N_LANES):
        block, bits = values[start : start + N_LANES], pattern[start : start + N_LANES]
        for i in range(block.size):
            d = np.float64(block[i]) - mean if (bits[i] & MAGNITUDE) < INFINITY_BITS else 0.0
            square = d * d
            lanes[i] += square
            lanes[N_LANES + i] += square * d
            lanes[2 * N_LANES + i] += square * square
    m2, m3, m4 = 0.0, 0.0, 0.0
    for i in range(N_LANES):
        m2 += lanes[i]
        m3 += lanes[N_LANES + i]
        m4 += lanes[2 * N_LANES + i]
    return m2, m3, m4


@helper
def count_and_range(values: Any) -> Any:
    """Return (zeros, non-finite values, min, max); the range is that of the finite values."""
    pattern = values.view(np.int32)
    n_zeros, n_bad = 0, 0
    low, high = INFINITY_BITS, np.int32(~INFINITY_BITS)
    for j in range(values.size):
        magnitude = np.int32(pattern[j] & MAGNITUDE)
        finite = magnitude < INFINITY_BITS
        key = ordered(pattern[j])
        n_zeros += magnitude == 0
        n_bad += not finite
        low = min(low, key if finite else low)
        high = max(high, key if finite else high)
    return n_zeros, n_bad, np.float64(float_of(ordered(low))), np.float64(float_of(ordered(high)))


@helper
def count_outliers(values: Any, mean: Any, reach: Any) -> Any:
    """Count the finite values further than `reach` from the mean."""
    pattern = values.view(np.int32)
    n = 0
    for j in range(values.size):
        finite = (pattern[j] & MAGNITUDE) < INFINITY_BITS
        n += finite and abs(np.float64(values[j]) - mean) > reach
    return n


@helper
def add_moments(values: Any, lanes: Any, counts: Any, state: Any) -> None:
    """Add a row, or a piece of one that begins at a block, to its moments.

    The moments are those of the finite values; before the first, `state` is 0,
    its minimum infinite and its maximum minus infinite.
    """
    n, mean = state[N_FINITE], state[MEAN]
    m2, m3, m4 = state[M2], state[M3], state[M4]
    for start in range(0, values.size, BLOCK_SIZE):
        block = values[start : start + BLOCK_SIZE]
        n_zeros, n_bad, low, high = count_and_range(block)
        counts[ZEROS] += n_zeros
        counts[NON_FINITE] += n_bad
        n_block, mean_b = block_mean(block, lanes)
        if n_block == 0:
            continue
        state[MIN], state[MAX] = min(state[MIN], low), max(state[MAX], high)
        b2, b3, b4 = block_moments(block, mean_b, lanes)
        na, nb = n, np.float64(n_block)
        n = na + nb
        delta = mean_b - mean
        d2 = delta * delta
        cross = na * nb / n
        m4 += b4 + d2 * d2 * cross * (na * na - na * nb + nb * nb) / (n * n)
        m4 += 6.0 * d2 * (na * na * b2 + nb * nb * m2) / (n * n) + 4.0 * delta * (na * b3 - nb * m3) / n
        m3 += b3 + delta * d2 * cross * (na - nb) / n + 3.0 * delta * (na * b2 - nb * m2) / n
        m2 += b2 + d2 * cross
        mean += delta * nb / n
    state[N_FINITE], state[MEAN] = n, mean
    state[M2], state[M3], state[M4] = m2, m3, m4
