"""The search that Q3_K and Q6_K share: integer scales of 16 sub-blocks beside one float16 scale, `d * scale * code`.

What is stored is searched, not what is then rounded: with `d` fixed a sub-block's
scale is one of few integers, and its error with the codes nearest to its weights
says which. `d` leaves the largest scale some room, as the best one is seldom where
the weight furthest from zero has the last code. Last, `d` is fitted to the codes.
Lane k is the k-th sub-block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.blocks.columns import ONE, ZERO, furthest, inverse_or_zero
from aq2_pipeline.kernels.halves import rounded_to_half
from aq2_pipeline.kernels.lanes import (
    load,
    magnitude,
    maximum,
    minimum,
    nearest,
    shared_largest,
    shared_total,
    splat,
    where,
)

#: The least and the largest magnitude of a float16 that is not 0.
LEAST_HALF, LARGEST_HALF = np.float32(2.0**-24), np.float32(65504)

_FAR = np.float32(np.finfo(np.float32).max)
_SMALL = np.float32(1e-30)


@helper
def within(x: Any, low: Any, high: Any) -> Any:
    """Return the nearest integers from `low` to `high`."""
    return minimum(maximum(nearest(x), low), high)


@helper
def sums_of(columns: Any, weights: Any, inverse: Any, low: Any, high: Any) -> Any:
    """Return the sums of weight times code and of code squared, of the codes that are nearest."""
    xq, qq = splat(ZERO), splat(ZERO)
    for i in range(0, 256, 16):
        x = load(columns, i)
        q = within(x * inverse, low, high)
        wq = q if weights is None else q * load(weights, i)
        xq, qq = xq + x * wq, qq + q * wq
    return xq, qq


@helper
def relative_error(columns: Any, weights: Any, inverse: Any, low: Any, high: Any) -> Any:
    """Return the squared error in units of the scale squared."""
    found = splat(ZERO)
    for i in range(0, 256, 16):
        x = load(columns, i) * inverse
        e = x - within(x, low, high)
        found = found + (e * e if weights is None else e * e * load(weights, i))
    return found


@helper
def error_of(columns: Any, weights: Any, scales: Any, low: Any, high: Any) -> Any:
    """Return the squared error of the whole block, in every lane."""
    found, inverse = splat(ZERO), inverse_or_zero(scales)
    for i in range(0, 256, 16):
        x = load(columns, i)
        e = x - within(x * inverse, low, high) * scales
        found = found + (e * e if weights is None else e * e * load(weights, i))
    return shared_total(found, 16)


@helper
def fitted_scales(columns: Any, weights: Any, low: Any, high: Any, first: Any, step: Any, n: Any) -> Any:
    """Return the best of `n` scales, not yet integers: that which fits the codes of a guess.

    A guess divides the weight furthest from zero by `low` plus `first`, one more `step` and so on.
    """
    end = furthest(columns)
    end = where(magnitude(end) < _SMALL, splat(_SMALL), end)
    best, found = splat(ZERO - ONE), splat(ZERO)
    for k in range(n):
        guess = low + first + step * np.float32(k)
        xq, qq = sums_of(columns, weights, guess / end, low, high)
        scale = where(qq > ZERO, xq / maximum(qq, splat(_SMALL)), end / guess)
        better = scale * xq > best
        found, best = where(better, scale, found), where(better, scale * xq, best)
    return found


@helper
def common_scale(scales: Any, room: Any, scale_low: Any) -> Any:
    """Return `d`: the scale furthest from zero becomes `scale_low`, less some room."""
    size = magnitude(scales)
    most = shared_largest(size, 16)
    positive = shared_largest(where(size == most, scales, ZERO - most), 16) == most
    d = rounded_to_half(minimum(most * room, splat(LARGEST_HALF * abs(scale_low))) / scale_low)
    d = where(magnitude(d) < LEAST_HALF, splat(LEAST_HALF), d)
    return where(positive, d, ZERO - d)


@helper
def nearby_scales(
    columns: Any, weights: Any, d: Any, scales: Any, low: Any, high: Any, scale_low: Any, scale_high: Any, reach: Any
) -> Any:
    """Return the best integer scales at most `reach` from the given ones; none is 0, which no code needs."""
    least, found = splat(_FAR), scales
    for k in range(-reach, reach + 1):
        tried = minimum(maximum(scales + np.float32(k), scale_low), scale_high)
        tried = where(tried == ZERO, splat(ONE), tried)
        scale = tried * d
        error = relative_error(columns, weights, ONE / scale, low, high) * scale * scale
        found, least = where(error < least, tried, found), minimum(error, least)
    return found


@helper
def refitted(columns: Any, weights: Any, d: Any, scales: Any, low: Any, high: Any) -> Any:
    """Return the `d` that fits the codes best, as a float16."""
    xq, qq = sums_of(columns, weights, ONE / (d * scales), low, high)
    fit = shared_total(scales * xq, 16) / maximum(shared_total(scales * scales * qq, 16), splat(_SMALL))
    fit = rounded_to_half(minimum(maximum(fit, splat(ZERO - LARGEST_HALF)), splat(LARGEST_HALF)))
    return where(magnitude(fit) < LEAST_HALF, d, fit)


@helper
def searched_scales(columns: Any, weights: Any, bounds: Any, first: Any, step: Any, n: Any, room: Any, reach: Any) -> Any:
    """Return `d` in every lane, the integer scales, and the squared error of the block in every lane.

    `bounds` are the least and the largest code and scale; the others are what
    `fitted_scales`, `common_scale` and `nearby_scales` take.
    """
    low, high, scale_low, scale_high = bounds
    fitted = fitted_scales(columns, weights, low, high, first, step, n)
    d = common_scale(fitted, room, scale_low)
    scales = minimum(maximum(nearest(fitted / d), scale_low), scale_high)
    scales = nearby_scales(columns, weights, d, scales, low, high, scale_low, scale_high, reach)
    fit = refitted(columns, weights, d, scales, low, high)
    error = error_of(columns, weights, d * scales, low, high)
    fit_error = error_of(columns, weights, fit * scales, low, high)
    return where(fit_error < error, fit, d), scales, minimum(fit_error, error)
