"""IQ4_XS: 256 weights as IQ4_NL's codes, with a 6-bit scale for each 32, `d * (level - 32) * value`.

Behind the float16 `d` lie the upper two bits of the eight levels, in a 16-bit word
from its low end on, and four bytes with the lower four bits, that of an even level
in the low half; then 16 bytes of codes for each 32 weights, as in IQ4_NL
(ggml-common.h, block_iq4_xs).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST, ROUND
from aq2_pipeline.kernels.blocks.columns import ZERO, half_at, inverse_or_zero, store_half, turn_32
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.nonlinear import error_to_beat, fit, read_codes, scales, squared_error, store_codes
from aq2_pipeline.kernels.halves import half_bits, rounded_to_half
from aq2_pipeline.kernels.lanes import (
    load,
    local,
    magnitude,
    maximum,
    minimum,
    shared_largest,
    shared_total,
    splat,
    store,
    to,
    where,
)

BLOCK, N_BYTES, BATCH = 256, 136, 2

_LOWEST, _HIGHEST = np.float32(-32), np.float32(31)
_SMALLEST_HALF = np.float32(2.0**-24)

#: Levels that the largest scale may get, of either sign.
_LARGEST_LEVELS = np.array([*range(20, 33)], np.float32)

#: Steps from the nearest level to those tried; that itself comes first, and stays where no error counts.
_STEPS = np.array([0, -1, 1], np.float32)


@helper
def _levels(found: Any, d: Any) -> Any:
    """Return the levels that are nearest to scales, as floats from -32 to 31."""
    nearest = (found * inverse_or_zero(d) + ROUND) - ROUND
    return minimum(maximum(nearest, _LOWEST), _HIGHEST)


@helper
def _ggml_scales(found: Any) -> Any:
    """Return ggml's `d`, not rounded yet, in all lanes of a super-block: the largest scale gets the level -32."""
    ds, sizes = local(16, np.float32), local(16, np.float32)
    store(ds, 0, found)
    store(sizes, 0, magnitude(found))
    for first in range(0, 16, 8):
        largest = first
        for k in range(first, first + 8):
            if sizes[k] > sizes[largest] or not sizes[k] <= LARGEST:
                largest = k
        d = ds[largest] / _LOWEST
        for k in range(first, first + 8):
            ds[k] = d
    return load(ds, 0)


@helper
def _write(values: Any, halves: Any, levels: Any, inverses: Any, data: Any) -> Any:
    """Write two super-blocks; return the first whose scale is not finite, or -1."""
    for k in range(2):
        at, first, high = 136 * k, 8 * k, 0
        if not store_half(data, at, halves[first]):
            return k
        for j in range(8):
            level = levels[first + j] + 32
            high |= (level >> 4) << (2 * j)
            if j % 2 == 0:
                data[at + 4 + j // 2] = np.uint8(level & 15)
            else:
                data[at + 4 + j // 2] |= np.uint8((level & 15) << 4)
            store_codes(values, 256 * k + 32 * j, inverses[first + j], data, at + 8 + 16 * j)
        data[at + 2], data[at + 3] = np.uint8(high & 255), np.uint8(high >> 8)
    return -1


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode two super-blocks as ggml's quantize_iq4_xs without importance.

    Where ggml overflows to NaN among scales that do not, this tells of a scale
    that is not finite.
    """
    columns = local(512, np.float32)
    halves, levels, inverses = local(16, np.int32), local(16, np.int32), local(16, np.float32)
    turn_32(values, columns)
    found = scales(columns, None)[2]
    d = _ggml_scales(found)
    level = _levels(found, d)
    store(halves, 0, half_bits(d))
    store(levels, 0, to(level, np.int32))
    store(inverses, 0, inverse_or_zero(d * level))
    return _write(values, halves, levels, inverses, data)


@helper
def _super_scales(found: Any, squares: Any) -> Any:
    """Return the float16 `d` with whose levels the scales lose least, by the quadratic that each sum of squares is.

    It is never 0 where a scale is not: a level can then still lift a scale that is too small for float16.
    """
    largest = shared_largest(magnitude(found), 8)
    best, best_lost = splat(ZERO), splat(np.float32(np.inf))
    for k in range(2 * _LARGEST_LEVELS.size):
        size = maximum(rounded_to_half(largest / _LARGEST_LEVELS[k // 2]), _SMALLEST_HALF)
        d = size if k % 2 == 0 else ZERO - size
        off = found - d * _levels(found, d)
        lost = shared_total(off * off * squares, 8)
        better = lost < best_lost
        best, best_lost = where(better, d, best), where(better, lost, best_lost)
    return best


@helper
def _best_levels(columns: Any, weights: Any, d: Any, near: Any) -> Any:
    """Return the best of each level and its neighbours, and the error there."""
    best, error = near, splat(np.float32(np.inf))
    for k in range(3):
        level = minimum(maximum(near + _STEPS[k], _LOWEST), _HIGHEST)
        scale = d * level
        tried = squared_error(columns, weights, inverse_or_zero(scale), scale)
        better = tried < error
        best, error = where(better, level, best), where(better, tried, error)
    return best, error


@helper
def _refitted(columns: Any, weights: Any, d: Any, level: Any) -> Any:
    """Return the float16 `d` of the least squares for these levels and their codes; infinite if all are 0."""
    products, squares = fit(columns, weights, inverse_or_zero(d * level))
    total = shared_total(products * level, 8)
    return rounded_to_half(total / shared_total(squares * level * level, 8))


@helper
def _best(columns: Any, weights: Any, halves: Any, levels: Any, inverses: Any) -> None:
    """Write scales, levels and inverses: those of ggml's finished super-block, unless ours leaves a smaller error."""
    found, squares, ggml = scales(columns, weights)
    d = _super_scales(found, squares)
    level, errors = _best_levels(columns, weights, d, _levels(found, d))
    error = shared_total(errors, 8)

    other = _refitted(columns, weights, d, level)
    scale = other * level
    tried = shared_total(squared_error(columns, weights, inverse_or_zero(scale), scale), 8)
    d, error = where(tried < error, other, d), where(tried < error, tried, error)
    inverse = inverse_or_zero(d * level)

    other = _ggml_scales(ggml)
    other_level = _levels(ggml, other)
    other_inverse = inverse_or_zero(other * other_level)
    other_scale = rounded_to_half(other) * other_level
    better = error < shared_total(error_to_beat(columns, weights, other_inverse, other_scale), 8)
    store(halves, 0, half_bits(where(better, d, other)))
    store(levels, 0, to(where(better, level, other_level), np.int32))
    store(inverses, 0, where(better, inverse, other_inverse))


@helper
def search(values: Any, weights: Any, data: Any) -> Any:
    """Encode two super-blocks with the scales of the smallest squared error found."""
    columns = local(512, np.float32)
    halves, levels, inverses = local(16, np.int32), local(16, np.int32), local(16, np.float32)
    turn_32(values, columns)
    if weights is None:
        _best(columns, None, halves, levels, inverses)
    else:
        importance = local(512, np.float32)
        turn_32(weights, importance)
        _best(columns, importance, halves, levels, inverses)
    return _write(values, halves, levels, inverses, data)


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d = half_at(data, 0)
    if not abs(d) <= LARGEST:
        return 0
    high = np.int32(data[2]) | np.int32(data[3]) << 8
    for j in range(8):
        level = ((data[4 + j // 2] >> (4 * (j % 2))) & 15) | ((high >> (2 * j)) & 3) << 4
        read_codes(data, 8 + 16 * j, d * np.float32(level - 32), values, 32 * j)
    return -1


kernels = block_kernels("iq4_xs", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
