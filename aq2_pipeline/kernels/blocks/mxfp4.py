"""MXFP4: 32 weights as E2M1 times a power of two, 2**(e - 127), whose exponent is a byte.

Byte j of the 16 behind the exponent holds the code of weight j in its low half and
that of weight j + 16 in its high half (ggml-common.h, block_mxfp4; the order of the
codes aside, OCP Microscaling Formats 1.0). No exponent spells a NaN here: as in
ggml, 255 is 2**128, and what it gives is infinite unless the code is small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST, float_of
from aq2_pipeline.kernels.blocks.columns import SURELY, ZERO, turn_32
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.e2m1 import code_nearest_zero, doubled_value, rounded_to_e2m1
from aq2_pipeline.kernels.lanes import (
    largest,
    load,
    local,
    magnitude,
    maximum,
    minimum,
    reinterpreted,
    splat,
    store,
    to,
    where,
)

BLOCK, N_BYTES, BATCH = 32, 17, 16

_NORMAL = np.int32(0x00800000)
_EXPONENT = np.int32(0x7F800000)
_LN_2, _HALF, _TWO_24 = np.float32(np.log(2)), np.float32(0.5), np.float32(2.0**24)
_LAST = np.int32(252)  # 6 * 2**(253 - 127) is infinite


@helper
def _exponents(columns: Any) -> Any:
    """Return floor(log2(the largest magnitude)) - 2 of each lane, with its bias of 127, and whether it is all zeros.

    ggml takes the logarithm in float32, which is rounded up to the whole number
    just below a power of two: within ln 2 times half of the logarithm's last
    place, which counts as many last places of the magnitude.
    """
    size = splat(ZERO)
    for i in range(0, columns.size, 16):
        size = maximum(size, magnitude(load(columns, i)))
    pattern = reinterpreted(size, np.int32)
    subnormal = pattern < _NORMAL
    pattern = where(subnormal, reinterpreted(size * _TWO_24, np.int32), pattern)
    offset = where(subnormal, splat(np.int32(127 + 24)), splat(np.int32(127)))
    log = to((pattern >> np.int32(23)) - offset, np.float32) + _HALF
    places = reinterpreted(reinterpreted(log, np.int32) & _EXPONENT, np.float32)
    exponent = ((pattern + to(places * _LN_2, np.int32)) >> np.int32(23)) - offset
    return exponent + np.int32(125), size == ZERO


@helper
def _write(values: Any, exponents: Any, data: Any) -> None:
    """Write 16 blocks with these exponents."""
    for k in range(16):
        e = exponents[k]
        scale = float_of(e << 23) if e > 0 else np.float32(2.0**-127)
        low = code_nearest_zero(load(values, 32 * k), scale)
        high = code_nearest_zero(load(values, 32 * k + 16), scale)
        data[17 * k] = np.uint8(e)
        store(data, 17 * k + 1, to(low | (high << np.int32(4)), np.uint8))


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode 16 blocks as ggml's quantize_row_mxfp4_ref and, but for its logarithm, as the OCP's rule.

    As there, an exponent below 0 becomes one near 255, and its block zeros.
    """
    columns, exponents = local(512, np.float32), local(16, np.int32)
    turn_32(values, columns)
    found, zeros = _exponents(columns)
    store(exponents, 0, where(zeros, splat(np.int32(0)), found & np.int32(255)))
    _write(values, exponents, data)
    return -1


@helper
def _squares(columns: Any, weights: Any, inverse: Any) -> Any:
    """Return each lane's squared error as a multiple of the scale's square."""
    error = splat(ZERO)
    for i in range(0, columns.size, 16):
        size = magnitude(load(columns, i)) * inverse
        lost = rounded_to_e2m1(size) - size
        error = error + (lost * lost if weights is None else lost * lost * load(weights, i))
    return error


@helper
def _best_exponents(columns: Any, weights: Any) -> Any:
    """Return the better of the reference's exponent and the next; lower and higher ones are never better."""
    found, _ = _exponents(columns)
    e = minimum(maximum(found, np.int32(0)), _LAST)
    inverse = reinterpreted((np.int32(254) - e) << np.int32(23), np.float32)
    error = _squares(columns, weights, inverse)
    wider = _squares(columns, weights, inverse * _HALF)
    better = wider * np.float32(4) < error * SURELY
    return minimum(where(better, e + np.int32(1), e), _LAST)


@helper
def search(values: Any, weights: Any, data: Any) -> Any:
    """Encode 16 blocks with the exponents of the smaller squared error."""
    columns, exponents = local(512, np.float32), local(16, np.int32)
    turn_32(values, columns)
    if weights is None:
        store(exponents, 0, _best_exponents(columns, None))
    else:
        importance = local(512, np.float32)
        turn_32(weights, importance)
        store(exponents, 0, _best_exponents(columns, importance))
    _write(values, exponents, data)
    return -1


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    e, codes = np.int32(data[0]), to(load(data, 1), np.int32)
    half = float_of((e - 1) << 23) if e > 1 else float_of(0x00200000 << e)
    low = doubled_value(codes & np.int32(15)) * half
    high = doubled_value(codes >> np.int32(4)) * half
    if not largest(maximum(magnitude(low), magnitude(high))) <= LARGEST:
        return 0
    store(values, 0, low)
    store(values, 16, high)
    return -1


kernels = block_kernels("mxfp4", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
