"""Scales and minima of sub-blocks searched for the least squared error, sixteen sub-blocks at once.

A grid of ranges, shrunk and shifted, gives codes, and codes a least-squares fit of
scale and minimum. The fits are rounded to steps of a few candidates for `d`, the
minima again to what fits the rounded scales; then each scale tries its neighbours
with the codes that they make, and `d` and `dmin` are fitted to all codes.

Errors are compared in closed form within the search, which float32 blurs where a
fit is near perfect, and at its end weight by weight, as they are decoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST, ROUND, ROUND_BITS
from aq2_pipeline.kernels.blocks.affine_supers import keep, whole_largest, whole_total
from aq2_pipeline.kernels.blocks.columns import ONE, ZERO, inverse_or_zero
from aq2_pipeline.kernels.blocks.rounding import clamped_bits, code_bits, nearest_code
from aq2_pipeline.kernels.halves import rounded_to_half
from aq2_pipeline.kernels.lanes import LANES, load, magnitude, maximum, minimum, reinterpreted, splat, store, to, where

_INFINITE = np.float32(np.inf)
_TINY = np.float32(1e-30)
_ROUNDING = np.float32(2.0**-20)
_LEAST_HALF = np.float32(2.0**-24)


@helper
def code_sums(columns: Any, importance: Any, inverse: Any, offset: Any, largest: Any) -> Any:
    """Return the sums of codes, of their squares, and of their products with the weights."""
    top = code_bits(largest)
    q2, xq = splat(ZERO), splat(ZERO)
    if importance is None:
        pattern = splat(np.int32(0))  # wraps, as does what is taken off
        for i in range(0, columns.size, LANES):
            x = load(columns, i)
            bits = clamped_bits(x * inverse + offset, top)
            code = reinterpreted(bits, np.float32) - ROUND
            pattern, q2, xq = pattern + bits, q2 + code * code, xq + x * code
        return to(pattern - splat(np.int32(columns.size // LANES)) * ROUND_BITS, np.float32), q2, xq
    q1 = splat(ZERO)
    for i in range(0, columns.size, LANES):
        x = load(columns, i)
        code = nearest_code(x * inverse + offset, top)
        weighted = load(importance, i) * code
        q1, q2, xq = q1 + weighted, q2 + weighted * code, xq + x * weighted
    return q1, q2, xq


@helper
def lane_sums(columns: Any, importance: Any) -> Any:
    """Return the least, the largest, and the sums of importance, of weights and of their squares."""
    sum_w, sum_x, sum_xx = splat(ZERO), splat(ZERO), splat(ZERO)
    low = high = load(columns, 0)
    for i in range(0, columns.size, LANES):
        x = load(columns, i)
        low, high = minimum(x, low), maximum(x, high)
        if importance is None:
            sum_w, sum_x, sum_xx = sum_w + ONE, sum_x + x, sum_xx + x * x
        else:
            w = load(importance, i)
            sum_w, sum_x, sum_xx = sum_w + w, sum_x + w * x, sum_xx + w * x * x
    return low, high, sum_w, sum_x, sum_xx


@helper
def fitted(sums: Any, sum_w: Any, inverse_w: Any, sum_x: Any) -> Any:
    """Return the scale and the minimum, of at least 0, that fit codes best, and by how much they lessen the error."""
    q1, q2, xq = sums
    nothing = splat(ZERO)
    det = sum_w * q2 - q1 * q1
    sure = det > np.float32(1e-6) * sum_w * q2
    product = sum_w * xq - sum_x * q1
    scale = where(sure, product / det, nothing)
    low = (scale * q1 - sum_x) * inverse_w
    gain = (product * scale + sum_x * sum_x) * inverse_w
    alone = xq * inverse_or_zero(q2)
    free = where(sure, low, splat(np.float32(-1))) > ZERO
    return where(free, scale, alone), where(free, low, nothing), where(free, gain, xq * alone)


@helper
def misfit(columns: Any, importance: Any, found: Any, largest: Any) -> Any:
    """Return each sub-block's error, weight by weight, as what is found decodes."""
    scale, low = load(found, 0) * load(found, 2 * LANES), load(found, LANES) * load(found, 3 * LANES)
    inverse, error, top = inverse_or_zero(scale), splat(ZERO), code_bits(largest)
    for i in range(0, columns.size, LANES):
        x = load(columns, i)
        off = x - (scale * nearest_code((x + low) * inverse, top) - low)
        error = error + (off * off if importance is None else load(importance, i) * off * off)
    return error


