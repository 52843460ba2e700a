"""Asymmetric integers with a searched scale and zero point, in the layout of `kernels.integer`.

`mse` looks for the smallest squared error: narrower ranges, from the group's own on, with zero points around the
one that clips both ends alike, each with the least-squares scale of its codes; then steps from the best, to the
zero points beside it too. What is stored is compared with what the range itself gives, and the better one is kept.

`hqq` is half-quadratic quantization (H. Badri and A. Shaji, https://mobiusml.github.io/hqq_blog; the numbers are
those of hqq 0.2.8): the scale is the range's, the zero point is a float, and moves so that the p-norm of the
errors falls, with p = 0.7. Other than there, a group is a matter of its own: it stops when its own mean error no
longer falls, keeps the best zero point, not the last, and keeps that of `minmax` where its p-norm is smaller; and
its range holds 0, so that the zero point is a code, or lies between two.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from aq2_pipeline.kernels import integer
from aq2_pipeline.kernels._jit import helper, inlined
from aq2_pipeline.kernels.bits import ROUND, SMALLEST_NORMAL, float_of
from aq2_pipeline.kernels.grouped import Codes, method_kernels
from aq2_pipeline.kernels.integer import group_scale
from aq2_pipeline.kernels.lanes import LANES, largest, magnitude, maximum, minimum, splat, to, total, where
from aq2_pipeline.kernels.powers import power
from aq2_pipeline.kernels.searches import loss_of, sums_of
from aq2_pipeline.kernels.staging import finite, shares, staged

#: Bits -> ranges that `mse` tries, as parts of the group's: how many, the widest, and the step down; then the zero
#: points around the middle one.
GRIDS = {
    2: (12, 1.1, 0.06, 3),
    3: (10, 1.05, 0.05, 3),
    4: (12, 1.04, 0.03, 1),
    5: (14, 1.03, 0.02, 1),
    6: (16, 1.02, 0.012, 1),
    7: (16, 1.01, 0.006, 1),
    8: (16, 1.005, 0.003, 1),
}
N_STEPS = 6
#: `hqq`: p and p - 1; turns, 1 / beta at first, and by what beta grows in each turn.
NORM, EXPONENT = np.float32(0.7), np.float32(0.7 - 1)
N_TURNS, FIRST_SHRINKAGE, GROWTH = 20, np.float32(1 / 10), np.float32(1.01)
#: Smaller errors shrink to 0 in every turn: x**1.3 < 1 / beta, which is 1 / 12.1 at least, for all x < 0.146.
NOTHING_LEFT = np.float32(0.125)


@helper
def shrunk(errors: Any, shrinkage: Any) -> Any:
    """Return the errors less `|x|**(p - 1) / beta`, or 0 where that is more."""
    sizes = magnitude(errors)
    if largest(sizes) < NOTHING_LEFT:
        return splat(np.float32(0))
    left = maximum(sizes - power(maximum(sizes, splat(SMALLEST_NORMAL)), EXPONENT) * shrinkage, splat(np.float32(0)))
    return where(errors < np.float32(0), np.float32(0) - left, left)


@inlined
def half_quadratic(
    steps: Any, values: Any, importance: Any, first: Any, scale: Any, inverse: Any, zero: Any, top: Any, staging: Any
) -> Any:
    """Return the zero point with which the mean error was the smallest; `steps(x, zero)` are codes as floats."""
    best, least, shrinkage = zero, np.float64(np.inf), FIRST_SHRINKAGE
    for _ in range(N_TURNS):
        errors, zeros, mass = splat(np.float64(0)), splat(np.float64(0)), splat(np.float64(0))
        for at in range(0, values.size, LANES):
            x = staged(values, at, staging)
            q = steps(x * inverse, zero)
            e = x - finite((q - zero) * scale)
            share = shares(importance, first, values.size, at, staging)
            errors = errors + to(magnitude(e), np.float64) * share
            zeros = zeros + to(q - (x - shrunk(e, shrinkage)) * inverse, np.float64) * share
            mass = mass + share
        found, whole = total(errors), total(mass)
        if not found < least or whole == 0:
            break
        best, least, shrinkage = zero, found, shrinkage / GROWTH
        zero = min(max(np.float32(total(zeros) / whole), np.float32(0)), top)
    return best


@inlined
def norm_of(
    steps: Any, values: Any, importance: Any, first: Any, scale: Any, inverse: Any, zero: Any, staging: Any
) -> Any:
    """Return the sum of `|error|**p` of a group stored with a zero point."""
    found = splat(np.float64(0))
    for at in range(0, values.size, LANES):
        x = staged(values, at, staging)
        e = magnitude(x - finite((steps(x * inverse, zero) - zero) * scale))
        share = shares(importance, first, values.size, at, staging)
        found = found + to(power(maximum(e, splat(SMALLEST_NORMAL)), NORM), np.float64) * share
    return total(found)


@inlined
def searched(
    nearest: Any, values: Any, importance: Any, first: Any, scale: Any, zero: Any, low: Any, grid: Any, top: Any,
    staging: Any,
) -> Any:  # fmt: skip
    """Return the best (scale, zero point) of a group, the range's own included."""
    n_ranges, widest, step, n_zeros = grid
    best, best_zero, gain, span = scale, zero, np.float64(-1), np.float32(n_zeros // 2)
    for k in range(n_ranges * n_zeros + N_STEPS):
        inverse, tried = np.float32(1) / best, best_zero + np.float32(k % 3 - 1)
        if k < n_ranges * n_zeros:
            part = widest - step * np.float32(k // n_zeros)
            inverse = np.float32(1) / (part * scale)
            middle = low * inverse + (np.float32(1) / part - np.float32(1)) * top * np.float32(0.5)
            tried = np.float32(np.float32(k % n_zeros) - span - ((middle + ROUND) - ROUND))
        tried = min(max(tried, np.float32(0)), top)
        products, squares = sums_of(nearest, values, importance, first, inverse, tried, staging)
        if squares > 0 and products * products > gain * squares:
            found = np.float32(products / squares)
            if found >= SMALLEST_NORMAL:
                gain, best, best_zero = products * products / squares, found, tried
    loss = loss_of(nearest, values, importance, first, best, best_zero, staging)
    if loss < loss_of(nearest, values, importance, first, scale, zero, staging):
        return best, best_zero
    return scale, zero


def _least_squares(bits: int) -> tuple[Codes, Any]:
    """Return the codes with a whole zero point, and the function that finds it."""
    top = np.float32(2**bits - 1)
    n_ranges, widest, step, n_zeros = GRIDS[bits]
    grid = n_ranges, np.float32(widest), np.float32(step), n_zeros

    @helper
    def nearest(x: Any, zero: Any) -> Any:
        return minimum(maximum((x + ROUND) - ROUND, splat(np.float32(0) - zero)), splat(top - zero))

    @helper
    def code_of(x: Any, zero: Any) -> Any:
        return to(nearest(x, zero) + zero, np.int32)

    @helper
    def find(values: Any, importance: Any, first: Any, low: Any, high: Any, staging: Any) -> Any:
        scale, _, whole = group_scale(low, high, bits, True)  # noqa: FBT003 - a kernel's argument
        zero = np.float32(whole)
        if scale < 0:
            return np.float32(np.nan), zero
        if scale > 0:
            return searched(nearest, values, importance, first, scale, zero, float_of(low), grid, top, staging)
        return scale, zero

    return Codes(f"zero_points{bits}", bits, code_of, nearest, 2, has_zeros=True), find


def _half_quadratic(bits: int) -> tuple[Codes, Any]:
    """Return the codes with a zero point that is a float, and the function that finds it."""
    top = np.float32(2**bits - 1)

    @helper
    def steps(x: Any, zero: Any) -> Any:
        return minimum(maximum(((x + zero) + ROUND) - ROUND, splat(np.float32(0))), splat(top))

    @helper
    def nearest(x: Any, zero: Any) -> Any:
        return steps(x, zero) - zero

    @helper
    def code_of(x: Any, zero: Any) -> Any:
        return to(steps(x, zero), np.int32)

    @helper
    def find(values: Any, importance: Any, first: Any, low: Any, high: Any, staging: Any) -> Any:
        scale, inverse, whole = group_scale(low, high, bits, True)  # noqa: FBT003 - a kernel's argument
        zero = np.float32(whole)
        if scale < 0:
            return np.float32(np.nan), zero
        if scale > 0:
            free = min(max(np.float32(0) - float_of(low) * inverse, np.float32(0)), top)
            free = half_quadratic(steps, values, importance, first, scale, inverse, free, top, staging)
            norm = norm_of(steps, values, importance, first, scale, inverse, free, staging)
            if norm < norm_of(steps, values, importance, first, scale, inverse, zero, staging):
                zero = free
        return scale, zero

    return Codes(f"float_zero_points{bits}", bits, code_of, nearest, 2, has_zeros=True), find


def zero_point_kernels(bits: int) -> Any:
    """Return the kernels of one width: `encode_<method>` and `error_<method>`, and those for an importance."""
    whole, least_squares = _least_squares(bits)
    free, half = _half_quadratic(bits)
    made = method_kernels(whole, {"mse": least_squares}) | method_kernels(free, {"hqq": half})
    return SimpleNamespace(decode=getattr(integer, f"decode{bits}"), **made)


asym2, asym3, asym4, asym5, asym6, asym7, asym8 = map(zero_point_kernels, range(2, 9))
