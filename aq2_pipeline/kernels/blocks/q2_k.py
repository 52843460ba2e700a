"""Q2_K: 256 weights as sixteen sub-blocks of 16 with a scale and a minimum, and 2-bit codes.

16 bytes hold the 4-bit codes of a scale (low half) and a minimum. Of the 64 bytes
behind, byte l of the j-th 32 holds the codes of the weights l, l + 32, l + 64 and
l + 96 of the j-th 128, from its low bits on. `d` and `dmin` come last
(ggml-common.h, block_q2_K).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.affine_reference import reference_fit
from aq2_pipeline.kernels.blocks.affine_search import keep_better, misfit, search_affine
from aq2_pipeline.kernels.blocks.affine_supers import (
    keep_codes,
    keep_halves,
    keep_reference_codes,
    rounded_as_ggml,
    whole_total,
)
from aq2_pipeline.kernels.blocks.columns import half_at, store_half, turn_16
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.lanes import largest, load, local, splat, store, to

BLOCK, N_BYTES, BATCH = 256, 84, 1


@helper
def pack(found: Any, codes: Any, data: Any) -> Any:
    """Write a block."""
    halves = local(32, np.int32)
    keep_halves(found, halves)
    store(data, 0, to(load(found, 32), np.uint8) | to(load(found, 48), np.uint8) << np.uint8(4))
    for j in range(2):
        for i in range(0, 32, 16):
            at = 128 * j + i
            low = load(codes, at) | load(codes, at + 32) << np.uint8(2)
            high = load(codes, at + 64) | load(codes, at + 96) << np.uint8(2)
            store(data, 16 + 32 * j + i, low | high << np.uint8(4))
    finite = store_half(data, 80, halves[0])
    finite &= store_half(data, 82, halves[16])
    return -1 if finite else 0


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode a block as ggml's quantize_row_q2_K_ref."""
    columns, emphasis, trial = local(256, np.float32), local(256, np.float32), local(256, np.float32)
    found, kept, codes = local(64, np.float32), local(32, np.float32), local(256, np.uint8)
    turn_16(values, columns)
    scale, low = reference_fit(columns, 3, -0.5, 15, 1, emphasis, trial, kept)
    rounded_as_ggml(scale, low, 16, 15, found)
    keep_reference_codes(values, found, kept, 16, 3, codes)
    return pack(found, codes, data)


@helper
def search_from(columns: Any, importance: Any, found: Any, trial: Any, emphasis: Any, kept: Any) -> None:
    """Find scales and minima; ggml's are tried only where they may be better, for they are rarely."""
    setup = (3, 15, 16, (0.8, -0.35, 5, 0.3, 3, 1), (0.7, 0.04, 15), 2, 1)
    unsure, error = search_affine(columns, importance, None, setup, found, trial)
    if importance is not None or largest(unsure) > 0:
        codes = local(256, np.float32)
        start = reference_fit(columns, 3, -0.5, 15, 1, emphasis, codes, kept)
        rounded_as_ggml(start[0], start[1], 16, 15, trial)
        keep_better(found, error, trial, whole_total(misfit(columns, importance, trial, splat(np.float32(3))), 16))


@helper
def search(values: Any, weights: Any, data: Any) -> Any:
    """Encode a block with the least squared error found, that of ggml's scales included."""
    columns, emphasis, trial = local(256, np.float32), local(256, np.float32), local(64, np.float32)
    found, kept, codes = local(64, np.float32), local(32, np.float32), local(256, np.uint8)
    turn_16(values, columns)
    if weights is None:
        search_from(columns, None, found, trial, emphasis, kept)
    else:
        importance = local(256, np.float32)
        turn_16(weights, importance)
        search_from(columns, importance, found, trial, emphasis, kept)
    keep_codes(values, found, 16, 3, codes)
    return pack(found, codes, data)


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d, dmin = half_at(data, 80), half_at(data, 82)
    if not (abs(d) <= LARGEST and abs(dmin) <= LARGEST):
        return 0
    for j in range(16):
        codes = to(load(data, 16 + 32 * (j // 8) + 16 * (j % 2)), np.int32) >> np.int32(j // 2 % 4 * 2)
        scale, low = d * np.float32(data[j] & 15), dmin * np.float32(data[j] >> 4)
        store(values, 16 * j, scale * to(codes & np.int32(3), np.float32) - low)
    return -1


kernels = block_kernels("q2_k", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
