"""Sums that do not depend on how the work was cut: fixed blocks, fixed lanes, a fixed order.

A row is summed in blocks of 4,096 values: sixteen lanes, in float64, each of
every sixteenth value; at the end of a block its lanes are added by halves, then
to the row's sums. A block of errors ends with the group that fills it, and a
group begins at the first lane. Moments of blocks are combined with the pairwise
formulas of P. Pebay, "Formulas for robust, one-pass parallel computation of
covariances and arbitrary-order statistical moments", Sandia SAND2008-6212.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import INFINITY_BITS, MAGNITUDE, bits_of, float_of, ordered
from aq2_pipeline.kernels.lanes import (
    LANES,
    largest,
    load,
    magnitude,
    maximum,
    minimum,
    plus_product,
    reinterpreted,
    splat,
    store,
    to,
    total,
    where,
)

BLOCK_SIZE = 4096
N_LANES = LANES

#: What an error kernel sums, in `sums` and, times `N_LANES`, in `lanes`. The product of weight and decoded is half
#: of what the squares of both exceed the squared error by, and needs no sum of its own.
SQUARED_ERROR, SQUARED_WEIGHT, SQUARED_DECODED, MAX_ERROR = range(4)
N_ERROR_SUMS = 4

#: What `add_moments` counts, and the state that it carries from block to block.
ZEROS, NON_FINITE = range(2)
N_COUNTS = 2
N_FINITE, MEAN, M2, M3, M4, MIN, MAX = range(7)
N_MOMENTS = 7

#: An outlier lies further than this many standard deviations from the mean.
OUTLIER_STDS = 6.0


def deviation(n: Any, m2: Any) -> Any:
    """Return the standard deviation of n values; NaN of none. For arrays in NumPy and for numbers in bodies."""
    return np.sqrt(m2 / n)


def is_far(mean: Any, reach: Any, low: Any, high: Any) -> Any:
    """Whether an extreme lies further than the reach from the mean: most rows have no outlier to count."""
    return np.maximum(high - mean, mean - low) > reach


def shape_figures(n: Any, m2: Any, m4: Any, low: Any, high: Any) -> Any:
    """Return the largest magnitude and the excess kurtosis; NaN where no value deviates."""
    return np.maximum(np.abs(low), np.abs(high)), n * m4 / (m2 * m2) - 3.0


@helper
def lanes_of(lanes: Any) -> Any:
    """Return the lanes of each sum as vectors, for a loop to keep in registers."""
    return (
        load(lanes, SQUARED_ERROR * N_LANES),
        load(lanes, SQUARED_WEIGHT * N_LANES),
        load(lanes, SQUARED_DECODED * N_LANES),
        to(load(lanes, MAX_ERROR * N_LANES), np.float32),
    )


@helper
def with_errors(sums: Any, weights: Any, decoded: Any) -> Any:
    """Return the lanes of each sum with sixteen values more; the squares of what they decode to are not added here.

    The error is float32's, exact where a value lies within a factor of two of what it
    decodes to (Sterbenz) or decodes to 0. Squares of float32 are exact in float64.
    """
    error = weights - decoded
    e, w = to(error, np.float64), to(weights, np.float64)
    return plus_product(sums[0], e, e), plus_product(sums[1], w, w), sums[2], maximum(sums[3], magnitude(error))


@helper
def keep_lanes(sums: Any, lanes: Any) -> None:
    """Write the vectors back."""
    keep_wide_lanes((sums[0], sums[1], sums[2], to(sums[3], np.float64)), lanes)


@helper
def wide_lanes_of(lanes: Any) -> Any:
    """Return the lanes of each sum as vectors of float64, for `with_exact_errors`."""
    return (
        load(lanes, SQUARED_ERROR * N_LANES),
        load(lanes, SQUARED_WEIGHT * N_LANES),
        load(lanes, SQUARED_DECODED * N_LANES),
        load(lanes, MAX_ERROR * N_LANES),
    )


@helper
def with_exact_errors(sums: Any, weights: Any, decoded: Any, importance: Any) -> Any:
    """Return the lanes of each sum with sixteen values more, whatever they decode to.

    `importance`, float64 or None, multiplies the squares.
    """
    x, d = to(weights, np.float64), to(decoded, np.float64)
    e = x - d
    size = maximum(e, np.float64(0) - e)
    if importance is None:
        return sums[0] + e * e, plus_product(sums[1], x, x), plus_product(sums[2], d, d), maximum(sums[3], size)
    return (
        sums[0] + e * e * importance,
        sums[1] + x * x * importance,
        sums[2] + d * d * importance,
        maximum(sums[3], size),
    )


@helper
def keep_wide_lanes(sums: Any, lanes: Any) -> None:
    """Write the vectors of `wide_lanes_of` back."""
    store(lanes, SQUARED_ERROR * N_LANES, sums[0])
    store(lanes, SQUARED_WEIGHT * N_LANES, sums[1])
    store(lanes, SQUARED_DECODED * N_LANES, sums[2])
    store(lanes, MAX_ERROR * N_LANES, sums[3])


@helper
def flushed(sums: Any, lanes: Any, totals: Any) -> Any:
    """Add the vectors of a block that is full to the row's totals; return those that the next begins with."""
    keep_wide_lanes(sums, lanes)
    flush_lanes(lanes, totals)
    return wide_lanes_of(lanes)


