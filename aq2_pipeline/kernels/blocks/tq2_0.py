"""TQ2_0: 256 weights as codes 0 to 2 and a float16 scale `d`: `d * (code - 1)`.

Of each half of 128 weights, byte j of 32 holds the codes of the weights j, j + 32,
j + 64 and j + 96, two bits each, in order; `d` is last (ggml-common.h, block_tq2_0).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import half_at
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.ternary import encoders
from aq2_pipeline.kernels.lanes import load, store, to

BLOCK, N_BYTES, BATCH = 256, 66, 16


@helper
def pack(codes: Any, data: Any, at: Any) -> None:
    """Write the codes of a block from a byte on."""
    for k in range(4):  # 16 bytes of a half
        first = k // 2 * 128 + k % 2 * 16
        low = load(codes, first) | (load(codes, first + 32) << np.uint8(2))
        high = load(codes, first + 64) | (load(codes, first + 96) << np.uint8(2))
        store(data, at + 16 * k, low | (high << np.uint8(4)))


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d = half_at(data, 64)
    if not abs(d) <= LARGEST:
        return 0
    for k in range(16):
        part = k % 8
        code = load(data, k // 8 * 32 + part % 2 * 16) >> np.uint8(part // 2 * 2) & np.uint8(3)
        store(values, 16 * k, to(to(code, np.int32) - np.int32(1), np.float32) * d)
    return -1


search, reference = encoders(N_BYTES, pack)
kernels = block_kernels("tq2_0", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
