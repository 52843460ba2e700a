"""Groups as whole vectors: the last sixteen values of a group, and their codes, are made up behind its end.

Codes are packed from the low bits on, a group begins at a byte, and padding bits are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper, inlined
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.lanes import (
    LANES,
    join,
    load,
    load_half,
    local,
    maximum,
    minimum,
    ramp,
    reinterpreted,
    store,
    to,
)
from aq2_pipeline.kernels.packing import eights_of, low_bytes, paired, store_eights

#: Bytes that 16 codes take at the most, and what a store writes beyond.
SPARE = 2 * LANES


@helper
def staged(values: Any, at: Any, staging: Any) -> Any:
    """Return 16 values from a place on; behind the last, zeros."""
    if at + LANES <= values.size:
        return load(values, at)
    for j in range(LANES):
        staging[j] = values[at + j] if at + j < values.size else np.float32(0)
    return load(staging, 0)


@helper
def staged_importance(importance: Any, first: Any, n: Any, at: Any, staging: Any) -> Any:
    """Return the importance of 16 weights of a group of `n` from a place on; behind the last, zeros.

    An importance as long as a matrix row begins anew with each of them, of which one group may hold many.
    """
    place = (first + at) % importance.size
    if at + LANES <= n and place + LANES <= importance.size:
        return to(load(importance, place), np.float64)
    for j in range(LANES):
        staging[j] = importance[(place + j) % importance.size] if at + j < n else np.float32(0)
    return to(load(staging, 0), np.float64)


@helper
def shares(importance: Any, first: Any, n: Any, at: Any, staging: Any) -> Any:
    """Return how much each of 16 weights counts: its importance, or 1 without any; behind the last, 0."""
    if importance is None:
        for j in range(LANES):
            staging[j] = np.float32(1) if at + j < n else np.float32(0)
        return to(load(staging, 0), np.float64)
    return staged_importance(importance, first, n, at, staging)


@helper
def without_rest(vector: Any, n: Any, at: Any, staging: Any) -> Any:
    """Return 16 values of a group of `n` from a place on; behind the last, zeros."""
    if at + LANES <= n:
        return vector
    store(staging, 0, vector)
    for j in range(n - at, LANES):
        staging[j] = np.float32(0)
    return load(staging, 0)


@inlined
def store_codes(codes: Any, data: Any, at: Any, bits: Any, n: Any, spare: Any) -> None:
    """Write 16 codes from value `at` of a group of `n` on; what the last of them leave of a byte is 0."""
    first = (at >> 3) * bits
    if at + LANES > n:
        left = local(LANES, np.int32)
        store(left, 0, codes)
        for j in range(n - at, LANES):
            left[j] = 0
        store_lanes(load(left, 0), spare, 0, bits)
        for k in range(data.size - first):
            data[first + k] = spare[k]
    else:
        store_lanes(codes, data, first, bits)


@inlined
def store_lanes(codes: Any, data: Any, first: Any, bits: Any) -> None:
    """Write 16 codes from a byte on."""
    if bits == 8:
        store(data, first, to(codes, np.uint8))
    elif bits == 4:
        store(data, first, to(paired(codes, bits), np.uint8))
    else:
        store_eights(eights_of(codes, bits), data, first, bits, False)  # noqa: FBT003 - nothing lies behind


@helper
def store_floats(decoded: Any, values: Any, at: Any, stop: Any, staging: Any) -> None:
    """Write 16 floats, or those before `stop`."""
    if at + LANES <= stop:
        store(values, at, decoded)
    else:
        store(staging, 0, decoded)
        for j in range(stop - at):
            values[at + j] = staging[j]


@helper
def finite(decoded: Any) -> Any:
    """Return products that overflowed as the largest finite floats."""
    return maximum(minimum(decoded, LARGEST), -LARGEST)


@inlined
def codes_at(data: Any, at: Any, bits: Any, n: Any, spare: Any) -> Any:
    """Return 16 codes from value `at` of a group of `n` on."""
    first = (at >> 3) * bits
    if at + LANES > n:
        for k in range(2 * bits):
            spare[k] = data[first + k] if first + k < data.size else np.uint8(0)
        return lanes_from(spare, 0, bits)
    return lanes_from(data, first, bits)


@inlined
def lanes_from(data: Any, first: Any, bits: Any) -> Any:
    """Return 16 codes from a byte on."""
    mask = np.int32((1 << bits) - 1)
    if bits == 8:
        return to(load(data, first), np.int32)
    if bits == 4:
        pairs = to(load_half(data, first), np.uint64)
        return reinterpreted((pairs | (pairs << np.uint64(28))) & np.uint64(0x0000000F0000000F), np.int32)
    low = ramp() * np.uint64(0) + low_bytes(data, first, bits)
    high = ramp() * np.uint64(0) + low_bytes(data, first + bits, bits)
    places = ramp() * np.uint64(bits)
    return join(to(low >> places, np.int32) & mask, to(high >> places, np.int32) & mask)
