"""NVFP4 as ggml stores it: 64 weights, four groups of 16 with a scale each, and no scale of the tensor.

Four bytes are the scales, E4M3 without a sign, of which a half is multiplied with
twice the E2M1 value: 0 and 127 spell 0, and bit 7 means nothing, but that 255 is
480. Byte j of the eight of a group holds the code of weight j in its low half and
that of weight j + 8 in its high half (ggml-common.h, block_nvfp4).

Scales end at 448 and 2**-9: weights below 2**-11 become zeros, and blocks with one
beyond 2688, which ggml would cut off, are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.blocks.columns import SURELY, ZERO, inverse_or_zero, turn_16
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.e2m1 import code_nearest_zero, doubled_value, rounded_to_e2m1
from aq2_pipeline.kernels.lanes import (
    join,
    lane,
    load,
    load_half,
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
from aq2_pipeline.kernels.minifloats import E4M3, size_of_code

BLOCK, N_BYTES, BATCH = 64, 36, 4

_LAST, _HIGHEST = np.int32(126), np.float32(2688)
_SIX, _512, _HALF = np.float32(6), np.float32(512), np.float32(0.5)
_NORMAL, _INFINITY = E4M3.normal, np.float32(np.inf)

#: Codes tried, from that of the reference on: scales that cut off the largest weight, or make it a 4 (half as large
#: again: five codes) rather than a 6.
_FROM, _TO = -2, 7


@helper
def _scale_codes(columns: Any) -> Any:
    """Return each lane's largest magnitude, and the code of a sixth of it as ggml rounds that, half up.

    There, a subnormal scale is at most 7/8 of the smallest normal one, and all
    scales from 248 on are 448.
    """
    size = splat(ZERO)
    for i in range(0, columns.size, 16):
        size = maximum(size, magnitude(load(columns, i)))
    scale = minimum(size / _SIX, np.float32(448))
    subnormal = minimum(to(minimum(scale, _NORMAL) * _512 + _HALF, np.int32), np.int32(7))
    eighths = (reinterpreted(scale, np.int32) + np.int32(1 << 19)) >> np.int32(20)
    code = where(scale < _NORMAL, subnormal, eighths - np.int32(120 << 3))
    return size, where(code < np.int32(120), code, splat(_LAST))


@helper
def _write(values: Any, sizes: Any, codes: Any, data: Any) -> Any:
    """Write 16 groups with the scales of these codes; return the first block that none can hold, or -1."""
    scales = local(16, np.float32)
    scale = size_of_code(load(codes, 0), E4M3)
    store(scales, 0, where(scale == ZERO, splat(_INFINITY), scale))  # of either, all codes are 0
    for k in range(16):
        if sizes[k] > _HIGHEST:
            return k // 4
        at = 36 * (k // 4) + 4 + 8 * (k % 4)
        data[36 * (k // 4) + k % 4] = np.uint8(codes[k])
        found = reinterpreted(to(code_nearest_zero(load(values, 16 * k), scales[k]), np.uint8), np.uint64)
        store(data, at, lane(found, 0) | (lane(found, 1) << np.uint64(4)))
    return -1


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode four blocks as ggml's quantize_row_nvfp4_ref: the largest magnitude of a group becomes 6."""
    columns, sizes, codes = local(256, np.float32), local(16, np.float32), local(16, np.int32)
    turn_16(values, columns)
    size, code = _scale_codes(columns)
    store(sizes, 0, size)
    store(codes, 0, code)
    return _write(values, sizes, codes, data)


@helper
def _squares(columns: Any, weights: Any, scale: Any) -> Any:
    """Return each lane's squared error."""
    inverse, error = inverse_or_zero(scale), splat(ZERO)
    for i in range(0, columns.size, 16):
        size = magnitude(load(columns, i))
        lost = rounded_to_e2m1(size * inverse) * scale - size
        error = error + (lost * lost if weights is None else lost * lost * load(weights, i))
    return error


@helper
def _best_scale_codes(columns: Any, weights: Any, sizes: Any, codes: Any) -> None:
    """Write the largest magnitudes, and the codes of the smallest errors: ggml's unless another is surely better."""
    size, first = _scale_codes(columns)
    best = first
    error = _squares(columns, weights, size_of_code(first, E4M3)) * SURELY
    for step in range(_FROM, _TO):
        code = minimum(maximum(first + np.int32(step), np.int32(1)), _LAST)
        tried = _squares(columns, weights, size_of_code(code, E4M3))
        better = tried < error
        best, error = where(better, code, best), where(better, tried, error)
    store(sizes, 0, size)
    store(codes, 0, best)


@helper
def search(values: Any, weights: Any, data: Any) -> Any:
    """Encode four blocks with the scales of the smallest squared error among those near the reference's."""
    columns, sizes, codes = local(256, np.float32), local(16, np.float32), local(16, np.int32)
    turn_16(values, columns)
    if weights is None:
        _best_scale_codes(columns, None, sizes, codes)
    else:
        importance = local(256, np.float32)
        turn_16(weights, importance)
        _best_scale_codes(columns, importance, sizes, codes)
    return _write(values, sizes, codes, data)


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block; there is none that is not finite."""
    halves = local(16, np.float32)
    codes = to(load(data, 0), np.int32)
    scales = size_of_code(codes & np.int32(127), E4M3) * _HALF
    store(halves, 0, where(codes == np.int32(127), splat(ZERO), scales))
    for k in range(4):
        packed = to(load_half(data, 4 + 8 * k), np.int32)
        group = join(packed & np.int32(15), packed >> np.int32(4))
        store(values, 16 * k, doubled_value(group) * halves[k])
    return -1


kernels = block_kernels("nvfp4", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
