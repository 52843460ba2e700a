"""What Q3_K and Q6_K share: 256 weights as 16 sub-blocks of 16, each with an integer scale, and one float16 scale.

A weight is `d * scale * code`, so a sub-block's own scale is `d * scale`. Turned,
a vector holds one weight of each sub-block, and sixteen lanes are a whole block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import ROUND
from aq2_pipeline.kernels.blocks.columns import ZERO
from aq2_pipeline.kernels.lanes import load, maximum, minimum, reinterpreted, store, to

#: ggml takes weights of a smaller magnitude for zeros (GROUP_MAX_EPS).
SMALLEST = np.float32(1e-15)

_MANTISSA, _HALF_MANTISSA = np.int32(0x7FFFFF), np.int32(0x400000)


@helper
def nearest_within(x: Any, low: Any, high: Any) -> Any:
    """Return the nearest integers from `low` to `high`, as float32, as ggml does: beyond 2**22 it reads other bits."""
    found = (reinterpreted(x + ROUND, np.int32) & _MANTISSA) - _HALF_MANTISSA
    return to(maximum(minimum(found, high), low), np.float32)


@helper
def encode_sub_blocks(values: Any, scales: Any, low: Any, high: Any, codes: Any) -> None:
    """Write the codes from `low` to `high`, less `low`, that are nearest to the weights; keep those of a scale of 0."""
    for k in range(16):
        if scales[k] != ZERO:
            found = nearest_within(load(values, 16 * k) / scales[k], low, high)
            store(codes, 16 * k, to(to(found, np.int32) - low, np.uint8))
