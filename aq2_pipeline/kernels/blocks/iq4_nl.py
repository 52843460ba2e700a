"""IQ4_NL: 32 weights as a float16 scale `d` and 4-bit codes of sixteen values, `d * value`.

Byte j of the 16 behind the scale holds the code of weight j in its low half and
that of weight j + 16 in its high half (ggml-common.h, block_iq4_nl).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import half_at, inverse_or_zero, store_half, turn_32
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.nonlinear import error_to_beat, read_codes, scales, squared_error, store_codes
from aq2_pipeline.kernels.halves import half_bits
from aq2_pipeline.kernels.lanes import local, store, to, where
from aq2_pipeline.kernels.widening import floats_from_halves

BLOCK, N_BYTES, BATCH = 32, 18, 16


@helper
def _write(values: Any, halves: Any, inverses: Any, data: Any) -> Any:
    """Write 16 blocks; return the first whose scale is not finite, or -1."""
    for k in range(16):
        if not store_half(data, 18 * k, halves[k]):
            return k
        store_codes(values, 32 * k, inverses[k], data, 18 * k + 2)
    return -1


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode 16 blocks as ggml's quantize_iq4_nl without importance: squares of the weights weigh the errors."""
    columns, halves, inverses = local(512, np.float32), local(16, np.int32), local(16, np.float32)
    turn_32(values, columns)
    d = scales(columns, None)[2]
    store(halves, 0, half_bits(d))
    store(inverses, 0, inverse_or_zero(d))
    return _write(values, halves, inverses, data)


@helper
def _best_halves(columns: Any, weights: Any, halves: Any, inverses: Any) -> None:
    """Write the bits of the scales that leave the smallest errors, and the inverses that give their codes.

    Tried are ggml's finished block, the best scale rounded to float16, and the
    float16 above it, which is another where scales are subnormal.
    """
    found, _, ggml = scales(columns, weights)
    bits, inverse = half_bits(ggml), inverse_or_zero(ggml)
    error = error_to_beat(columns, weights, inverse, floats_from_halves(to(bits, np.uint16)))
    for step in range(2):
        other = half_bits(found) + np.int32(step)
        d = floats_from_halves(to(other, np.uint16))
        own = inverse_or_zero(d)
        tried = squared_error(columns, weights, own, d)
        better = tried < error
        bits, inverse, error = where(better, other, bits), where(better, own, inverse), where(better, tried, error)
    store(halves, 0, bits)
    store(inverses, 0, inverse)


@helper
def search(values: Any, weights: Any, data: Any) -> Any:
    """Encode 16 blocks with the scales of the smallest squared error found."""
    columns, halves, inverses = local(512, np.float32), local(16, np.int32), local(16, np.float32)
    turn_32(values, columns)
    if weights is None:
        _best_halves(columns, None, halves, inverses)
    else:
        importance = local(512, np.float32)
        turn_32(weights, importance)
        _best_halves(columns, importance, halves, inverses)
    return _write(values, halves, inverses, data)


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d = half_at(data, 0)
    if not abs(d) <= LARGEST:
        return 0
    read_codes(data, 2, d, values, 0)
    return -1


kernels = block_kernels("iq4_nl", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
