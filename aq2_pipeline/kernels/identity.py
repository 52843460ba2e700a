"""Weights kept as float32, float16 or bfloat16, little-endian, with no scale.

`params` is `[kind]`. Rounding is to the nearest, ties to even, by integer
arithmetic, exact on every CPU: LLVM's own half conversions crash where the
target has no f16c. Bytes are stored one by one because a row may start anywhere
in the output buffer; LLVM merges the stores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import DECODE, ENCODE, ERROR, helper, kernel
from aq2_pipeline.kernels.bits import INFINITY_BITS, MAGNITUDE, bits_of, float_of
from aq2_pipeline.kernels.moments import add_value
from aq2_pipeline.kernels.widening import float_from_half

F32, F16, BF16 = range(3)

_HALF_OVERFLOW = np.int32(0x477FF000)  # 65520: what rounds beyond 65504
_HALF_NORMAL = np.int32(0x38800000)  # 2**-14
_HALF_BIAS = np.int32(0x38000000)  # exponent 112 = 127 - 15
_HALF_BITS_OF_HALF = np.int32(0x3F000000)  # 0.5: adding it leaves multiples of 2**-24 in the low bits


@helper
def half_from_bits(bits: Any) -> Any:
    """Round the bits of a float32 to those of a float16; -1 where it does not fit."""
    magnitude = np.int32(bits & MAGNITUDE)
    if magnitude >= _HALF_OVERFLOW:
        return np.int32(-1)
    if magnitude >= _HALF_NORMAL:
        odd = (magnitude >> 13) & 1
        half = (magnitude - _HALF_BIAS + 0xFFF + odd) >> 13
    else:
        half = bits_of(float_of(magnitude) + np.float32(0.5)) - _HALF_BITS_OF_HALF
    return np.int32(half | ((bits >> 16) & 0x8000))


@helper
def bfloat_from_bits(bits: Any) -> Any:
    """Round the bits of a float32 to those of a bfloat16; -1 where it does not fit."""
    rounded = np.int64(bits & MAGNITUDE) + 0x7FFF + ((bits >> 16) & 1)
    if rounded >= INFINITY_BITS:
        return np.int32(-1)
    return np.int32((rounded >> 16) | ((bits >> 16) & 0x8000))


@helper
def narrowed(bits: Any, kind: Any) -> Any:
    """Return the 16 bits that are stored, or -1 where the value is not finite or does not fit."""
    return half_from_bits(bits) if kind == F16 else bfloat_from_bits(bits)


@helper
def widened(stored: Any, kind: Any) -> Any:
    """Return the float32 of 16 stored bits."""
    return float_from_half(stored) if kind == F16 else float_of(np.int32(stored << 16))


@kernel(ENCODE)
def encode(values: Any, row_length: Any, params: Any, importance: Any, data: Any, scales: Any, zero_points: Any) -> Any:
    """Store one row of weights; the status is the position of its first bad value, or -1."""
    pattern, kind = values.view(np.int32), params[0]
    for j in range(values.size):
        bits = pattern[j]
        if (bits & MAGNITUDE) >= INFINITY_BITS:
            return j
        if kind == F32:
            for k in range(4):
                data[4 * j + k] = np.uint8((bits >> (8 * k)) & 255)
        else:
            stored = narrowed(bits, kind)
            if stored < 0:
                return j
            data[2 * j] = np.uint8(stored & 255)
            data[2 * j + 1] = np.uint8(stored >> 8)
    return -1


@kernel(DECODE)
def decode(data: Any, scales: Any, zero_points: Any, row_length: Any, params: Any, values: Any) -> Any:
    """Read one row of weights; the status is the position of its first value that is not finite, or -1."""
    kind = params[0]
    for j in range(values.size):
        if kind == F32:
            bits = np.int64(0)
            for k in range(4):
                bits |= np.int64(data[4 * j + k]) << (8 * k)
            values[j] = float_of(np.int32(bits - ((bits >> 31) << 32)))
        else:
            values[j] = widened(np.int32(data[2 * j]) | np.int32(data[2 * j + 1]) << 8, kind)
        if (bits_of(values[j]) & MAGNITUDE) >= INFINITY_BITS:
            return j
    return -1


@kernel(ERROR)
def error(values: Any, position: Any, row_length: Any, params: Any, importance: Any, lanes: Any, sums: Any) -> Any:
    """Sum the errors of a row, or of a piece of one from `position` on, as the integer kernels do."""
    pattern, kind = values.view(np.int32), params[0]
    for j in range(values.size):
        if (pattern[j] & MAGNITUDE) >= INFINITY_BITS:
            return j
        decoded = values[j]
        if kind != F32:
            stored = narrowed(pattern[j], kind)
            if stored < 0:
                return j
            decoded = widened(stored, kind)
        add_value(values[j], decoded, position + j, lanes, sums)
    return -1
