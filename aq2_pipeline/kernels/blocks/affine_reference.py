"""Scale and minimum of sub-blocks, found as ggml finds them without an importance (`make_qkx2_quants`).

The codes of a range that is stretched a little, step by step, give a weighted
least-squares fit; the fit of the least error is kept, and the next step's range
begins at its minimum. Lane k works on the k-th of sixteen sub-blocks, in ggml's
order of operations, so that every bit is ggml's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.blocks.affine_supers import finite_or_zero
from aq2_pipeline.kernels.blocks.columns import ONE, ZERO
from aq2_pipeline.kernels.blocks.rounding import code_bits, nearest_code
from aq2_pipeline.kernels.lanes import (
    LANES,
    load,
    magnitude,
    maximum,
    minimum,
    splat,
    square_root,
    store,
    where,
)

_INFINITE = np.float32(np.inf)
_STEP = np.float32(0.1)


@helper
def keep_emphasis(columns: Any, power: Any, emphasis: Any) -> None:
    """Write what each weight counts: its magnitude, for squares with the root of the mean square added."""
    squares, count = splat(ZERO), np.float32(columns.size // LANES)
    for i in range(0, columns.size, LANES):
        x = load(columns, i)
        squares = squares + x * x
    mean = splat(ZERO) if power == 1 else square_root(squares / count)
    for i in range(0, columns.size, LANES):
        store(emphasis, i, mean + magnitude(load(columns, i)))


@helper
def loss(columns: Any, emphasis: Any, codes: Any, scale: Any, low: Any, power: Any) -> Any:
    """Return the weighted sum of the squared, or absolute, errors of codes."""
    found = splat(ZERO)
    for i in range(0, columns.size, LANES):
        off = scale * load(codes, i) + low - load(columns, i)
        size = magnitude(off) if power == 1 else off * off
        found = found + load(emphasis, i) * size
    return found


@helper
def keep_range_codes(columns: Any, inverse: Any, low: Any, top: Any, codes: Any) -> None:
    """Write the codes of a range."""
    for i in range(0, columns.size, LANES):
        store(codes, i, nearest_code(inverse * (load(columns, i) - low), top))


@helper
def least_squares(
    columns: Any, emphasis: Any, inverse: Any, low: Any, top: Any, sum_w: Any, sum_x: Any, codes: Any
) -> Any:
    """Write the codes of a range; return the scale, and the minimum of at most 0, that fit best, and if any do."""
    q1, q2, xq = splat(ZERO), splat(ZERO), splat(ZERO)
    for i in range(0, columns.size, LANES):
        x = load(columns, i)
        code = nearest_code(inverse * (x - low), top)
        store(codes, i, code)
        weighted = load(emphasis, i) * code
        q1, q2, xq = q1 + weighted, q2 + weighted * code, xq + weighted * x
    det = sum_w * q2 - q1 * q1
    scale, least = (sum_w * xq - sum_x * q1) / det, (q2 * sum_x - q1 * xq) / det
    positive = least > ZERO
    return where(positive, xq / q2, scale), where(positive, splat(ZERO), least), det > ZERO


@helper
def extent(columns: Any, emphasis: Any) -> Any:
    """Return each lane's least weight, 0 included, its largest, and the sums of emphasis and of weighted weights."""
    low = high = load(columns, 0)
    sum_w, sum_x = splat(ZERO), splat(ZERO)
    for i in range(0, columns.size, LANES):
        x, w = load(columns, i), load(emphasis, i)
        low, high, sum_w, sum_x = minimum(x, low), maximum(x, high), sum_w + w, sum_x + w * x
    return minimum(low, splat(ZERO)), high, sum_w, sum_x


@helper
def reference_fit(
    columns: Any, code_max: Any, first: Any, n_steps: Any, power: Any, emphasis: Any, codes: Any, kept: Any
) -> Any:
    """Return scale and minus the minimum of sixteen sub-blocks.

    Parameters
    ----------
    columns : float32[16 * n]
        The weights, turned.
    code_max, first, n_steps
        The largest code; what is added to it in the first step; steps, each of which adds 0.1 more.
    power : int
        2, or 1 where errors are not squared, as Q2_K has them.
    emphasis, codes : float32[16 * n]
        Room.
    kept : float32[32]
        Inverse scale and minimum that the best codes are of.
    """
    levels = np.float32(code_max)
    top = code_bits(splat(levels))
    keep_emphasis(columns, power, emphasis)
    low, high, sum_w, sum_x = extent(columns, emphasis)
    flat, nothing, never = high == low, splat(ZERO), splat(_INFINITE)
    inverse = where(flat, nothing, levels / (high - low))
    scale = where(flat, nothing, ONE / inverse)
    inverse = finite_or_zero(inverse)
    keep_range_codes(columns, inverse, low, top, codes)
    least = loss(columns, emphasis, codes, scale, low, power)
    of_inverse, of_low = inverse, low
    for step in range(n_steps + 1):
        inverse = finite_or_zero((np.float32(first) + _STEP * np.float32(step) + levels) / (high - low))
        new_scale, new_low, defined = least_squares(columns, emphasis, inverse, low, top, sum_w, sum_x, codes)
        error = where(defined, loss(columns, emphasis, codes, new_scale, new_low, power), never)
        error = where(flat, never, error)
        better = error < least
        of_inverse, of_low = where(better, inverse, of_inverse), where(better, low, of_low)
        least, scale, low = where(better, error, least), where(better, new_scale, scale), where(better, new_low, low)
    store(kept, 0, of_inverse)
    store(kept, LANES, of_low)
    return scale, ZERO - low
