"""Q6_K: 256 weights as 6-bit codes, 16 scales of 8 bits and a float16 scale `d`: `d * scale * (code - 32)`.

Bytes 0 to 127 hold the low 4 bits, 128 to 191 the high 2 bits of the codes, 192
to 207 the scales as int8, and `d` is last. Of each half of 128 weights, byte j of
32 low ones is of the weights j and j + 64, that of 32 more of j + 32 and j + 96;
byte j of the high ones is of all four, in order (ggml-common.h, block_q6_K).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import LARGEST
from aq2_pipeline.kernels.blocks.columns import ONE, ZERO, furthest, half_at, store_half, turn_16
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.integer_scale_search import (
    better_of,
    common_scale,
    encode_nearest,
    error_of,
    searched_scales,
)
from aq2_pipeline.kernels.blocks.rounding import nearest_between
from aq2_pipeline.kernels.blocks.sub_blocks import SMALLEST, encode_sub_blocks, nearest_within
from aq2_pipeline.kernels.halves import half_bits
from aq2_pipeline.kernels.lanes import lane, largest, load, local, magnitude, splat, store, to, where
from aq2_pipeline.kernels.widening import float_from_half

BLOCK, N_BYTES, BATCH = 256, 210, 1
LOW, HIGH = np.int32(-32), np.int32(31)
SCALE_LOW, SCALE_HIGH = np.int32(-128), np.int32(127)
BOUNDS = (np.float32(LOW), np.float32(HIGH), np.float32(SCALE_LOW), np.float32(SCALE_HIGH))
#: The largest magnitude that a block holds: the codes furthest from 0, and the largest float16.
MOST = np.float32(65504 * float(SCALE_LOW) * float(LOW))


@helper
def pack(codes: Any, data: Any) -> None:
    """Write the 256 codes."""
    for k in range(4):  # 16 bytes of a half
        at, low, high = k // 2 * 128 + k % 2 * 16, k // 2 * 64 + k % 2 * 16, 128 + k * 16
        a, b, c, d = (load(codes, at), load(codes, at + 32), load(codes, at + 64), load(codes, at + 96))
        store(data, low, (a & np.uint8(15)) | (c << np.uint8(4)))
        store(data, low + 32, (b & np.uint8(15)) | (d << np.uint8(4)))
        tops = (a >> np.uint8(4)) | (b >> np.uint8(4) << np.uint8(2)) | (c >> np.uint8(4) << np.uint8(4))
        store(data, high, tops | (d >> np.uint8(4) << np.uint8(6)))


@helper
def with_code(sums: Any, q: Any, square: Any, cube: Any) -> Any:
    """Return the sums of weight times code and of code squared, each times the weight squared, with one more."""
    return sums[0] + cube * q, sums[1] + square * q * q


@helper
def improved(found: Any, sums: Any, inverse: Any) -> Any:
    """Return the better of the scale, its gain and its inverse, and those that sums and an inverse stand for."""
    scale, gain, chosen = found
    xq, qq = sums
    better = where(qq > ZERO, xq * xq, splat(ZERO)) > where(qq > ZERO, gain * qq, splat(ZERO))
    other = xq / qq
    return where(better, other, scale), where(better, other * xq, gain), where(better, inverse, chosen)


@helper
def two_sums(columns: Any, squares: Any, cubes: Any, first: Any, second: Any) -> Any:
    """Return the sums of two inverses' codes."""
    one, two = (splat(ZERO), splat(ZERO)), (splat(ZERO), splat(ZERO))
    low, high = np.float32(LOW), np.float32(HIGH)
    for i in range(0, 256, 16):
        x, square, cube = load(columns, i), load(squares, i), load(cubes, i)
        one = with_code(one, nearest_between(x * first, low, high), square, cube)
        two = with_code(two, nearest_between(x * second, low, high), square, cube)
    return one, two


