"""Super-blocks of sixteen or eight sub-blocks with a scale and a minimum each, themselves codes of two float16.

A weight is `d * scale * code - dmin * minimum` (block_q2_K, block_q4_K and
block_q5_K of ggml-common.h). What is found of sixteen sub-blocks is kept as four
vectors: `d` and `dmin`, the same in all lanes of a super-block, then the codes of
scales and of minima.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import ROUND
from aq2_pipeline.kernels.blocks.affine_reference import nearest
from aq2_pipeline.kernels.blocks.columns import ZERO, inverse_or_zero
from aq2_pipeline.kernels.halves import half_bits, rounded_to_half
from aq2_pipeline.kernels.lanes import LANES, load, maximum, minimum, reinterpreted, shared_largest, shared_total, splat, store, to, where


@helper
def whole_total(vector: Any, n_lanes: Any) -> Any:
    """Return, in each lane, the sum over its super-block."""
    if n_lanes == LANES:
        return shared_total(vector, 16)
    return shared_total(vector, 8)


@helper
def whole_largest(vector: Any, n_lanes: Any) -> Any:
    """Return, in each lane, the largest of its super-block."""
    if n_lanes == LANES:
        return shared_largest(vector, 16)
    return shared_largest(vector, 8)


@helper
def keep(found: Any, d: Any, dmin: Any, scales: Any, minima: Any) -> None:
    """Write the four vectors."""
    store(found, 0, d)
    store(found, LANES, dmin)
    store(found, 2 * LANES, scales)
    store(found, 3 * LANES, minima)


@helper
def rounded_as_ggml(scale: Any, low: Any, n_lanes: Any, step_max: Any, found: Any) -> None:
    """Round scales and minima to steps of the largest of their super-block, divided by the largest code."""
    steps = np.float32(step_max)
    for vector, at in ((scale, 0), (low, LANES)):
        largest = whole_largest(maximum(vector, splat(ZERO)), n_lanes)
        inverse = where(largest > ZERO, steps / largest, splat(ZERO))
        store(found, at, rounded_to_half(largest / steps))
        store(found, 2 * LANES + at, nearest(inverse * vector, step_max))


@helper
def keep_reference_codes(values: Any, found: Any, kept: Any, size: Any, code_max: Any, codes: Any) -> None:
    """Write the codes of what ggml has found: where no scale is left, those it was fitted to."""
    for k in range(LANES):
        scale, low = found[k] * found[2 * LANES + k], found[LANES + k] * found[3 * LANES + k]
        for i in range(k * size, (k + 1) * size, LANES):
            x = load(values, i)
            if scale == 0:
                code = nearest((x - kept[LANES + k]) * kept[k], code_max)
            else:
                code = nearest((x + low) / scale, code_max)
            store(codes, i, to(code, np.uint8))


@helper
def keep_codes(values: Any, found: Any, size: Any, code_max: Any, codes: Any) -> None:
    """Write the nearest codes of what is found."""
    largest = splat(np.float32(code_max))
    for k in range(LANES):
        scale, low = found[k] * found[2 * LANES + k], found[LANES + k] * found[3 * LANES + k]
        inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
        for i in range(k * size, (k + 1) * size, LANES):
            x = (load(values, i) + low) * inverse
            code = minimum(maximum(x, splat(ZERO)), largest) + ROUND
            store(codes, i, to(reinterpreted(code, np.int32), np.uint8))