@helper
def keep_better(found: Any, error: Any, trial: Any, trial_error: Any) -> Any:
    """Take over the super-blocks of a trial whose error is less; return the least errors."""
    better = trial_error < error  # not where a NaN is
    for at in range(0, 4 * LANES, LANES):
        store(found, at, where(better, load(trial, at), load(found, at)))
    return where(better, trial_error, error)


@helper
def burden_of(extent: Any, sum_w: Any, steps: Any, n_lanes: Any) -> Any:
    """Return what the squares of a scale and a minimum cost other sub-blocks: 0, except for the one of largest extent.

    Its steps are those of all, which loses them up to `step**2 / 12` a weight. What a few outliers, fitted
    well in several ways, gain by a larger scale is often less. Measured: a quarter of that is best.
    """
    burden = whole_total(sum_w, n_lanes) / (np.float32(48) * steps * steps)
    return where(extent == whole_largest(extent, n_lanes), burden, splat(ZERO))


@helper
def better_fit(best: Any, codes: Any, sums: Any, burden: Any) -> Any:
    """Return worth, scale, minimum, gain and sums of the better one: what was best, or what fits other codes."""
    _, _, sum_w, inverse_w, sum_x = sums
    scale, low, gain = fitted(codes, sum_w, inverse_w, sum_x)
    worth = gain - burden * (scale * scale + low * low)
    better = worth > best[0] + magnitude(best[0]) * _ROUNDING
    fit = where(better, worth, best[0]), where(better, scale, best[1]), where(better, low, best[2])
    kept = where(better, codes[0], best[4][0]), where(better, codes[1], best[4][1]), where(better, codes[2], best[4][2])
    return fit[0], fit[1], fit[2], maximum(gain, best[3]), kept


@helper
def searched_fits(columns: Any, importance: Any, sums: Any, start: Any, largest: Any, grid: Any, burden: Any) -> Any:
    """Return the scale that fits best, of a start or a grid, its gain, and the sums of its codes.

    A grid is how much the range of codes is shrunk at first, how much more each time, and how
    often; the same for shifts of the codes; and how often the best fit's codes are fitted anew.
    A single shift is one to and fro in turn: 7 such points find of Q4_K what 3 times 3 do.
    """
    low, high, _, _, _ = sums
    shrink, shrink_step, n_shrinks, shift, n_shifts, n_rounds = grid
    per_range, zero = ONE / maximum(high - low, splat(_TINY)), splat(ZERO)
    best = splat(ZERO - LARGEST), zero, zero, splat(ZERO - ONE), (zero, zero, zero)
    if start is not None:
        inverse = inverse_or_zero(start[0])
        best = better_fit(best, code_sums(columns, importance, inverse, start[1] * inverse, largest), sums, burden)
    for k in range(n_shrinks):
        stretch = np.float32(shrink) + np.float32(shrink_step) * np.float32(k)
        inverse = per_range * (largest + stretch)
        base = ZERO - low * inverse - stretch * np.float32(0.5)
        for j in range(n_shifts):
            place = np.float32(j) - np.float32(0.5) * np.float32(n_shifts - 1)
            if n_shifts == 1:
                place = np.float32(k % 2) - np.float32(0.5)
            offset = base + np.float32(shift) * np.float32(place)
            best = better_fit(best, code_sums(columns, importance, inverse, offset, largest), sums, burden)
    for _ in range(n_rounds):
        inverse = inverse_or_zero(best[1])
        best = better_fit(best, code_sums(columns, importance, inverse, best[2] * inverse, largest), sums, burden)
    return best[1], best[3], best[4]


@helper
def best_step(targets: Any, emphasis: Any, steps: Any, n_lanes: Any, tries: Any) -> Any:
    """Return the float16 whose multiples are nearest to targets, among divisions of the largest of them."""
    first, step, n = tries
    most = whole_largest(targets, n_lanes)
    chosen, least, top = rounded_to_half(most / steps), splat(LARGEST), code_bits(splat(steps))
    for k in range(n):
        trial = rounded_to_half(most * np.float32((np.float32(first) + np.float32(step) * np.float32(k)) / steps))
        trial = maximum(trial, splat(_LEAST_HALF))
        off = nearest_code(targets / trial, top) * trial - targets
        error = whole_total(off * off * emphasis, n_lanes)
        better = error < least
        chosen, least = where(better, trial, chosen), where(better, error, least)
    return maximum(chosen, splat(_LEAST_HALF))


