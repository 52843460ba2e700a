"""The scale of a block without a minimum, `w = d * q`: a few guesses, each improved by least squares.

Each guess gives codes; for these codes the best scale is `d + sum(r * q) / sum(q * q)`,
r being what the guess leaves of each weight. It is rounded to the float16 that is
stored, and its error follows from the sums. The format's reference scale is the
first guess and is taken as it is, so that no block ends above its error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import ROUND, SMALLEST_NORMAL
from aq2_pipeline.kernels.blocks.columns import ZERO, inverse_or_zero
from aq2_pipeline.kernels.halves import rounded_to_half
from aq2_pipeline.kernels.lanes import LANES, load, magnitude, maximum, minimum, splat, where

#: What a sum of 32 in float32 may be wrong by, relative to the sum of magnitudes, and a little more.
_DOUBT = np.float32(2.0**-17)
_TWO = np.float32(2)


@helper
def nearest(scaled: Any, lowest: Any, highest: Any) -> Any:
    """Return the nearest whole number within bounds, ties to even; `lowest` for NaN."""
    return minimum(maximum(scaled, lowest), highest) + ROUND - ROUND


def scale_search(lowest: int, highest: int, guesses: tuple[float, ...]) -> Any:
    """Return a search for the scales of 16 turned blocks.

    Parameters
    ----------
    lowest, highest : int
        Bounds of the codes.
    guesses : tuple of float
        Where each guess puts the weight that is furthest from zero, in units of
        its scale; of the other sign than `lowest` if the scale is to be negative.

    Returns
    -------
    function
        `search(columns, weights, far, reference) -> scales`, all as columns: the
        weights that are furthest from zero, and the scales to start with. Scales
        are rounded to float16.
    """
    low, high = np.float32(lowest), np.float32(highest)
    places = tuple(np.float32(guess) for guess in guesses)

    @helper
    def leftovers(columns: Any, weights: Any, inverse: Any, scale: Any) -> Any:
        """Return the sums of r², r q and q² over each block, each weighted."""
        squares, products, codes = splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(0, columns.size, LANES):
            x = load(columns, i)
            q = nearest(x * inverse, low, high)
            r = x - q * scale
            if weights is None:
                squares, products, codes = squares + r * r, products + r * q, codes + q * q
            else:
                w = load(weights, i)
                squares, products, codes = squares + w * r * r, products + w * r * q, codes + w * q * q
        return squares, products, codes

    @helper
    def improved(sums: Any, scale: Any) -> Any:
        """Return the best scale for a guess's codes, and a bound of its error."""
        squares, products, codes = sums
        better = rounded_to_half(scale + products / maximum(codes, SMALLEST_NORMAL))
        step = better - scale
        moved = step * (step * codes - _TWO * products)
        doubt = (squares + magnitude(moved) + step * step * codes) * _DOUBT
        return better, maximum(squares + moved, ZERO) + doubt

    @helper
    def search(columns: Any, weights: Any, far: Any, reference: Any) -> Any:
        sums = leftovers(columns, weights, inverse_or_zero(reference), reference)
        found, least = reference, sums[0]
        better, error = improved(sums, reference)
        closer = error < least
        found, least = where(closer, better, found), where(closer, error, least)
        unit = inverse_or_zero(far)
        for place in places:
            guess = far / place
            better, error = improved(leftovers(columns, weights, unit * place, guess), guess)
            closer = error < least
            found, least = where(closer, better, found), where(closer, error, least)
        return found

    return search
