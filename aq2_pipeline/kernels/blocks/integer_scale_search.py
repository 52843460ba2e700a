"""The search that Q3_K and Q6_K share: integer scales of 16 sub-blocks beside one float16 scale, `d * scale * code`.

What is stored is searched, not what is then rounded: with `d` fixed a sub-block's
scale is one of few integers, and its error with the codes nearest to its weights
says which. `d` leaves the largest scale some room, as the best one is seldom where
the weight furthest from zero has the last code. Lane k is the k-th
sub-block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.blocks.columns import ONE, ZERO, inverse_or_zero
from aq2_pipeline.kernels.halves import half_bits, rounded_to_half
from aq2_pipeline.kernels.lanes import (
    lane,
    load,
    local,
    magnitude,
    maximum,
    minimum,
    nearest,
    shared_largest,
    shared_total,
    splat,
    store,
    to,
    where,
)
from aq2_pipeline.kernels.widening import float_from_half

#: The least positive float16.
LEAST_HALF = np.float32(2.0**-24)

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
def relative_errors(columns: Any, weights: Any, one: Any, two: Any, low: Any, high: Any) -> Any:
    """Return the squared errors with two inverses of scales, in units of the scale squared: for fewer loads."""
    of_one, of_two = splat(ZERO), splat(ZERO)
    for i in range(0, 256, 16):
        x, y = load(columns, i) * one, load(columns, i) * two
        d, e = x - within(x, low, high), y - within(y, low, high)
        of_one = of_one + (d * d if weights is None else d * d * load(weights, i))
        of_two = of_two + (e * e if weights is None else e * e * load(weights, i))
    return of_one, of_two


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
def fitted_scales(columns: Any, weights: Any, end: Any, low: Any, high: Any, first: Any, step: Any, n: Any) -> Any:
    """Return the best of `n` scales, not yet integers: that which fits the codes of a guess.

    A guess divides the weight furthest from zero by `low` plus `first`, one more `step` and so on.
    """
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
    d = rounded_to_half(most * room / scale_low)
    d = where(magnitude(d) < LEAST_HALF, splat(LEAST_HALF), d)
    return where(positive, d, ZERO - d)


@helper
def other_scale(scales: Any, step: Any, scale_low: Any, scale_high: Any) -> Any:
    """Return the integers a step away, none of them 0, which no codes need."""
    found = minimum(maximum(scales + step, scale_low), scale_high)
    return where(found == ZERO, splat(ONE), found)


@helper
def nearby_scales(columns: Any, weights: Any, d: Any, scales: Any, bounds: Any, reach: Any) -> Any:
    """Return the best integer scales from `reach` below to above the given ones, and each one's squared error."""
    low, high, scale_low, scale_high = bounds
    least, found = splat(_FAR), scales
    for k in range(-reach, reach + 1, 2):
        one = other_scale(scales, np.float32(k), scale_low, scale_high)
        two = other_scale(scales, np.float32(k + 1), scale_low, scale_high)
        of_one, of_two = relative_errors(columns, weights, ONE / (d * one), ONE / (d * two), low, high)
        of_one, of_two = of_one * (d * one) * (d * one), of_two * (d * two) * (d * two)
        found, least = where(of_one < least, one, found), minimum(of_one, least)
        found, least = where(of_two < least, two, found), minimum(of_two, least)
    return found, least


@helper
def searched_scales(columns: Any, weights: Any, start: Any, bounds: Any, room: Any, reach: Any) -> Any:
    """Return `d` in every lane, the integer scales, and the squared error of the block in every lane.

    `start` are scales that are not yet integers, `bounds` the least and the largest
    code and scale; the others are what `common_scale` and `nearby_scales` take.
    """
    _, _, scale_low, scale_high = bounds
    d = common_scale(start, room, scale_low)
    scales = minimum(maximum(nearest(start / d), scale_low), scale_high)
    scales, least = nearby_scales(columns, weights, d, scales, bounds, reach)
    return d, scales, shared_total(least, 16)


@helper
def better_of(columns: Any, weights: Any, found: Any, bits: Any, others: Any, bounds: Any) -> Any:
    """Return `d` and the scales that were found, or other ones where their error is no more; and the bits of `d`."""
    d, scales, error = found
    other = splat(float_from_half(bits))
    # beyond a float16's range, neither is better: `d` stays infinite
    better = error_of(columns, weights, other * others, bounds[0], bounds[1]) <= minimum(error, splat(_FAR))
    d = where(better, other, d)
    return d, where(better, others, scales), lane(half_bits(d), 0)


@helper
def encode_nearest(values: Any, scales: Any, low: Any, high: Any, codes: Any) -> None:
    """Write the codes, less `low`, that the search has found; `values` are not turned."""
    inverses = local(16, np.float32)
    store(inverses, 0, inverse_or_zero(scales))
    for k in range(16):
        found = within(load(values, 16 * k) * inverses[k], low, high) - low
        store(codes, 16 * k, to(to(found, np.int32), np.uint8))
