"""What IQ4_NL and IQ4_XS share: sixteen values that lie closer near zero, and the search of a scale for 32 weights.

Weights are turned: a lane is a block of 32. The search tries ggml's own sixteen
scales and a few of the other sign, so that it knows ggml's choice, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import ONE, SURELY, ZERO, furthest
from aq2_pipeline.kernels.lanes import load, magnitude, splat, store, to, where

#: What the codes stand for (ggml-common.h, kvalues_iq4nl), and where the next one is as near.
VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_MIDDLES = (VALUES[1:] + VALUES[:-1]) / np.float32(2)
_FIRST = VALUES[0]

#: Below it, ggml takes a block for zeros.
_EPSILON = np.float32(1e-15)
_NEVER = np.float32(-np.inf)

#: Numbers that the furthest weight is scaled to: the first as ggml tries it first, then its grid, then our own.
_GGML_TARGETS = np.array([127, *range(-134, -119)], np.float32)
_TARGETS = np.array([100, 106, 112, 118, 124, -115, -141], np.float32)


@helper
def nearest_value(y: Any) -> Any:
    """Return the nearest values; of two, the larger; the largest of a NaN, as ggml's search by halves does."""
    found = splat(_FIRST)
    for k in range(15):
        found = where(y < _MIDDLES[k], found, splat(VALUES[k + 1]))
    return found


@helper
def nearest_code(y: Any) -> Any:
    """Return the codes, as int32, of the nearest values."""
    found = splat(np.int32(0))
    for k in range(15):
        found = where(y < _MIDDLES[k], found, splat(np.int32(k + 1)))
    return found


@helper
def value_of(code: Any) -> Any:
    """Return what codes, as int32, stand for."""
    found = splat(_FIRST)
    for k in range(15):
        found = where(code > np.int32(k), splat(VALUES[k + 1]), found)
    return found


@helper
def fit(columns: Any, weights: Any, inverse: Any) -> Any:
    """Return the sums of weight times value and of squared values, with codes by this inverse of a scale."""
    products, squares = splat(ZERO), splat(ZERO)
    for i in range(0, columns.size, 16):
        x = load(columns, i)
        q = nearest_value(x * inverse)
        wq = q if weights is None else q * load(weights, i)
        products, squares = products + wq * x, squares + wq * q
    return products, squares


@helper
def _two_fits(columns: Any, weights: Any, inverse: Any) -> Any:
    """Return the sums of `fit`, and those that ggml makes, each weight's times its square."""
    products, squares, ggml_products, ggml_squares = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    for i in range(0, columns.size, 16):
        x = load(columns, i)
        q = nearest_value(x * inverse)
        wq = q if weights is None else q * load(weights, i)
        products, squares = products + wq * x, squares + wq * q
        ggml_wq = x * x * q
        ggml_products, ggml_squares = ggml_products + ggml_wq * x, ggml_squares + ggml_wq * q
    return products, squares, ggml_products, ggml_squares


@helper
def scales(columns: Any, weights: Any) -> Any:
    """Return the scale of the least squares of each lane, the squared values there, and ggml's own scale.

    For given codes the best scale is products / squares, and takes away
    products**2 / squares of the sum of squares; the largest wins. Where no weight
    counts, the scale is ggml's.
    """
    far = furthest(columns)
    none, best, best_squares, ggml_best = splat(ZERO), splat(_NEVER), splat(ONE), splat(_NEVER)
    found, ggml = none, none
    for k in range(_GGML_TARGETS.size):
        inverse = ONE / (far / _GGML_TARGETS[k]) if k == 0 else _GGML_TARGETS[k] / far
        products, squares, ggml_products, ggml_squares = _two_fits(columns, weights, inverse)
        scale, ggml_scale = products / squares, ggml_products / ggml_squares
        better = ggml_products * ggml_products > ggml_best * ggml_squares
        ggml, ggml_best = where(better, ggml_scale, ggml), where(better, ggml_scale * ggml_products, ggml_best)
        better = scale * products > best
        found, best = where(better, scale, found), where(better, scale * products, best)
        best_squares = where(better, squares, best_squares)
    for k in range(_TARGETS.size):
        products, squares = fit(columns, weights, _TARGETS[k] / far)
        scale = products / squares
        better = scale * products > best
        found, best = where(better, scale, found), where(better, scale * products, best)
        best_squares = where(better, squares, best_squares)
    zeros = magnitude(far) < _EPSILON
    ggml = where(zeros, none, ggml)
    return where(zeros, none, where(best > _NEVER, found, ggml)), best_squares, ggml


@helper
def squared_error(columns: Any, weights: Any, inverse: Any, scale: Any) -> Any:
    """Return each lane's squared error with codes by this inverse, decoded with this scale."""
    error = splat(ZERO)
    for i in range(0, columns.size, 16):
        x = load(columns, i)
        lost = nearest_value(x * inverse) * scale - x
        error = error + (lost * lost if weights is None else lost * lost * load(weights, i))
    return error


@helper
def error_to_beat(columns: Any, weights: Any, inverse: Any, scale: Any) -> Any:
    """Return what an error must be below to be surely smaller; none is where ggml's own scale is not finite."""
    error = squared_error(columns, weights, inverse, scale) * SURELY
    return where(magnitude(scale) <= LARGEST, error, splat(_NEVER))


@helper
def store_codes(values: Any, at: Any, inverse: Any, data: Any, to_at: Any) -> None:
    """Write 32 codes: byte j holds that of weight j in its low half, and that of weight j + 16 in its high half."""
    low = nearest_code(load(values, at) * inverse)
    high = nearest_code(load(values, at + 16) * inverse)
    store(data, to_at, to(low | (high << np.int32(4)), np.uint8))


@helper
def read_codes(data: Any, at: Any, scale: Any, values: Any, to_at: Any) -> None:
    """Write 32 weights, from what `store_codes` wrote."""
    codes = to(load(data, at), np.int32)
    store(values, to_at, value_of(codes & np.int32(15)) * scale)
    store(values, to_at + 16, value_of(codes >> np.int32(4)) * scale)
