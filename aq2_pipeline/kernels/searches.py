"""What searches of scales have in common: sums and losses of one group for codes that a scale and a zero point give.

`nearest(x, zero)` is the value, in steps of the scale, of the code that a weight in such steps gets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import inlined
from aq2_pipeline.kernels.bits import SMALLEST_NORMAL
from aq2_pipeline.kernels.lanes import LANES, plus_product, splat, to, total
from aq2_pipeline.kernels.staging import finite, staged, staged_importance

#: Scales that a search tries, as parts of the reference's: how many, the smallest, and the step.
GRID = 12, 0.62, 0.04
#: The least-squares steps that follow, and those of a refit.
N_STEPS, N_REFITS = 3, 20


@inlined
def sums_of(nearest: Any, values: Any, importance: Any, first: Any, inverse: Any, zero: Any, staging: Any) -> Any:
    """Return the weighted sums of weight times value and of value squared, for codes by an inverse scale."""
    products, squares = splat(np.float64(0)), splat(np.float64(0))
    for at in range(0, values.size, LANES):
        x = staged(values, at, staging)
        v, wide = to(nearest(x * inverse, zero), np.float64), to(x, np.float64)
        if importance is None:
            products, squares = plus_product(products, wide, v), plus_product(squares, v, v)
        else:
            w = staged_importance(importance, first, values.size, at, staging)
            products, squares = products + wide * v * w, squares + v * v * w
    return total(products), total(squares)


@inlined
def loss_of(nearest: Any, values: Any, importance: Any, first: Any, scale: Any, zero: Any, staging: Any) -> Any:
    """Return the weighted squared error of a group stored with a scale."""
    found, inverse = splat(np.float64(0)), np.float32(1) / scale
    for at in range(0, values.size, LANES):
        x = staged(values, at, staging)
        e = to(x, np.float64) - to(finite(nearest(x * inverse, zero) * scale), np.float64)
        if importance is None:
            found = found + e * e
        else:
            found = found + e * e * staged_importance(importance, first, values.size, at, staging)
    return total(found)


@inlined
def best_scale(
    nearest: Any, values: Any, importance: Any, first: Any, reference: Any, grid: Any, n_steps: Any,
    staging: Any,
) -> Any:  # fmt: skip
    """Return the best scale of a group: candidates of each sign around the reference, then steps from the best."""
    n_candidates, n_of_a_sign, smallest, step = grid
    best, gain, zero = reference, np.float64(-1), np.float32(0)
    for k in range(n_candidates + n_steps):
        inverse = np.float32(1) / best
        if k < n_candidates:
            inverse = np.float32(1) / ((smallest + step * np.float32(k % n_of_a_sign)) * reference)
            inverse = -inverse if k >= n_of_a_sign else inverse
        products, squares = sums_of(nearest, values, importance, first, inverse, zero, staging)
        if squares > 0 and products * products > gain * squares:
            scale = np.float32(products / squares)
            if abs(scale) >= SMALLEST_NORMAL:
                gain, best = products * products / squares, scale
        elif k >= n_candidates:
            break
    found = loss_of(nearest, values, importance, first, best, zero, staging)
    return best if found < loss_of(nearest, values, importance, first, reference, zero, staging) else reference
