"""The scale and the minimum of a block, `w = d * q + m`: a grid of guesses, each improved by least squares.

A guess stretches the codes over a part of the block's range, or over more than it,
and shifts them against it by a part of a code. For the codes that it gives, the best
scale and minimum are a regression of the weights on the codes; the guess that
explains most of their variance wins, and its codes are found and fitted anew. Both
are then rounded to the float16 that is stored, and the format's reference is kept
unless its block is surely worse.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import SMALLEST_NORMAL
from aq2_pipeline.kernels.blocks.columns import ZERO, inverse_or_zero
from aq2_pipeline.kernels.blocks.scale_search import DOUBT, nearest_code
from aq2_pipeline.kernels.halves import rounded_to_half
from aq2_pipeline.kernels.lanes import LANES, load, local, maximum, splat, store, where

_MINUS_ONE = np.float32(-1)


@helper
def sums_of(columns: Any, weights: Any) -> Any:
    """Return the sum of the weights, or of their importance, and that of the values times them."""
    n, sum_x = splat(ZERO), splat(ZERO)
    for i in range(0, columns.size, LANES):
        x = load(columns, i)
        if weights is None:
            n, sum_x = n + np.float32(1), sum_x + x
        else:
            w = load(weights, i)
            n, sum_x = n + w, sum_x + w * x
    return n, sum_x


def range_search(highest: int, guesses: tuple[tuple[float, float], ...]) -> Any:
    """Return a search for the scales and minima of 16 turned blocks of 32 weights.

    Parameters
    ----------
    highest : int
        The largest code; the smallest is 0.
    guesses : tuple of (float, float)
        How many codes the block's range takes, and how many lie below it.

    Returns
    -------
    function
        `search(columns, weights, low, span, scale, minimum) -> scales, minima`, all
        as columns: the smallest weights and how far the largest are from them, and
        the reference's scales and minima. All that is returned is rounded to float16.
    """
    high = np.float32(highest)
    widths = tuple(np.float32(width) for width, _ in guesses)
    shifts = tuple(np.float32(shift) for _, shift in guesses)

    @helper
    def code_sums(above: Any, weights: Any, inverse: Any, shift: Any) -> Any:
        """Return the sums of q, q² and x q over each block, each weighted; x lies above the smallest."""
        sum_q, sum_qq, sum_xq = splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(0, above.size, LANES):
            x = load(above, i)
            q = nearest_code(x * inverse + shift, ZERO, high)
            wq = q if weights is None else q * load(weights, i)
            sum_q, sum_qq, sum_xq = sum_q + wq, sum_qq + wq * q, sum_xq + wq * x
        return sum_q, sum_qq, sum_xq

    @helper
    def error(columns: Any, weights: Any, scale: Any, minimum: Any) -> Any:
        """Return the error of the blocks that are stored with these."""
        inverse, found = inverse_or_zero(scale), splat(ZERO)
        for i in range(0, columns.size, LANES):
            x = load(columns, i)
            q = nearest_code((x - minimum) * inverse, ZERO, high)
            r = x - (q * scale + minimum)
            found = found + (r * r if weights is None else load(weights, i) * r * r)
        return found

    @helper
    def regression(n: Any, sum_x: Any, sums: Any) -> Any:
        """Return the slope of x over the codes, and where it starts."""
        sum_q, sum_qq, sum_xq = sums
        slope = (n * sum_xq - sum_x * sum_q) / maximum(n * sum_qq - sum_q * sum_q, SMALLEST_NORMAL)
        return slope, (sum_x - slope * sum_q) / n

    @helper
    def fitted(columns: Any, weights: Any, low: Any, span: Any) -> Any:
        """Return the scales and minima that explain most."""
        above = local(512, np.float32)
        for i in range(0, columns.size, LANES):
            store(above, i, load(columns, i) - low)
        n, sum_x = sums_of(above, weights)
        unit = inverse_or_zero(span)
        best_q, best_qq, best_xq, best = splat(ZERO), splat(ZERO), splat(ZERO), splat(_MINUS_ONE)
        for g in range(len(widths)):
            sum_q, sum_qq, sum_xq = code_sums(above, weights, unit * widths[g], splat(shifts[g]))
            spread = maximum(n * sum_qq - sum_q * sum_q, SMALLEST_NORMAL)
            shared = n * sum_xq - sum_x * sum_q
            gain = shared * shared / spread
            better = gain > best
            best_q, best_qq = where(better, sum_q, best_q), where(better, sum_qq, best_qq)
            best_xq, best = where(better, sum_xq, best_xq), where(better, gain, best)
        slope, start = regression(n, sum_x, (best_q, best_qq, best_xq))
        inverse = inverse_or_zero(slope)
        sums = code_sums(above, weights, inverse, ZERO - start * inverse)
        slope, start = regression(n, sum_x, sums)
        minimum = rounded_to_half(low + start)
        # The scale makes up for what the minimum, often the coarser of the two, was rounded by.
        scale = (sums[2] - (minimum - low) * sums[0]) / maximum(sums[1], SMALLEST_NORMAL)
        return rounded_to_half(scale), minimum

    @helper
    def search(columns: Any, weights: Any, low: Any, span: Any, scale: Any, minimum: Any) -> Any:
        fitted_scale, fitted_minimum = fitted(columns, weights, low, span)
        mine = error(columns, weights, fitted_scale, fitted_minimum)
        closer = mine + mine * DOUBT < error(columns, weights, scale, minimum)
        return where(closer, fitted_scale, scale), where(closer, fitted_minimum, minimum)

    return search
