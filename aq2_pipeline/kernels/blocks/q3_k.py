"""Q3_K: 256 weights as 3-bit codes, 16 scales of 6 bits and a float16 scale `d`: `d * (scale - 32) * (code - 4)`.

Bit k of byte j of the first 32 is the high bit of the weight 32 * k + j. Of each
half of 128 weights, byte j of 32 more holds the low 2 bits of the weights j,
j + 32, j + 64 and j + 96, in order. Of the 12 bytes of scales, the first 8 hold the
low 4 bits of the scales j and j + 8, and byte j of the last 4 the high 2 bits of
the scales j, j + 4, j + 8 and j + 12; `d` is last (ggml-common.h, block_q3_K).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import ONE, ZERO, furthest, half_at, inverse_or_zero, store_half, turn_16
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.integer_scale_search import (
    better_of,
    encode_nearest,
    finest_scale,
    fitted_scales,
    searched_scales,
    within,
)
from aq2_pipeline.kernels.blocks.sub_blocks import SMALLEST, encode_sub_blocks, nearest_within
from aq2_pipeline.kernels.halves import half_bits
from aq2_pipeline.kernels.lanes import (
    lane,
    largest,
    load,
    local,
    magnitude,
    maximum,
    minimum,
    shared_total,
    splat,
    store,
    to,
    transpose,
    where,
)
from aq2_pipeline.kernels.widening import float_from_half

BLOCK, N_BYTES, BATCH = 256, 110, 1
LOW, HIGH = np.int32(-4), np.int32(3)
SCALE_LOW, SCALE_HIGH = np.int32(-32), np.int32(31)
BOUNDS = (np.float32(LOW), np.float32(HIGH), np.float32(SCALE_LOW), np.float32(SCALE_HIGH))
#: The largest magnitude that a block holds: the codes furthest from 0, and the largest float16.
MOST = np.float32(65504 * float(SCALE_LOW) * float(LOW))


@helper
def pack(codes: Any, data: Any) -> None:
    """Write the 256 codes."""
    for p in range(0, 32, 16):
        tops = splat(np.uint8(0))
        for half in range(2):
            at = 128 * half + p
            a, b, c, d = load(codes, at), load(codes, at + 32), load(codes, at + 64), load(codes, at + 96)
            bits = (a & np.uint8(3)) | ((b & np.uint8(3)) << np.uint8(2)) | ((c & np.uint8(3)) << np.uint8(4))
            store(data, 32 + 32 * half + p, bits | (d << np.uint8(6)))
            four = (a >> np.uint8(2)) | (b >> np.uint8(2) << np.uint8(1)) | (c >> np.uint8(2) << np.uint8(2))
            tops = tops | ((four | (d >> np.uint8(2) << np.uint8(3))) << np.uint8(4 * half))
        store(data, p, tops)


@helper
def pack_scales(scales: Any, data: Any) -> None:
    """Write the 16 scales."""
    for j in range(8):
        data[96 + j] = np.uint8((scales[j] & 15) | (scales[j + 8] & 15) << 4)
    for j in range(4):
        low = scales[j] >> 4 | scales[j + 4] >> 4 << 2
        data[104 + j] = np.uint8(low | scales[j + 8] >> 4 << 4 | scales[j + 12] >> 4 << 6)


@helper
def scale_at(data: Any, j: Any) -> Any:
    """Return a scale, less 32."""
    low = data[96 + j % 8] >> (j // 8 * 4) & 15
    return np.int32(low | (data[104 + j % 4] >> (j // 4 * 2) & 3) << 4) + SCALE_LOW


@helper
def descend(columns: Any, codes: Any, xq: Any, qq: Any) -> Any:
    """Move single codes to where the scale that fits them all fits better; return the sums, and the codes changed."""
    changed = splat(ZERO)
    for i in range(0, 256, 16):
        x, q = load(columns, i), load(codes, i)
        w = x * x
        less_xq, less_qq = xq - w * x * q, qq - w * q * q
        moved = nearest_within(x * less_qq / less_xq, LOW, HIGH)
        new_xq, new_qq = less_xq + w * x * moved, less_qq + w * moved * moved
        better = (less_xq > ZERO) & (new_qq > ZERO) & (new_xq * new_xq * qq > xq * xq * new_qq)
        moved = where(better, moved, q)
        differs = magnitude(moved - q)
        better = differs > ZERO
        xq, qq = where(better, new_xq, xq), where(better, new_qq, qq)
        store(codes, i, moved)
        changed = maximum(changed, differs)
    return xq, qq, largest(changed)


@helper
def descended_scales(columns: Any, end: Any, scales: Any, codes: Any) -> None:
    """Write ggml's scale of each sub-block, and the turned codes that it fits (make_q3_quants)."""
    inverse = np.float32(LOW) / end
    small = magnitude(end) < SMALLEST
    xq, qq = splat(ZERO), splat(ZERO)
    for i in range(0, 256, 16):
        x = load(columns, i)
        q = where(small, splat(ZERO), nearest_within(x * inverse, LOW, HIGH))
        store(codes, i, q)
        xq, qq = xq + x * x * x * q, qq + x * x * q * q
    for _ in range(5):
        xq, qq, changed = descend(columns, codes, xq, qq)
        if changed == ZERO:
            break
    store(scales, 0, where(small, splat(ZERO), where(qq > ZERO, xq / qq, splat(ZERO))))
    for i in range(0, 256, 16):  # where ggml sees but zeros, it leaves the least code
        store(codes, i, where(small, splat(np.float32(LOW)), load(codes, i)))


