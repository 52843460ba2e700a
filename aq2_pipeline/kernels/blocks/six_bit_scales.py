"""What Q4_K and Q5_K share: eight sub-blocks of 32, whose scales and minima are codes of six bits.

A block begins with `d`, `dmin` and 12 bytes of those codes. Bytes 0 to 3 hold the
scales 0 to 3 in their low six bits, bytes 4 to 7 the minima; bytes 8 to 11 the low
four bits of the scales 4 to 7 and, in the high half, of their minima. The high two
bits of those are the high bits of bytes 0 to 3 and 4 to 7 (get_scale_min_k4 of
ggml-quants.c).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.affine_reference import reference_fit
from aq2_pipeline.kernels.blocks.affine_search import search_affine
from aq2_pipeline.kernels.blocks.affine_supers import keep_codes, keep_reference_codes, rounded_as_ggml
from aq2_pipeline.kernels.blocks.columns import half_at, store_half, turn_32
from aq2_pipeline.kernels.lanes import local


@helper
def store_header(data: Any, at: Any, halves: Any, found: Any, lane: Any) -> Any:
    """Write the 16 bytes of the super-block whose first lane is given; return whether both scales are finite.

    `halves` holds the bits of `d` and `dmin`, `found` their values and the codes.
    """
    finite = store_half(data, at, halves[lane])
    finite &= store_half(data, at + 2, halves[16 + lane])
    for j in range(4):
        scale, low = np.int32(found[32 + lane + j]), np.int32(found[48 + lane + j])
        late, late_low = np.int32(found[36 + lane + j]), np.int32(found[52 + lane + j])
        data[at + 4 + j] = np.uint8(scale | late >> 4 << 6)
        data[at + 8 + j] = np.uint8(low | late_low >> 4 << 6)
        data[at + 12 + j] = np.uint8(late & 15 | (late_low & 15) << 4)
    return finite


@helper
def read_header(data: Any, scales: Any, lows: Any) -> Any:
    """Write the scales and minima of a block's sub-blocks, multiplied; return whether both float16 are finite.

    All of them at once: after a store to the weights each byte would be read anew.
    """
    d, low = half_at(data, 0), half_at(data, 2)
    for j in range(4):
        scales[j], lows[j] = d * np.float32(data[4 + j] & 63), low * np.float32(data[8 + j] & 63)
        late, late_low = data[12 + j] & 15 | data[4 + j] >> 6 << 4, data[12 + j] >> 4 | data[8 + j] >> 6 << 4
        scales[4 + j], lows[4 + j] = d * np.float32(late), low * np.float32(late_low)
    return abs(d) <= LARGEST and abs(low) <= LARGEST


@helper
def find_as_ggml(values: Any, code_max: Any, first: Any, n_steps: Any, found: Any, codes: Any) -> None:
    """Find scales, minima and codes of two blocks as ggml does; `reference_fit` explains its parameters."""
    columns, emphasis, trial = local(512, np.float32), local(512, np.float32), local(512, np.float32)
    kept = local(32, np.float32)
    turn_32(values, columns)
    scale, low = reference_fit(columns, code_max, first, n_steps, 2, emphasis, trial, kept)
    rounded_as_ggml(scale, low, 8, 63, found)
    keep_reference_codes(values, found, kept, 32, code_max, codes)


@helper
def find_best(
    values: Any, weights: Any, code_max: Any, first: Any, n_steps: Any, grid: Any, found: Any, codes: Any
) -> None:
    """Find scales, minima and codes of two blocks, of the least squared error: ggml's, or better ones near them."""
    columns, emphasis, trial = local(512, np.float32), local(512, np.float32), local(512, np.float32)
    kept = local(32, np.float32)
    turn_32(values, columns)
    start = reference_fit(columns, code_max, first, n_steps, 2, emphasis, trial, kept)
    rounded_as_ggml(start[0], start[1], 8, 63, found)
    setup = (code_max, 63, 8, grid, (1.0, 0.015, 4), 1, 1)
    if weights is None:
        search_affine(columns, None, start, setup, found, trial)
    else:
        turn_32(weights, emphasis)
        search_affine(columns, emphasis, start, setup, found, trial)
    keep_codes(values, found, 32, code_max, codes)
