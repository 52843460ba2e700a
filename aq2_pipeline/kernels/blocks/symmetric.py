"""Formats of 32 weights, a float16 scale `d` and codes about a middle: `d * (code - middle)`."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import furthest, half_at, inverse_or_zero, store_half, turn_32
from aq2_pipeline.kernels.blocks.scale_search import nearest, scale_search
from aq2_pipeline.kernels.halves import half_bits, rounded_to_half
from aq2_pipeline.kernels.lanes import load, local, minimum, store, to


def symmetric_format(n_bytes: int, middle: int, write: Any, read: Any, guesses: tuple[float, ...]) -> Any:
    """Return `reference`, `search` and `decode` of a format.

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
    low, high = np.float32(-middle), np.float32(middle - 1)
    up, zero, last = np.float32(middle + 0.5), np.int32(middle), np.int32(2 * middle - 1)
    find = scale_search(-middle, middle - 1, guesses)

    @helper
    def reference(values: Any, weights: Any, data: Any) -> Any:
        """Encode 16 blocks as ggml's quantize_row_*_ref: the weight furthest from zero gets the code 0."""
        columns, inverses, halves = local(512, np.float32), local(16, np.float32), local(16, np.int32)
        turn_32(values, columns)
        d = furthest(columns) / low
        store(inverses, 0, inverse_or_zero(d))
        store(halves, 0, half_bits(d))
        for k in range(16):
            if not store_half(data, n_bytes * k, halves[k]):
                return k
            inverse = inverses[k]
            first = to(load(values, 32 * k) * inverse + up, np.int32)
            second = to(load(values, 32 * k + 16) * inverse + up, np.int32)
            write(data, n_bytes * k + 2, minimum(first, last), minimum(second, last))
        return -1

    @helper
    def search(values: Any, weights: Any, data: Any) -> Any:
        """Encode 16 blocks with the scales that a search finds, and the nearest codes."""
        columns, inverses, halves = local(512, np.float32), local(16, np.float32), local(16, np.int32)
        turn_32(values, columns)
        far = furthest(columns)
        if weights is None:
            d = find(columns, None, far, rounded_to_half(far / low))
        else:
            turned = local(512, np.float32)
            turn_32(weights, turned)
            d = find(columns, turned, far, rounded_to_half(far / low))
        store(inverses, 0, inverse_or_zero(d))
        store(halves, 0, half_bits(d))
        for k in range(16):
            if not store_half(data, n_bytes * k, halves[k]):
                return k
            inverse = inverses[k]
            first = to(nearest(load(values, 32 * k) * inverse, low, high), np.int32)
            second = to(nearest(load(values, 32 * k + 16) * inverse, low, high), np.int32)
            write(data, n_bytes * k + 2, first + zero, second + zero)
        return -1

    @helper
    def decode(data: Any, values: Any) -> Any:
        """Read one block."""
        d, codes = half_at(data, 0), read(data, 2)
        if not abs(d) <= LARGEST:
            return 0
        store(values, 0, to(codes[0] - zero, np.float32) * d)
        store(values, 16, to(codes[1] - zero, np.float32) * d)
        return -1

    return reference, search, decode
