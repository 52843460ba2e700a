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
from aq2_pipeline.kernels.blocks.code_descent import BATCH, HIGH, LOW, N_PARTS, N_WEIGHTS, descended_scales
from aq2_pipeline.kernels.blocks.columns import ONE, ZERO, furthest, half_at, store_half
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.integer_scale_search import (
    better_of,
    encode_nearest,
    finest_scale,
    fitted_scales,
    nearest_scales,
    two_errors,
)
from aq2_pipeline.kernels.blocks.sub_blocks import SMALLEST, encode_sub_blocks, nearest_within
from aq2_pipeline.kernels.halves import half_bits
from aq2_pipeline.kernels.lanes import (
    lane,
    largest,
    load,
    local,
    magnitude,
    packed,
    shared_largest,
    splat,
    store,
    to,
    transpose,
)
from aq2_pipeline.kernels.widening import float_from_half

BLOCK, N_BYTES = 256, 110
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
def first_furthest(scales: Any) -> Any:
    """Return the scale furthest from zero, the first of those as far, in every lane."""
    size = magnitude(scales)
    most = shared_largest(size, 16)
    furthest_ones = packed(size == most)
    negative = packed(scales < ZERO) & furthest_ones & -furthest_ones
    return most if negative == 0 else ZERO - most


@helper
def stored(scales: Any) -> Any:
    """Return ggml's `d` for scales, as the bits of a float16, and the integer scales; the furthest becomes -32."""
    most = first_furthest(scales)
    if lane(most, 0) == ZERO:
        return np.int32(0), splat(np.float32(SCALE_LOW))
    inverse = np.float32(SCALE_LOW) / most
    bits = lane(half_bits(ONE / inverse), 0)
    return bits, nearest_within(scales * inverse, SCALE_LOW, SCALE_HIGH)


@helper
def turn(values: Any, columns: Any, ends: Any) -> None:
    """Turn the blocks of a batch; write each sub-block's weight furthest from zero."""
    for k in range(BATCH):
        transpose(values, 256 * k, 16, columns, 256 * k)
        store(ends, 16 * k, furthest(columns[256 * k : 256 * k + 256]))


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode a batch as ggml's quantize_row_q3_K_ref."""
    columns, ends = local(N_WEIGHTS, np.float32), local(N_PARTS, np.float32)
    fitted, scales, codes = local(N_WEIGHTS, np.float32), local(N_PARTS, np.float32), local(256, np.uint8)
    turn(values, columns, ends)
    descended_scales(values, columns, ends, scales, fitted, True)  # noqa: FBT003 - a helper takes no keywords
    for k in range(BATCH):
        if largest(magnitude(load(ends, 16 * k))) > MOST:  # ggml stores whatever its sums overflowed to
            return k
        bits, integers = stored(load(scales, 16 * k))
        for i in range(0, 256, 16):
            q = to(load(fitted, 256 * k + i), np.int32)
            seen = abs(ends[16 * k + i // 16]) >= SMALLEST  # where ggml sees but zeros, it leaves the least code
            store(codes, i, to(q - LOW if seen else splat(np.int32(0)), np.uint8))
        store(scales, 16 * k, float_from_half(bits) * integers)
        encode_sub_blocks(values[256 * k : 256 * k + 256], scales[16 * k : 16 * k + 16], LOW, HIGH, codes)
        if finish(codes, integers, bits, data[N_BYTES * k : N_BYTES * (k + 1)]) >= 0:
            return k
    return -1


@helper
def search(values: Any, weights: Any, data: Any) -> Any:
    """Encode a batch with the least error that is found: near the best scales, or as ggml does where that is better."""
    columns, ends = local(N_WEIGHTS, np.float32), local(N_PARTS, np.float32)
    room, scales = local(N_WEIGHTS, np.float32), local(N_PARTS, np.float32)
    turn(values, columns, ends)
    descended_scales(values, columns, ends, scales, room, False)  # noqa: FBT003 - a helper takes no keywords
    for k in range(BATCH):
        at = 256 * k
        own = values[at : at + 256], columns[at : at + 256]
        end, theirs, target = load(ends, 16 * k), load(scales, 16 * k), data[N_BYTES * k : N_BYTES * (k + 1)]
        if weights is None:
            status = encode_searched(own[0], own[1], None, end, theirs, target)
        else:
            transpose(weights, at, 16, room, 0)
            status = encode_searched(own[0], own[1], room, end, theirs, target)
        if status >= 0:
            return k
    return -1


@helper
def encode_searched(values: Any, columns: Any, weights: Any, end: Any, theirs: Any, data: Any) -> Any:
    """Encode a block; weights are turned, too; `theirs` are ggml's scales."""
    codes, (low, high, _, _) = local(256, np.uint8), BOUNDS
    # measured on MiniLM: ten of them, eight `d` and four integers for each scale gain 0.02 dB
    fits = fitted_scales(columns, weights, end, BOUNDS, -0.9, 0.6, 4)
    d = finest_scale(fits[0], fits[1], BOUNDS, 0.03, 2)
    integers = nearest_scales(d, fits[0], BOUNDS)
    bits, others = stored(theirs)
    other = splat(float_from_half(bits))
    error, their_error = two_errors(columns, weights, d * integers, other * others, low, high)
    d, integers, bits = better_of((d, integers, error), (other, others, their_error))
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
