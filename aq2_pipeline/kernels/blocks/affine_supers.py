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
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import ZERO, inverse_or_zero
from aq2_pipeline.kernels.blocks.rounding import clamped_bits, code_bits, nearest_code
from aq2_pipeline.kernels.halves import half_bits, rounded_to_half
from aq2_pipeline.kernels.lanes import (
    LANES,
    load,
    local,
    magnitude,
    maximum,
    shared_largest,
    shared_total,
    splat,
    store,
    to,
    where,
)


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
def finite_or_zero(inverse: Any) -> Any:
    """Return an inverse, and 0 for one that is infinite: ggml's rounding makes 0 of infinity and NaN."""
    return where(magnitude(inverse) > LARGEST, splat(ZERO), inverse)


@helper
def rounded_as_ggml(scale: Any, low: Any, n_lanes: Any, step_max: Any, found: Any) -> None:
    """Round scales and minima to steps of the largest of their super-block, divided by the largest code."""
    steps = np.float32(step_max)
    for vector, at in ((scale, 0), (low, LANES)):
        largest = whole_largest(maximum(vector, splat(ZERO)), n_lanes)
        inverse = finite_or_zero(steps / largest)
        store(found, at, rounded_to_half(largest / steps))
        store(found, 2 * LANES + at, nearest_code(inverse * vector, code_bits(splat(steps))))


@helper
def keep_halves(found: Any, halves: Any) -> None:
    """Write the bits of `d` and of `dmin`, 16 of each."""
    store(halves, 0, half_bits(load(found, 0)))
    store(halves, LANES, half_bits(load(found, LANES)))


@helper
def keep_reference_codes(values: Any, found: Any, kept: Any, size: Any, code_max: Any, codes: Any) -> None:
    """Write the codes of what ggml has found: where no scale is left, those it was fitted to."""
    top = code_bits(splat(np.float32(code_max)))
    for k in range(LANES):
        scale, low = found[k] * found[2 * LANES + k], found[LANES + k] * found[3 * LANES + k]
        for i in range(k * size, (k + 1) * size, LANES):
            x = load(values, i)
            if scale == 0:
                bits = clamped_bits((x - kept[LANES + k]) * kept[k], top)
            else:
                bits = clamped_bits((x + low) / scale, top)
            store(codes, i, to(bits, np.uint8))


@helper
def keep_codes(values: Any, found: Any, size: Any, code_max: Any, codes: Any) -> None:
    """Write the nearest codes of what is found."""
    top = code_bits(splat(np.float32(code_max)))
    lows, inverses = local(16, np.float32), local(16, np.float32)
    scale = load(found, 0) * load(found, 2 * LANES)
    store(lows, 0, load(found, LANES) * load(found, 3 * LANES))
    store(inverses, 0, inverse_or_zero(scale))
    for k in range(LANES):
        low, inverse = lows[k], inverses[k]
        for i in range(k * size, (k + 1) * size, LANES):
            store(codes, i, to(clamped_bits((load(values, i) + low) * inverse, top), np.uint8))
