"""Q4_0: 32 weights as a float16 scale `d` and 4-bit codes, `d * (code - 8)`.

Byte j of the 16 behind the scale holds the code of weight j in its low half and
that of weight j + 16 in its high half (ggml-common.h, block_q4_0).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import furthest, half_at, inverse_or_zero, store_half, turn_32
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.halves import half_bits
from aq2_pipeline.kernels.lanes import load, local, minimum, store, to

BLOCK, N_BYTES, BATCH = 32, 18, 16


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode 16 blocks as ggml's quantize_row_q4_0_ref: the weight furthest from zero gets the code 0."""
    columns, inverses, halves = local(512, np.float32), local(16, np.float32), local(16, np.int32)
    turn_32(values, columns)
    d = furthest(columns) / np.float32(-8)
    store(inverses, 0, inverse_or_zero(d))
    store(halves, 0, half_bits(d))
    for k in range(16):
        if not store_half(data, 18 * k, halves[k]):
            return k
        inverse = inverses[k]
        low = to(load(values, 32 * k) * inverse + np.float32(8.5), np.int32)
        high = to(load(values, 32 * k + 16) * inverse + np.float32(8.5), np.int32)
        codes = minimum(low, np.int32(15)) | (minimum(high, np.int32(15)) << np.int32(4))
        store(data, 18 * k + 2, to(codes, np.uint8))
    return -1


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d, codes = half_at(data, 0), to(load(data, 2), np.int32)
    if not abs(d) <= LARGEST:
        return 0
    store(values, 0, to((codes & np.int32(15)) - np.int32(8), np.float32) * d)
    store(values, 16, to((codes >> np.int32(4)) - np.int32(8), np.float32) * d)
    return -1


kernels = block_kernels("q4_0", BLOCK, N_BYTES, BATCH, {"reference": reference}, decode)
