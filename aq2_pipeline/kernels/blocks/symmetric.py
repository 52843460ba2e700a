"""Formats of 32 weights, a float16 scale `d` and codes on both sides of zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import (
    ZERO,
    furthest,
    half_at,
    inverse_or_zero,
    store_half,
    turn_32,
)
from aq2_pipeline.kernels.blocks.scale_search import nearest_code, scale_search
from aq2_pipeline.kernels.halves import half_bits, rounded_to_half
from aq2_pipeline.kernels.lanes import load, local, magnitude, minimum, splat, store, to, where


def symmetric_search(
    n_bytes: int, bounds: tuple[int, int], place: int, extent: Any, write: Any, guesses: tuple[float, ...]
) -> Any:
    """Return `search` of a format whose block is a float16 scale and what `write` makes of the codes.

    Parameters
    ----------
    n_bytes : int
        Bytes a block.
    bounds : (int, int)
        The smallest and the largest code.
    place : int
        The code of the reference for the weight furthest from zero.
    extent : function
        `extent(columns) -> far`: the weight furthest from zero, or its magnitude.
    write : function
        `write(data, at, low, high)`: writes the codes of weights 0 to 15 and 16 to
        31, int32, behind the scale.
    guesses : tuple of float
        See `scale_search`.
    """
    low, high, code = np.float32(bounds[0]), np.float32(bounds[1]), np.float32(place)
    find = scale_search(*bounds, guesses)

    @helper
    def search(values: Any, weights: Any, data: Any) -> Any:
        """Encode 16 blocks with the scales that a search finds, and the nearest codes."""
        columns, inverses, halves = local(512, np.float32), local(16, np.float32), local(16, np.int32)
        turn_32(values, columns)
        far = extent(columns)
        if weights is None:
            d = find(columns, None, far, rounded_to_half(far / code))
        else:
            turned = local(512, np.float32)
            turn_32(weights, turned)
            d = find(columns, turned, far, rounded_to_half(far / code))
        store(inverses, 0, inverse_or_zero(d))
        store(halves, 0, half_bits(d))
        for k in range(16):
            if not store_half(data, n_bytes * k, halves[k]):
                return k
            first = to(nearest_code(load(values, 32 * k) * inverses[k], low, high), np.int32)
            second = to(nearest_code(load(values, 32 * k + 16) * inverses[k], low, high), np.int32)
            write(data, n_bytes * k + 2, first, second)
        return -1

    return search


def symmetric_format(n_bytes: int, middle: int, write: Any, read: Any, guesses: tuple[float, ...]) -> Any:
    """Return `reference`, `search` and `decode` of a format of `d * (code - middle)`.

    Parameters
    ----------
    n_bytes : int
        Bytes a block.
    middle : int
        The code of zero; there are twice as many codes.
    write, read : function
        `write(data, at, low, high)` and `read(data, at) -> low, high`: the codes
        of weights 0 to 15 and 16 to 31, int32, behind the scale.
    guesses : tuple of float
        See `scale_search`.
    """
    lowest, zero, last = np.float32(-middle), np.int32(middle), np.int32(2 * middle - 1)
    half_up = np.float32(middle + 0.5)

    @helper
    def reference(values: Any, weights: Any, data: Any) -> Any:
        """Encode 16 blocks as ggml's quantize_row_*_ref: the weight furthest from zero gets the code 0."""
        columns, inverses, halves = local(512, np.float32), local(16, np.float32), local(16, np.int32)
        zeros = local(16, np.float32)
        turn_32(values, columns)
        d = furthest(columns) / lowest
        inverse = inverse_or_zero(d)
        lost = magnitude(inverse) > LARGEST  # the conversion of infinity gives ggml the code 0 for every weight
        store(inverses, 0, where(lost, splat(ZERO), inverse))
        store(zeros, 0, where(lost, splat(ZERO), splat(half_up)))
        store(halves, 0, half_bits(d))
        for k in range(16):
            if not store_half(data, n_bytes * k, halves[k]):
                return k
            first = to(load(values, 32 * k) * inverses[k] + zeros[k], np.int32)
            second = to(load(values, 32 * k + 16) * inverses[k] + zeros[k], np.int32)
            write(data, n_bytes * k + 2, minimum(first, last), minimum(second, last))
        return -1

    @helper
    def write_about_middle(data: Any, at: Any, first: Any, second: Any) -> None:
        write(data, at, first + zero, second + zero)

    @helper
    def decode(data: Any, values: Any) -> Any:
        """Read one block."""
        d, codes = half_at(data, 0), read(data, 2)
        if not abs(d) <= LARGEST:
            return 0
        store(values, 0, to(codes[0] - zero, np.float32) * d)
        store(values, 16, to(codes[1] - zero, np.float32) * d)
        return -1

    bounds = (-middle, middle - 1)
    search = symmetric_search(n_bytes, bounds, -middle, furthest, write_about_middle, guesses)
    return reference, search, decode