@helper
def least_squares_scales(columns: Any, end: Any) -> Any:
    """Return ggml's scale of each sub-block, the best of 19, and the inverse that gave it (make_qx_quants)."""
    squares, cubes = local(256, np.float32), local(256, np.float32)
    low, high = np.float32(LOW), np.float32(HIGH)
    inverse, sums = low / end, (splat(ZERO), splat(ZERO))
    for i in range(0, 256, 16):
        x = load(columns, i)
        store(squares, i, x * x)
        store(cubes, i, x * x * x)
        sums = with_code(sums, nearest_between(x * inverse, low, high), x * x, x * x * x)
    scale = where(sums[1] == ZERO, splat(ZERO), sums[0] / sums[1])
    found = scale, scale * sums[0], inverse
    for k in range(-9, 9, 2):  # two at once, for fewer loads; 0 was first
        first = (low - np.float32(0.1) * np.float32(k + (k > 0))) / end
        second = (low - np.float32(0.1) * np.float32(k + 1 + (k >= -1))) / end
        one, two = two_sums(columns, squares, cubes, first, second)
        found = improved(improved(found, one, first), two, second)
    small = magnitude(end) < SMALLEST
    return where(small, splat(ZERO), found[0]), where(small, splat(ZERO), found[2])


@helper
def stored(scales: Any) -> Any:
    """Return ggml's `d` for scales, as the bits of a float16, and the integer scales; the furthest becomes -128."""
    room, most = local(16, np.float32), np.float32(0)
    store(room, 0, scales)
    for k in range(16):
        if abs(room[k]) > abs(most):
            most = room[k]
    if abs(most) < SMALLEST:
        return np.int32(0), splat(ZERO)
    inverse = np.float32(SCALE_LOW) / most
    bits = lane(half_bits(splat(ONE / inverse)), 0)
    return bits, nearest_within(scales * inverse, SCALE_LOW, SCALE_HIGH)


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode a block as ggml's quantize_row_q6_K_ref."""
    columns, room, codes = local(256, np.float32), local(16, np.float32), local(256, np.uint8)
    turn_16(values, columns)
    end = furthest(columns)
    if largest(magnitude(end)) > MOST:  # ggml stores whatever its sums overflowed to
        return 0
    scales, inverses = least_squares_scales(columns, end)
    bits, integers = stored(scales)
    store(room, 0, inverses)
    some = largest(magnitude(scales)) >= SMALLEST
    for k in range(16):  # what codes keep whose scale becomes 0; where ggml sees but zeros, it leaves the least code
        found = to(nearest_within(load(values, 16 * k) * room[k], LOW, HIGH), np.int32) - LOW
        store(codes, 16 * k, to(found, np.uint8) if some and room[k] != ZERO else splat(np.uint8(0)))
    store(room, 0, float_from_half(bits) * integers)
    encode_sub_blocks(values, room, LOW, HIGH, codes)
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
def encode_searched(values: Any, columns: Any, weights: Any, data: Any) -> Any:
    """Encode a block; weights are turned, too."""
    codes, end = local(256, np.uint8), furthest(columns)
    # measured on MiniLM: room for 6 %, and 16 scales about a code of 30.5 for the weight furthest from zero
    start = end / np.float32(-30.5)
    d = common_scale(start, np.float32(1.06), BOUNDS[2])
    found = searched_scales(columns, weights, start, d, BOUNDS, 7)
    bits, others = stored(least_squares_scales(columns, end)[0])
    other = splat(float_from_half(bits))
    theirs = error_of(columns, weights, other * others, BOUNDS[0], BOUNDS[1])
    d, integers, bits = better_of(found, (other, others, theirs))
    encode_nearest(values, d * integers, BOUNDS[0], BOUNDS[1], codes)
    return finish(codes, integers, bits, data)


@helper
def finish(codes: Any, integers: Any, bits: Any, data: Any) -> Any:
    """Write a block; return its status."""
    pack(codes, data)
    store(data, 192, to(to(integers, np.int32), np.uint8))
    return -1 if store_half(data, 208, bits) else 0


@helper
def decode(data: Any, values: Any) -> Any:
    """Read one block."""
    d = half_at(data, 208)
    if not abs(d) <= LARGEST:
        return 0
    for k in range(16):
        half, part = k // 8, k % 8
        low = load(data, half * 64 + part % 4 * 16) >> np.uint8(part // 4 * 4) & np.uint8(15)
        high = load(data, 128 + half * 32 + part % 2 * 16) >> np.uint8(part // 2 * 2) & np.uint8(3)
        q = to(to(low | (high << np.uint8(4)), np.int32) + LOW, np.float32)
        store(values, 16 * k, q * (d * np.float32(np.int8(data[192 + k]))))
    return -1


kernels = block_kernels("q6_k", BLOCK, N_BYTES, BATCH, {"search": search, "reference": reference}, decode)
