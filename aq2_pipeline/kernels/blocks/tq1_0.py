"""TQ1_0: 256 weights as codes 0 to 2 and a float16 scale `d`: `d * (code - 1)`.

Five codes are the digits of a number in base 3, the first the highest, and a byte
holds it times 256 / 243, rounded up: times 3 it carries one digit after the other.
Byte j of the first 32 is of the weights j, j + 32 and so on, byte j of 16 more of
160 + j, 176 + j and so on; byte j of the last 4 is of 240 + j, 244 + j, 248 + j and
252 + j alone. `d` is last (ggml-common.h, block_tq1_0).
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

BLOCK, N_BYTES, BATCH = 256, 54, 16


@helper
def pack(codes: Any, data: Any, at: Any) -> None:
    """Write the codes of a block from a byte on."""
    for k in range(3):  # 16 bytes
        first, apart = (16 * k, 32) if k < 2 else (160, 16)
        number = to(load(codes, first), np.int32)
        for digit in range(1, 5):
            number = number * np.int32(3) + to(load(codes, first + digit * apart), np.int32)
        # times 256 / 243 rounded up, without a division: exact for each of the 243
        store(data, at + 16 * k, to((number * np.int32(69042) + np.int32(65535)) >> np.int32(16), np.uint8))
    for j in range(4):
        number = 0
        for digit in range(4):
            number = number * np.int32(3) + np.int32(codes[240 + j + 4 * digit])
        data[at + 48 + j] = np.uint8((number * 768 + 242) // 243)


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d = half_at(data, 52)
    if not abs(d) <= LARGEST:
        return 0
    for k in range(3):  # 16 bytes
        first, apart = (16 * k, 32) if k < 2 else (160, 16)
        rest = to(load(data, 16 * k), np.int32)
        for digit in range(5):
            rest = rest * np.int32(3)
            store(values, first + digit * apart, to((rest >> np.int32(8)) - np.int32(1), np.float32) * d)
            rest = rest & np.int32(255)
    for j in range(4):
        rest = np.int32(data[48 + j])
        for digit in range(4):
            rest = rest * 3
            values[240 + j + 4 * digit] = np.float32((rest >> 8) - 1) * d
            rest = rest & 255
    return -1


search, reference = encoders(N_BYTES, pack)
kernels = block_kernels("tq1_0", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
