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
from aq2_pipeline.kernels.bits import ROUND, bits_of
from aq2_pipeline.kernels.blocks.columns import ONE, SURELY, ZERO, inverse_or_zero
from aq2_pipeline.kernels.blocks.rounding import bits_between, nearest_between
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

#: The least positive float16.
LEAST_HALF = np.float32(2.0**-24)

_FAR = np.float32(np.finfo(np.float32).max)
_SMALL = np.float32(1e-30)


@helper
def with_codes(sums: Any, x: Any, q: Any, w: Any) -> Any:
    """Return the sums of weight times code and of code squared with one weight of each sub-block more."""
    wq = q if w is None else q * w
    return sums[0] + x * wq, sums[1] + q * wq


@helper
def two_sums(columns: Any, weights: Any, first: Any, second: Any, low: Any, high: Any) -> Any:
    """Return the sums of the codes that are nearest with two inverses: at once, for fewer loads."""
    one, two = (splat(ZERO), splat(ZERO)), (splat(ZERO), splat(ZERO))
    for i in range(0, 256, 16):
        x, w = load(columns, i), None if weights is None else load(weights, i)
        one = with_codes(one, x, nearest_between(x * first, low, high), w)
        two = with_codes(two, x, nearest_between(x * second, low, high), w)
    return one, two


@helper
def better_fit(best: Any, sums: Any, guess: Any) -> Any:
    """Return scale, sum of squares of codes, and gain of the better one: what was best, or what fits other codes."""
    xq, qq = sums
    scale = where(qq > ZERO, xq / maximum(qq, splat(_SMALL)), guess)
    gain = scale * xq
    better = gain > best[2]
    return where(better, scale, best[0]), where(better, qq, best[1]), where(better, gain, best[2])


@helper
def relative_errors(columns: Any, weights: Any, one: Any, two: Any, low: Any, high: Any) -> Any:
    """Return the squared errors with two inverses of scales, in units of the scale squared: for fewer loads."""
    of_one, of_two = splat(ZERO), splat(ZERO)
    for i in range(0, 256, 16):
        x, y = load(columns, i) * one, load(columns, i) * two
        d, e = x - nearest_between(x, low, high), y - nearest_between(y, low, high)
        of_one = of_one + (d * d if weights is None else d * d * load(weights, i))
        of_two = of_two + (e * e if weights is None else e * e * load(weights, i))
    return of_one, of_two


@helper
def error_of(columns: Any, weights: Any, scales: Any, low: Any, high: Any) -> Any:
    """Return the squared error of the whole block, in every lane."""
    found, inverse = splat(ZERO), inverse_or_zero(scales)
    for i in range(0, 256, 16):
        x = load(columns, i)
        e = x - nearest_between(x * inverse, low, high) * scales
        found = found + (e * e if weights is None else e * e * load(weights, i))
    return shared_total(found, 16)


@helper
def two_errors(columns: Any, weights: Any, one: Any, two: Any, low: Any, high: Any) -> Any:
    """Return what `error_of` does, of two scales at once, for fewer loads."""
    of_one, of_two = splat(ZERO), splat(ZERO)
    inverse, other = inverse_or_zero(one), inverse_or_zero(two)
    for i in range(0, 256, 16):
        x = load(columns, i)
        d = x - nearest_between(x * inverse, low, high) * one
        e = x - nearest_between(x * other, low, high) * two
        of_one = of_one + (d * d if weights is None else d * d * load(weights, i))
        of_two = of_two + (e * e if weights is None else e * e * load(weights, i))
    return shared_total(of_one, 16), shared_total(of_two, 16)


@helper
def fitted_scales(columns: Any, weights: Any, end: Any, bounds: Any, start: Any, step: Any, n: Any) -> Any:
    """Return the best of `n` scales, not yet integers, the sum of their codes squared, and what they lessen the error.

    A guess divides the weight furthest from zero by the least code plus `start`, one more `step` and so on; its
    codes have a scale that fits them best.
    """
    low, high, _, _ = bounds
    end = where(magnitude(end) < _SMALL, splat(_SMALL), end)
    inverse, best = ONE / end, (splat(ZERO), splat(ZERO), splat(ZERO - ONE))
    for k in range(0, n, 2):
        first = low + np.float32(start) + np.float32(step) * np.float32(k)
        second = first + np.float32(step)
        one, two = two_sums(columns, weights, first * inverse, second * inverse, low, high)
        best = better_fit(better_fit(best, one, end / first), two, end / second)
    return best


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
def finest_scale(scales: Any, squares: Any, bounds: Any, step: Any, n: Any) -> Any:
    """Return that `d` among `n`, of ever more room for the largest scale, whose multiples fit all best."""
    _, _, scale_low, scale_high = bounds
    exact = scales / common_scale(scales, ONE, scale_low)
    found, least = splat(ONE), splat(_FAR)
    for k in range(n):
        room = ONE + np.float32(step) * np.float32(k)
        fewer = exact * (ONE / room)
        off = (fewer - minimum(maximum(nearest(fewer), scale_low), scale_high)) * room
        error = shared_total(off * off * squares, 16)
        found, least = where(error < least, splat(room), found), minimum(error, least)
    return common_scale(scales, found, scale_low)


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
def nearest_scales(d: Any, start: Any, bounds: Any) -> Any:
    """Return the integer scales that are nearest, none of them 0."""
    _, _, scale_low, scale_high = bounds
    return other_scale(nearest(start / d), ZERO, scale_low, scale_high)


@helper
def searched_scales(columns: Any, weights: Any, start: Any, d: Any, bounds: Any, reach: Any) -> Any:
    """Return `d`, the integer scales, and the squared error of the block in every lane.

    `start` are scales that are not yet integers, `bounds` the least and the largest
    code and scale; `reach` is what `nearby_scales` takes.
    """
    _, _, scale_low, scale_high = bounds
    scales = minimum(maximum(nearest(start / d), scale_low), scale_high)
    scales, least = nearby_scales(columns, weights, d, scales, bounds, reach)
    return d, scales, shared_total(least, 16)


@helper
def better_of(found: Any, others: Any) -> Any:
    """Return `d` and the scales that were found, or the other ones unless their error is more; and the bits of `d`."""
    d, scales, error = found
    other, other_scales, other_error = others
    # What rounding blurs is the others'. Beyond a float16's range, neither is better: `d` stays infinite.
    better = other_error * SURELY <= minimum(error, splat(_FAR))
    d = where(better, other, d)
    return d, where(better, other_scales, scales), lane(half_bits(d), 0)


@helper
def encode_nearest(values: Any, scales: Any, low: Any, high: Any, codes: Any) -> None:
    """Write the codes, less `low`, that the search has found; `values` are not turned."""
    inverses = local(16, np.float32)
    store(inverses, 0, inverse_or_zero(scales))
    for k in range(16):
        found = bits_between(load(values, 16 * k) * inverses[k], low, high) - bits_of(low + ROUND)
        store(codes, 16 * k, to(found, np.uint8))
