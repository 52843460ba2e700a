"""Scales as float16: rounded to the nearest, ties to even, by integer arithmetic that is exact on every CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import MAGNITUDE
from aq2_pipeline.kernels.lanes import minimum, reinterpreted, to, where
from aq2_pipeline.kernels.widening import floats_from_halves

#: What a float32 rounds to that no finite float16 is near.
HALF_INFINITY = np.int32(0x7C00)

_NORMAL = np.int32(0x38800000)  # 2**-14
_BIAS = np.int32(0x38000000)  # exponent 112 = 127 - 15
_HALF = np.float32(0.5)  # adding it leaves multiples of 2**-24 in the low bits
_BITS_OF_HALF = np.int32(0x3F000000)


@helper
def half_bits(vector: Any) -> Any:
    """Return the bits of the nearest float16 of each float32, as int32; beyond 65504, those of infinity."""
    pattern = reinterpreted(vector, np.int32)
    size = pattern & MAGNITUDE
    normal = (size - _BIAS + np.int32(0xFFF) + ((size >> np.int32(13)) & np.int32(1))) >> np.int32(13)
    tiny = reinterpreted(reinterpreted(size, np.float32) + _HALF, np.int32) - _BITS_OF_HALF
    rounded = minimum(where(size < _NORMAL, tiny, normal), HALF_INFINITY)
    return rounded | ((pattern >> np.int32(16)) & np.int32(0x8000))


@helper
def rounded_to_half(vector: Any) -> Any:
    """Return each float32 as the float16 that is stored of it gives it back."""
    return floats_from_halves(to(half_bits(vector), np.uint16))
