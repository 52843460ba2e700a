"""Weights in other types as float32, a cache-sized piece at a time: codecs see float32, and no column is converted.

Conversions are LLVM's own, or integer arithmetic, exact for all 65,536 values, for
float16 where the target has no f16c: there LLVM's half would crash. A million
float16 take 0.08 ms with it and 0.17 without. Kernels over `as_float` and
`extent_of` take float32, or the bits of float16, which they widen in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from aq2_pipeline.kernels._jit import helper, inlined
from aq2_pipeline.kernels.bits import bits_of, extent, float_of
from aq2_pipeline.kernels.lanes import (
    LANES,
    Vector,
    intrinsic,
    largest,
    load,
    maximum,
    read,
    reinterpreted,
    splat,
    store,
    to,
    where,
)

#: How `raw` holds weights; `DIRECT` is aligned float32, which kernels read where it lies.
DIRECT, F32, F16, BF16, F64 = range(5)
KINDS = {"f32": F32, "f16": F16, "bf16": BF16, "f64": F64}

#: Floats that a scratch array needs beyond the longest piece: room for sixteen float64.
STAGING = 2 * LANES

_TWO_112 = np.float32(2.0**112)  # from a float16's exponent, 15 too high, to a float32's, 127
_HALF_INFINITY = np.int32(0x0F7FFFFF)  # beyond it, shifted left by 13, lie infinity and NaN
_MISSING_EXPONENT = np.int32(0x70000000)


def floats_from_halves(halves: Any) -> Any:
    """Return sixteen float32 of the bits of sixteen float16."""
    wide = to(halves, np.int32)
    magnitude = (wide & np.int32(0x7FFF)) << np.int32(13)
    value = reinterpreted(reinterpreted(magnitude, np.float32) * _TWO_112, np.int32)
    value = where(magnitude > _HALF_INFINITY, magnitude + _MISSING_EXPONENT, value)
    return reinterpreted(value | ((wide & np.int32(0x8000)) << np.int32(16)), np.float32)


def has_f16c(context: Any) -> bool:
    """Whether the CPU that is compiled for converts float16 itself."""
    return "+f16c" in context.codegen()._tm_features  # noqa: SLF001 - Numba has no other way


@intrinsic
def _floats_from_halves(_typing: Any, halves: Any) -> Any:
    kind = Vector(types.float32, LANES)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not has_f16c(context):
            return context.compile_internal(builder, floats_from_halves, signature, args)
        halves = builder.bitcast(args[0], ir.VectorType(ir.HalfType(), LANES))
        return builder.fpext(halves, context.get_value_type(kind))

    return kind(halves), emit


overload(floats_from_halves)(lambda halves: lambda halves: _floats_from_halves(halves))


@helper
def float_from_half(half: Any) -> Any:
    """Return the float32 of a float16's bits."""
    magnitude = np.int32((half & 0x7FFF) << 13)
    if magnitude > _HALF_INFINITY:
        return float_of(np.int32(magnitude + _MISSING_EXPONENT) | ((half & 0x8000) << 16))
    value = float_of(magnitude) * _TWO_112
    return -value if half & 0x8000 else value


def as_float(weight: Any) -> Any:
    """Return float32, one or a vector, of itself or of the bits of float16."""
    if weight.dtype == np.float32:
        return weight
    return floats_from_halves(weight) if weight.ndim else float_from_half(np.int32(weight))


def extent_of(weights: Any) -> Any:
    """Return the bits of (min, max) of float32, or of the bits of float16, as `bits.extent` does."""
    return extent(weights.view(np.int32)) if weights.dtype == np.float32 else extent_of_halves(weights)


@inlined
def extent_of_halves(halves: Any) -> Any:
    """Return `bits.extent` of float16: its integer maxima are of 16 bits, and only two are widened."""
    n, lows, highs = halves.size - halves.size % LANES, splat(np.uint16(1 << 15)), splat(np.int16(0))
    for at in range(0, n, LANES):
        patterns = load(halves, at)
        lows, highs = maximum(lows, patterns), maximum(highs, reinterpreted(patterns, np.int16))
    low, high = np.int32(largest(lows)), np.int32(largest(highs))
    for j in range(n, halves.size):
        pattern = np.int32(halves[j])
        low = max(low, pattern)
        if pattern < 1 << 15:
            high = max(high, pattern)
    return bits_of(float_from_half(low)), bits_of(float_from_half(high))


# Lambdas, as in `kernels.lanes`. LLVM would call `extent_of` once a group: 0.25 instead of 0.21 ms per million float16
# in groups of 64, and the float32 of the same groups 0.27 instead of 0.25.
overload(as_float)(
    lambda weight: (
        (lambda weight: weight)
        if getattr(weight, "element", weight) == types.float32
        else (lambda weight: floats_from_halves(weight))
        if isinstance(weight, Vector)
        else (lambda weight: float_from_half(np.int32(weight)))
    )
)
overload(extent_of, jit_options={"forceinline": True})(
    lambda weights: (
        (lambda weights: extent(weights.view(np.int32)))
        if weights.dtype == types.float32
        else (lambda weights: extent_of_halves(weights))
    )
)


@inlined
def sixteen(raw: Any, at: Any, kind: Any) -> Any:
    """Return sixteen weights from a byte on as float32; `kind` is a constant."""
    if kind == F16:
        floats = floats_from_halves(read(raw, at, np.uint16))
    elif kind == BF16:
        floats = reinterpreted(to(read(raw, at, np.uint16), np.int32) << np.int32(16), np.float32)
    elif kind == F64:
        floats = to(read(raw, at, np.float64), np.float32)
    else:
        floats = read(raw, at, np.float32)
    return floats


@inlined
def widen_all(raw: Any, size: Any, kind: Any, scratch: Any) -> Any:
    """Write weights of `size` bytes to the beginning of `scratch`; return their number. `kind` is a constant.

    The last vector overlaps the one before; fewer weights than lanes are staged
    at the end of `scratch`, so that nothing beyond `raw` is read.
    """
    n = raw.size // size
    if n < LANES:
        staging = scratch[scratch.size - STAGING :].view(np.uint8)
        for k in range(raw.size):
            staging[k] = raw[k]
        store(scratch, 0, sixteen(staging, 0, kind))
    else:
        for at in range(0, n - LANES, LANES):
            store(scratch, at, sixteen(raw, size * at, kind))
        store(scratch, n - LANES, sixteen(raw, size * (n - LANES), kind))
    return n


@helper
def size_of(kind: Any) -> Any:
    """Return the bytes of a weight."""
    return 2 if kind in (F16, BF16) else 8 if kind == F64 else 4


@helper
def widen(raw: Any, kind: Any, scratch: Any) -> Any:
    """Write the weights in `raw` to the beginning of `scratch`; return their number.

    A loop for each kind: with the choice inside the loop it takes 0.15 instead of
    0.12 ms per million float16 that come from memory.
    """
    if kind == F16:
        n = widen_all(raw, 2, F16, scratch)
    elif kind == BF16:
        n = widen_all(raw, 2, BF16, scratch)
    elif kind == F64:
        n = widen_all(raw, 8, F64, scratch)
    else:
        n = widen_all(raw, 4, F32, scratch)
    return n


@inlined
def weights_of(kind: Any, values: Any, raw: Any, start: Any, stop: Any, scratch: Any) -> Any:
    """Return the weights of a span as float32: of `values`, or of the bytes `raw`, widened into `scratch`."""
    return values[start:stop] if kind == DIRECT else scratch[: widen(raw[start:stop], kind, scratch)]
