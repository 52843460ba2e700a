"""The scale of a block without a minimum, `w = d * q`: a few guesses, each improved by least squares.

Each guess gives codes; for these codes the best scale is `d + sum(r * q) / sum(q * q)`,
r being what the guess leaves of each weight. It is rounded to the float16 that is
stored, and the error of that follows from the sums. The format's reference scale is
the first guess and is kept unless another is surely better, so that no block ends
above the error of its reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import ROUND, SMALLEST_NORMAL
from aq2_pipeline.kernels.blocks.columns import ZERO, inverse_or_zero
from aq2_pipeline.kernels.halves import rounded_to_half
from aq2_pipeline.kernels.lanes import LANES, load, magnitude, maximum, minimum, splat, where

#: What a sum of 32 products in float32 may be wrong by, relative to that of their magnitudes: four times 2**-24 each.
DOUBT = np.float32(2.0**-17)
_TWO = np.float32(2)


@helper
def nearest_code(scaled: Any, lowest: Any, highest: Any) -> Any:
    """Return the nearest whole number within bounds, ties to even; for NaN, a bound."""
    return minimum(maximum(scaled, lowest), highest) + ROUND - ROUND


def scale_search(lowest: int, highest: int, guesses: tuple[float, ...]) -> Any:
    """Return a search for the scales of 16 turned blocks of at most 32 weights.

    Parameters
    ----------
    lowest, highest : int
        Bounds of the codes.
    guesses : tuple of float
        The code, not a whole number, that each guess gives the weight furthest from zero.

    Returns
    -------
    function
        `search(columns, weights, far, reference) -> scales`, all as columns: the
        weights furthest from zero, and the scales to begin with. Scales are rounded
        to float16.
    """
    low, high = np.float32(lowest), np.float32(highest)
    places = tuple(np.float32(guess) for guess in guesses)

    @helper
    def leftovers(columns: Any, weights: Any, inverse: Any, scale: Any) -> Any:
        """Return the sums of r², r q and q² over each block, each weighted."""
        sum_rr, sum_rq, sum_qq = splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(0, columns.size, LANES):
            x = load(columns, i)
            q = nearest_code(x * inverse, low, high)
            r = x - q * scale
            if weights is None:
                sum_rr, sum_rq, sum_qq = sum_rr + r * r, sum_rq + r * q, sum_qq + q * q
            else:
                w = load(weights, i)
                wr = w * r
                sum_rr, sum_rq, sum_qq = sum_rr + wr * r, sum_rq + wr * q, sum_qq + w * q * q
        return sum_rr, sum_rq, sum_qq

    @helper
    def improved(sums: Any, scale: Any) -> Any:
        """Return the best scale for a guess's codes, and what its error is at most."""
        sum_rr, sum_rq, sum_qq = sums
        better = rounded_to_half(scale + sum_rq / maximum(sum_qq, SMALLEST_NORMAL))
        step = better - scale
        change = step * (step * sum_qq - _TWO * sum_rq)
        doubt = (sum_rr + magnitude(change) + step * step * sum_qq) * DOUBT
        return better, maximum(sum_rr + change, ZERO) + doubt

    @helper
    def search(columns: Any, weights: Any, far: Any, reference: Any) -> Any:
        sums = leftovers(columns, weights, inverse_or_zero(reference), reference)
        better, error = improved(sums, reference)
        closer = error < sums[0]
        found, least = where(closer, better, reference), where(closer, error, sums[0])
        unit = inverse_or_zero(far)
        for place in places:
            guess = far / place
            better, error = improved(leftovers(columns, weights, unit * place, guess), guess)
            closer = error < least
            found, least = where(closer, better, found), where(closer, error, least)
        return found

    return search