@helper
def add_error(weight: Any, decoded: Any, lane: Any, lanes: Any) -> None:
    """Add one value and what it decodes to."""
    w, d = np.float64(weight), np.float64(decoded)
    e = np.float64(np.float32(w - d))
    lanes[SQUARED_ERROR * N_LANES + lane] += e * e
    lanes[SQUARED_WEIGHT * N_LANES + lane] += w * w
    lanes[SQUARED_DECODED * N_LANES + lane] += d * d
    lanes[MAX_ERROR * N_LANES + lane] = max(lanes[MAX_ERROR * N_LANES + lane], abs(e))


@helper
def add_value(weight: Any, decoded: Any, position: Any, lanes: Any, sums: Any) -> None:
    """Add the value at a position of its row, and the block that it ends: for codecs that go value by value."""
    add_error(weight, decoded, position % N_LANES, lanes)
    if (position + 1) % BLOCK_SIZE == 0:
        flush_lanes(lanes, sums)


@helper
def flush_lanes(lanes: Any, sums: Any) -> None:
    """Add the lanes of a block to the row's sums and empty them."""
    for k in range(MAX_ERROR):
        sums[k] += total(load(lanes, k * N_LANES))
    sums[MAX_ERROR] = max(sums[MAX_ERROR], largest(load(lanes, MAX_ERROR * N_LANES)))
    lanes[:] = 0.0


@helper
def block_summary(values: Any) -> Any:
    """Return (zeros, non-finite values, min, max, sum) of one block; the last three are of the finite values."""
    pattern, n = values.view(np.int32), values.size - values.size % LANES
    zeros, bad, sums = splat(np.int32(0)), splat(np.int32(0)), splat(np.float64(0))
    lows, highs = splat(INFINITY_BITS), splat(np.int32(~INFINITY_BITS))
    for at in range(0, n, LANES):
        bits = load(pattern, at)
        magnitudes = bits & MAGNITUDE
        finite = magnitudes < INFINITY_BITS
        zeros = zeros + where(magnitudes == np.int32(0), splat(np.int32(1)), splat(np.int32(0)))
        bad = bad + where(finite, splat(np.int32(0)), splat(np.int32(1)))
        keys = bits ^ ((bits >> np.int32(31)) & MAGNITUDE)  # `ordered`
        lows = minimum(lows, where(finite, keys, lows))
        highs = maximum(highs, where(finite, keys, highs))
        sums = sums + to(where(finite, reinterpreted(bits, np.float32), splat(np.float32(0))), np.float64)
    n_zeros, n_bad, rest = np.int64(total(zeros)), np.int64(total(bad)), total(sums)
    low, high = np.int32(~largest(lows ^ np.int32(-1))), largest(highs)
    for j in range(n, values.size):
        size = np.int32(pattern[j] & MAGNITUDE)
        if size >= INFINITY_BITS:
            n_bad += 1
            continue
        n_zeros += size == 0
        key = ordered(pattern[j])
        low, high = min(low, key), max(high, key)
        rest += np.float64(values[j])
    return n_zeros, n_bad, np.float64(float_of(ordered(low))), np.float64(float_of(ordered(high))), rest


@helper
def block_moments(values: Any, mean: Any) -> Any:
    """Return the sums of the second, third and fourth powers of (value - mean) of one block's finite values."""
    n = values.size - values.size % LANES
    squares, cubes, fourths = splat(np.float64(0)), splat(np.float64(0)), splat(np.float64(0))
    for at in range(0, n, LANES):
        block = load(values, at)
        finite = (reinterpreted(block, np.int32) & MAGNITUDE) < INFINITY_BITS
        d = where(finite, to(block, np.float64) - mean, splat(np.float64(0)))
        square = d * d
        squares = squares + square
        cubes = cubes + square * d
        fourths = fourths + square * square
    m2, m3, m4 = total(squares), total(cubes), total(fourths)
    for j in range(n, values.size):
        if (bits_of(values[j]) & MAGNITUDE) < INFINITY_BITS:
            d1 = np.float64(values[j]) - mean
            m2 += d1 * d1
            m3 += d1 * d1 * d1
            m4 += (d1 * d1) * (d1 * d1)
    return m2, m3, m4


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
def add_moments(values: Any, counts: Any, state: Any) -> None:
    """Add a row, or a piece of one that begins at a block, to its moments.

    The moments are those of the finite values; before the first, `state` is 0,
    its minimum infinite and its maximum minus infinite.
    """
    n, mean = state[N_FINITE], state[MEAN]
    m2, m3, m4 = state[M2], state[M3], state[M4]
    for start in range(0, values.size, BLOCK_SIZE):
        block = values[start : start + BLOCK_SIZE]
        n_zeros, n_bad, low, high, block_sum = block_summary(block)
        counts[ZEROS] += n_zeros
        counts[NON_FINITE] += n_bad
        n_block = block.size - n_bad
        if n_block == 0:
            continue
        mean_b = block_sum / n_block
        state[MIN], state[MAX] = min(state[MIN], low), max(state[MAX], high)
        b2, b3, b4 = block_moments(block, mean_b)
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
