"""Formats of 32 weights, a float16 scale `d` and minimum `m`, and codes from 0 on: `d * code + m`."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import ZERO, finite_inverse, half_at, inverse_or_zero, store_half, turn_32
from aq2_pipeline.kernels.blocks.range_search import range_search
from aq2_pipeline.kernels.blocks.scale_search import nearest_code
from aq2_pipeline.kernels.halves import half_bits, rounded_to_half
from aq2_pipeline.kernels.lanes import LANES, load, local, maximum, minimum, store, to

_HALF = np.float32(0.5)


@helper
def bounds(columns: Any) -> Any:
    """Return the first of the smallest and of the largest weights of each lane."""
    low, high = load(columns, 0), load(columns, 0)
    for i in range(LANES, columns.size, LANES):
        x = load(columns, i)
        low, high = minimum(x, low), maximum(x, high)  # the first of equals, for zeros have signs
    return low, high


def grid(highest: int, widths: tuple[float, ...], shifts: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Return guesses: the range takes each width, in codes, about the middle of the codes, and is shifted by each."""
    return tuple((width, (highest - width) / 2 + shift) for width in widths for shift in shifts)


@helper
def store_bounds(data: Any, at: Any, scale: Any, lowest: Any) -> Any:
    """Write the bits of scale and minimum; return whether they are finite."""
    finite = store_half(data, at, scale)
    return store_half(data, at + 2, lowest) and finite


def affine_reference(n_bytes: int, highest: int, write: Any) -> Any:
    """Return `reference` of a format; see `affine_format`."""
    top, last = np.float32(highest), np.int32(highest)

    @helper
    def reference(values: Any, weights: Any, data: Any) -> Any:
        """Encode 16 blocks as ggml's quantize_row_*_ref: the ends of the range get the first and the last code."""
        columns, inverses, minima = local(512, np.float32), local(16, np.float32), local(16, np.float32)
        halves = local(32, np.int32)
        turn_32(values, columns)
        low, high = bounds(columns)
        d = (high - low) / top
        store(inverses, 0, finite_inverse(d))
        store(minima, 0, low)
        store(halves, 0, half_bits(d))
        store(halves, 16, half_bits(low))
        for k in range(16):
            if not store_bounds(data, n_bytes * k, halves[k], halves[16 + k]):
                return k
            first = to((load(values, 32 * k) - minima[k]) * inverses[k] + _HALF, np.int32)
            second = to((load(values, 32 * k + 16) - minima[k]) * inverses[k] + _HALF, np.int32)
            write(data, n_bytes * k + 4, minimum(first, last), minimum(second, last))
        return -1

    return reference


def affine_search(n_bytes: int, highest: int, write: Any, guesses: tuple[tuple[float, float], ...]) -> Any:
    """Return `search` of a format; see `affine_format`."""
    top = np.float32(highest)
    find = range_search(highest, guesses)

    @helper
    def search(values: Any, weights: Any, data: Any) -> Any:
        """Encode 16 blocks with the scales and minima that a search finds, and the nearest codes."""
        columns, inverses, minima = local(512, np.float32), local(16, np.float32), local(16, np.float32)
        halves = local(32, np.int32)
        turn_32(values, columns)
        low, high = bounds(columns)
        d, m = rounded_to_half((high - low) / top), rounded_to_half(low)
        if weights is None:
            d, m = find(columns, None, low, high - low, d, m)
        else:
            turned = local(512, np.float32)
            turn_32(weights, turned)
            d, m = find(columns, turned, low, high - low, d, m)
        store(inverses, 0, inverse_or_zero(d))
        store(minima, 0, m)
        store(halves, 0, half_bits(d))
        store(halves, 16, half_bits(m))
        for k in range(16):
            if not store_bounds(data, n_bytes * k, halves[k], halves[16 + k]):
                return k
            first = to(nearest_code((load(values, 32 * k) - minima[k]) * inverses[k], ZERO, top), np.int32)
            second = to(nearest_code((load(values, 32 * k + 16) - minima[k]) * inverses[k], ZERO, top), np.int32)
            write(data, n_bytes * k + 4, first, second)
        return -1

    return search


def affine_format(n_bytes: int, highest: int, write: Any, read: Any, guesses: tuple[tuple[float, float], ...]) -> Any:
    """Return `reference`, `search` and `decode` of a format.

    Parameters
    ----------
    n_bytes : int
        Bytes a block.
    highest : int
        The largest code.
    write, read : function
        `write(data, at, low, high)` and `read(data, at) -> low, high`: the codes
        of weights 0 to 15 and 16 to 31, int32, behind scale and minimum.
    guesses : tuple of (float, float)
        See `range_search`.
    """

    @helper
    def decode(data: Any, values: Any) -> Any:
        """Read one block."""
        d, m, codes = half_at(data, 0), half_at(data, 2), read(data, 4)
        if not (abs(d) <= LARGEST and abs(m) <= LARGEST):
            return 0
        store(values, 0, to(codes[0], np.float32) * d + m)
        store(values, 16, to(codes[1], np.float32) * d + m)
        return -1

    return affine_reference(n_bytes, highest, write), affine_search(n_bytes, highest, write, guesses), decode