@helper
def stored(scales: Any) -> Any:
    """Return ggml's `d` for scales, as the bits of a float16, and the integer scales; the furthest becomes -32."""
    most = np.float32(0)
    for k in range(16):
        if abs(scales[k]) > abs(most):
            most = scales[k]
    if most == ZERO:
        return np.int32(0), splat(np.float32(SCALE_LOW))
    inverse = np.float32(SCALE_LOW) / most
    bits = lane(half_bits(splat(ONE / inverse)), 0)
    return bits, nearest_within(load(scales, 0) * inverse, SCALE_LOW, SCALE_HIGH)


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode a block as ggml's quantize_row_q3_K_ref."""
    columns, turned, natural = local(256, np.float32), local(256, np.float32), local(256, np.float32)
    scales, codes = local(16, np.float32), local(256, np.uint8)
    turn_16(values, columns)
    end = furthest(columns)
    if largest(magnitude(end)) > MOST:  # ggml stores whatever its sums overflowed to
        return 0
    descended_scales(columns, end, scales, turned)
    transpose(turned, 0, 16, natural, 0)
    for k in range(0, 256, 16):
        store(codes, k, to(to(load(natural, k), np.int32) - LOW, np.uint8))
    bits, integers = stored(scales)
    store(scales, 0, float_from_half(bits) * integers)
    encode_sub_blocks(values, scales, LOW, HIGH, codes)
    return finish(codes, integers, bits, data)


@helper
def search(values: Any, weights: Any, data: Any) -> Any:
    """Encode a block with the least error that is found: near the best scales, or as ggml does where that is better."""
    columns, turned = local(256, np.float32), local(256, np.float32)
    turn_16(values, columns)
    if weights is None:
        return encode_searched(values, columns, None, data)
    turn_16(weights, turned)
    return encode_searched(values, columns, turned, data)


@helper
def surely_better(columns: Any, fits: Any, error: Any) -> Any:
    """Return whether ggml's scales need not be tried, for they are of a larger error: likely, not proven.

    ggml fits scales to errors times squared weights. With the codes of the best
    scales, those fits lose `theirs` more than the best ones. What is found loses but a
    quarter of that, and next to nothing, and no sub-block decides alone.
    """
    scales, squares, gain = fits
    inverse, (low, high, _, _) = inverse_or_zero(scales), BOUNDS
    xx, xq, qq = splat(ZERO), splat(ZERO), splat(ZERO)
    for i in range(0, 256, 16):
        x = load(columns, i)
        q, w = within(x * inverse, low, high), x * x
        xx, xq, qq = xx + w, xq + w * x * q, qq + w * q * q
    off = scales - xq * inverse_or_zero(qq)
    most, least = largest(xx - gain), shared_total(xx - gain, 16)
    xx, theirs = shared_total(xx, 16), shared_total(off * off * squares, 16)
    near = np.float32(1.0125) * least - np.float32(2.0**-16) * xx  # less than what the difference may have lost
    spread = most < np.float32(0.25) * lane(least, 0)
    return spread and lane(error, 0) < lane(minimum(near, least + np.float32(0.25) * theirs), 0)


@helper
def encode_searched(values: Any, columns: Any, weights: Any, data: Any) -> Any:
    """Encode a block; weights are turned, too."""
    scales, turned, codes = local(16, np.float32), local(256, np.float32), local(256, np.uint8)
    end, (low, high, _, _) = furthest(columns), BOUNDS
    # measured on MiniLM: more of them gain less than 0.002 dB
    fits = fitted_scales(columns, weights, end, BOUNDS, -1.2, 0.24, 10)
    d = finest_scale(fits[0], fits[1], BOUNDS, 0.016, 8)
    found = searched_scales(columns, weights, fits[0], d, BOUNDS, 1)
    d, integers, bits = found[0], found[1], lane(half_bits(found[0]), 0)
    if weights is not None or not surely_better(columns, fits, found[2]):
        descended_scales(columns, end, scales, turned)
        others, theirs = stored(scales)
        d, integers, bits = better_of(columns, weights, found, others, theirs, BOUNDS)
    encode_nearest(values, d * integers, low, high, codes)
    return finish(codes, integers, bits, data)


@helper
def finish(codes: Any, scales: Any, bits: Any, data: Any) -> Any:
    """Write a block; return its status."""
    integers = local(16, np.int32)
    pack(codes, data)
    store(integers, 0, to(scales, np.int32) - SCALE_LOW)
    pack_scales(integers, data)
    return -1 if store_half(data, 108, bits) else 0


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d = half_at(data, 108)
    if not abs(d) <= LARGEST:
        return 0
    for k in range(16):
        part = k // 2
        low = load(data, 32 + k // 8 * 32 + k % 2 * 16) >> np.uint8(part % 4 * 2) & np.uint8(3)
        high = load(data, k % 2 * 16) >> np.uint8(part) & np.uint8(1)
        q = to(to(low | (high << np.uint8(2)), np.int32) + LOW, np.float32)
        store(values, 16 * k, q * (d * np.float32(scale_at(data, k))))
    return -1


kernels = block_kernels("q3_k", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
