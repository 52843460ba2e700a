"""Weights in other types as float32, a cache-sized piece at a time: codecs see float32, and no column is converted.

Conversions are integer arithmetic, exact on every CPU, or LLVM's own between
float64 and float32; LLVM's half would crash where the target has no f16c.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper, inlined
from aq2_pipeline.kernels.bits import float_of
from aq2_pipeline.kernels.lanes import LANES, read, reinterpreted, store, to, where

#: How `raw` holds weights; `DIRECT` is aligned float32, which kernels read where it lies.
DIRECT, F32, F16, BF16, F64 = range(5)
KINDS = {"f32": F32, "f16": F16, "bf16": BF16, "f64": F64}

#: Floats that a scratch array needs beyond the longest piece: room for sixteen float64.
STAGING = 2 * LANES

_TWO_112 = np.float32(2.0**112)  # from a float16's exponent, 15 too high, to a float32's, 127
_HALF_INFINITY = np.int32(0x0F7FFFFF)  # beyond it, shifted left by 13, lie infinity and NaN
_MISSING_EXPONENT = np.int32(0x70000000)


@helper
def floats_from_halves(halves: Any) -> Any:
    """Return sixteen float32 of the bits of float16, as int32."""
    magnitude = (halves & np.int32(0x7FFF)) << np.int32(13)
    value = reinterpreted(reinterpreted(magnitude, np.float32) * _TWO_112, np.int32)
    value = where(magnitude > _HALF_INFINITY, magnitude + _MISSING_EXPONENT, value)
    return reinterpreted(value | ((halves & np.int32(0x8000)) << np.int32(16)), np.float32)


@helper
def float_from_half(half: Any) -> Any:
    """Return the float32 of a float16's bits."""
    magnitude = np.int32((half & 0x7FFF) << 13)
    if magnitude > _HALF_INFINITY:
        return float_of(np.int32(magnitude + _MISSING_EXPONENT) | ((half & 0x8000) << 16))
    value = float_of(magnitude) * _TWO_112
    return -value if half & 0x8000 else value


@helper
def sixteen(raw: Any, at: Any, kind: Any) -> Any:
    """Return sixteen weights from a byte on as float32."""
    if kind == F16:
        return floats_from_halves(to(read(raw, at, np.uint16), np.int32))
    if kind == BF16:
        return reinterpreted(to(read(raw, at, np.uint16), np.int32) << np.int32(16), np.float32)
    if kind == F64:
        return to(read(raw, at, np.float64), np.float32)
    return read(raw, at, np.float32)


@helper
def widen(raw: Any, kind: Any, scratch: Any) -> Any:
    """Write the weights in `raw` to the beginning of `scratch`; return their number.

    The last vector overlaps the one before; fewer weights than lanes are staged
    at the end of `scratch`, so that nothing beyond `raw` is read.
    """
    size = 2 if kind in (F16, BF16) else 8 if kind == F64 else 4
    n = raw.size // size
    if n < LANES:
        staging = scratch[scratch.size - STAGING :].view(np.uint8)
        for k in range(raw.size):
            staging[k] = raw[k]
        store(scratch, 0, sixteen(staging, 0, kind))
        return n
    for at in range(0, n - LANES, LANES):
        store(scratch, at, sixteen(raw, size * at, kind))
    store(scratch, n - LANES, sixteen(raw, size * (n - LANES), kind))
    return n


@inlined
def weights_of(kind: Any, values: Any, raw: Any, start: Any, stop: Any, scratch: Any) -> Any:
    """Return the weights of a span as float32: of `values`, or of the bytes `raw`, widened into `scratch`."""
    return values[start:stop] if kind == DIRECT else scratch[: widen(raw[start:stop], kind, scratch)]
