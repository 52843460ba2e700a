"""Q4_K: 256 weights as eight sub-blocks of 32 with a scale and a minimum, and 4-bit codes.

Behind the header of 16 bytes (`six_bit_scales`), byte l of the j-th 32 holds the
code of weight l of sub-block 2 * j in its low half and that of sub-block
2 * j + 1 in its high half (ggml-common.h, block_q4_K).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.blocks.affine_supers import keep_halves
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.six_bit_scales import find_as_ggml, find_best, read_header, store_header
from aq2_pipeline.kernels.lanes import load, local, store, to

BLOCK, N_BYTES, BATCH = 256, 144, 2


@helper
def pack(found: Any, codes: Any, data: Any) -> Any:
    """Write two blocks."""
    halves = local(32, np.int32)
    keep_halves(found, halves)
    for k in range(2):
        if not store_header(data, N_BYTES * k, halves, found, 8 * k):
            return k
        for j in range(4):
            for i in range(0, 32, 16):
                at = BLOCK * k + 64 * j + i
                both = load(codes, at) | load(codes, at + 32) << np.uint8(4)
                store(data, N_BYTES * k + 16 + 32 * j + i, both)
    return -1


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode two blocks as ggml's quantize_row_q4_K_ref."""
    found, codes = local(64, np.float32), local(512, np.uint8)
    find_as_ggml(values, 15, -1, 20, found, codes)
    return pack(found, codes, data)


@helper
def search(values: Any, weights: Any, data: Any) -> Any:
    """Encode two blocks with the least squared error found, that of ggml's scales included."""
    found, codes = local(64, np.float32), local(512, np.uint8)
    grid = (-1.6, 0.45, 7, 0.5, 1, 0)
    find_best(values, weights, 15, -1, 20, grid, found, codes)
    return pack(found, codes, data)


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    scales, lows = local(8, np.float32), local(8, np.float32)
    if not read_header(data, scales, lows):
        return 0
    for j in range(4):
        scale, low, late, late_low = scales[2 * j], lows[2 * j], scales[2 * j + 1], lows[2 * j + 1]
        for i in range(0, 32, 16):
            codes = to(load(data, 16 + 32 * j + i), np.int32)
            store(values, 64 * j + i, scale * to(codes & np.int32(15), np.float32) - low)
            store(values, 64 * j + 32 + i, late * to(codes >> np.int32(4), np.float32) - late_low)
    return -1


kernels = block_kernels("q4_k", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
