"""Q8_0: 32 weights as a float16 scale `d` and signed bytes, `d * code` (ggml-common.h, block_q8_0)."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import ZERO, finite_inverse, furthest, half_at, store_half, turn_32
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.symmetric import symmetric_search
from aq2_pipeline.kernels.halves import half_bits
from aq2_pipeline.kernels.lanes import load, local, magnitude, reinterpreted, store, to, where

BLOCK, N_BYTES, BATCH = 32, 34, 16

#: No -128: ggml never writes it, and code that multiplies magnitudes may not expect it.
LARGEST_CODE = 127

#: Errors of 8 bits are nearly random from one whole place to the next, and the best of several is well below the mean.
GUESSES = tuple(float(place) for place in range(126, 114, -1))

_NONE, _ONE = np.int32(0), np.int32(1)
_LAST = np.float32(LARGEST_CODE)


@helper
def largest_size(columns: Any) -> Any:
    """Return the largest magnitude of each lane."""
    return magnitude(furthest(columns))


@helper
def rounded_away(scaled: Any) -> Any:
    """Return the nearest whole numbers as int32, ties away from zero, as C's roundf."""
    size = magnitude(scaled)
    whole = (to(size + size, np.int32) + _ONE) >> _ONE
    return where(scaled < ZERO, _NONE - whole, whole)


@helper
def write(data: Any, at: Any, first: Any, second: Any) -> None:
    """Write 32 codes."""
    store(data, at, to(first, np.uint8))
    store(data, at + 16, to(second, np.uint8))


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode 16 blocks as ggml's quantize_row_q8_0_ref: the largest magnitude gets the code 127."""
    columns, inverses, halves = local(512, np.float32), local(16, np.float32), local(16, np.int32)
    turn_32(values, columns)
    d = largest_size(columns) / _LAST
    store(inverses, 0, finite_inverse(d))
    store(halves, 0, half_bits(d))
    for k in range(16):
        if not store_half(data, N_BYTES * k, halves[k]):
            return k
        first = rounded_away(load(values, 32 * k) * inverses[k])
        second = rounded_away(load(values, 32 * k + 16) * inverses[k])
        write(data, N_BYTES * k + 2, first, second)
    return -1


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d = half_at(data, 0)
    if not abs(d) <= LARGEST:
        return 0
    for j in range(0, 32, 16):
        store(values, j, to(reinterpreted(load(data, 2 + j), np.int8), np.float32) * d)
    return -1


search = symmetric_search(N_BYTES, (-LARGEST_CODE, LARGEST_CODE), LARGEST_CODE, largest_size, write, GUESSES)
kernels = block_kernels("q8_0", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