@helper
def neighbours(columns: Any, importance: Any, sums: Any, start: Any, largest: Any, steps: Any, reach: Any) -> Any:
    """Return the codes of scales and minima, and the sums of codes, of the least error among a scale's neighbours."""
    sum_w, inverse_w, sum_x = sums
    d, dmin, scales, q1 = start
    best, best_scale, best_low = splat(LARGEST), scales, splat(ZERO)
    b1, b2, bx, top = q1, q1, q1, code_bits(steps)
    for a in range(-reach, reach + 1):
        trial = minimum(maximum(scales + np.float32(a), splat(ONE)), steps)
        scale = trial * d
        inverse = ONE / scale
        low = nearest_code((scale * q1 - sum_x) * inverse_w / dmin, top)
        r1, r2, rx = code_sums(columns, importance, inverse, low * dmin * inverse, largest)
        low = nearest_code((scale * r1 - sum_x) * inverse_w / dmin, top)
        m = low * dmin
        two = np.float32(2)
        error = scale * (scale * r2 - two * rx) + m * (sum_w * m + two * (sum_x - scale * r1))
        better = error < best
        best, best_scale, best_low = (
            where(better, error, best),
            where(better, trial, best_scale),
            where(better, low, best_low),
        )
        b1, b2, bx = where(better, r1, b1), where(better, r2, b2), where(better, rx, bx)
    return best_scale, best_low, (b1, b2, bx)


@helper
def refitted(scales: Any, minima: Any, codes: Any, sums: Any, n_lanes: Any, d: Any, dmin: Any) -> Any:
    """Return `d` and `dmin` that fit all codes of a super-block best, as float16; as they are where that is unsure."""
    q1, q2, xq = codes
    sum_w, _, sum_x = sums
    a = whole_total(scales * scales * q2, n_lanes)
    b = whole_total(scales * minima * q1, n_lanes)
    c = whole_total(minima * minima * sum_w, n_lanes)
    p, q = whole_total(scales * xq, n_lanes), whole_total(minima * sum_x, n_lanes)
    det = a * c - b * b
    sure = det > np.float32(1e-6) * a * c
    new_d, new_dmin = rounded_to_half((p * c - q * b) / det), rounded_to_half((b * p - a * q) / det)
    new_d = where(sure, new_d, d)
    new_dmin = where(sure, new_dmin, dmin)
    return where(new_d > ZERO, new_d, d), where(new_dmin > ZERO, new_dmin, dmin)


@helper
def search_affine(columns: Any, importance: Any, start: Any, setup: Any, found: Any, trial: Any) -> Any:
    """Find scales and minima; return whether each super-block's error may be above ggml's, and the errors.

    `start` is None, or what ggml found before it was rounded; `found` holds what it
    is rounded to then, and is improved on.
    """
    code_max, step_max, n_lanes, grid, tries, reach, n_rounds = setup
    largest, steps = splat(np.float32(code_max)), splat(np.float32(step_max))
    least, high, sum_w, sum_x, sum_xx = lane_sums(columns, importance)
    low, inverse_w = minimum(least, splat(ZERO)), inverse_or_zero(sum_w)
    sums = (low, high, sum_w, inverse_w, sum_x)
    burden = burden_of(high - low, sum_w, np.float32(step_max), n_lanes)
    scale, gain, codes = searched_fits(columns, importance, sums, start, largest, grid, burden)
    spread = codes[1] - codes[0] * codes[0] * inverse_w
    d = best_step(scale, spread, np.float32(step_max), n_lanes, tries)
    scales = nearest_code(scale / d, code_bits(steps))
    targets = maximum((scales * d * codes[0] - sum_x) * inverse_w, splat(ZERO))
    dmin = best_step(targets, sum_w, np.float32(step_max), n_lanes, tries)
    error = splat(_INFINITE)
    if start is None:  # what no trial betters is too large for a float16
        keep(found, error, error, splat(ZERO), splat(ZERO))
    else:
        error = whole_total(misfit(columns, importance, found, largest), n_lanes)
    for _ in range(n_rounds):
        at = (d, dmin, scales, codes[0])
        scales, minima, codes = neighbours(columns, importance, (sum_w, inverse_w, sum_x), at, largest, steps, reach)
        if start is None:  # elsewhere ggml's are there for those that the refit makes worse
            keep(trial, d, dmin, scales, minima)
            error = keep_better(found, error, trial, whole_total(misfit(columns, importance, trial, largest), n_lanes))
        d, dmin = refitted(scales, minima, codes, (sum_w, inverse_w, sum_x), n_lanes, d, dmin)
        keep(trial, d, dmin, scales, minima)
        error = keep_better(found, error, trial, whole_total(misfit(columns, importance, trial, largest), n_lanes))
    # Weights of one sign in a sub-block leave codes unused, and ggml's error near the least.
    sure = error <= np.float32(1.06) * whole_total(sum_xx - gain, n_lanes)
    lonely = whole_largest(maximum(least, ZERO - high), n_lanes) > ZERO
    return where(lonely, splat(ONE), where(sure, splat(ZERO), splat(ONE))), error
