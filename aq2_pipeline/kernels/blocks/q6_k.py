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
from aq2_pipeline.kernels.blocks.columns import ZERO, furthest, half_at, store_half, turn_16
from aq2_pipeline.kernels.blocks.frame import block_kernels
from aq2_pipeline.kernels.blocks.sub_blocks import SMALLEST, encode_sub_blocks, nearest, nearest_within
from aq2_pipeline.kernels.halves import half_bits
from aq2_pipeline.kernels.lanes import lane, load, local, magnitude, maximum, minimum, splat, store, to, where
from aq2_pipeline.kernels.widening import float_from_half

BLOCK, N_BYTES, BATCH = 256, 210, 1
LOW, HIGH = np.int32(-32), np.int32(31)
SCALE_LOW, SCALE_HIGH = np.int32(-128), np.int32(127)


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
def least_squares_scales(columns: Any, scales: Any, inverses: Any) -> None:
    """Write ggml's scale of each sub-block, the best of 19, and the inverse that it was found from (make_qx_quants)."""
    end = furthest(columns)
    best, scale, chosen = splat(ZERO), splat(ZERO), splat(ZERO)
    for k in range(19):
        step = 0 if k == 0 else k - 10 if k < 10 else k - 9
        inverse = (ZERO - (np.float32(32) + np.float32(0.1) * np.float32(step))) / end
        xq, qq = splat(ZERO), splat(ZERO)
        for i in range(0, 256, 16):
            x = load(columns, i)
            q = minimum(maximum(nearest(x * inverse), np.float32(LOW)), np.float32(HIGH))
            xq, qq = xq + x * x * x * q, qq + x * x * q * q
        found = where(qq == ZERO, splat(ZERO), xq / qq)
        if k == 0:
            best, scale, chosen = found * xq, found, inverse
        else:
            better = where(qq > ZERO, xq * xq, best * qq) > best * qq
            scale, chosen, best = where(better, found, scale), where(better, inverse, chosen), where(better, found * xq, best)
    small = magnitude(end) < SMALLEST
    store(scales, 0, where(small, splat(ZERO), scale))
    store(inverses, 0, where(small, splat(ZERO), chosen))


@helper
def reference(values: Any, weights: Any, data: Any) -> Any:
    """Encode a block as ggml's quantize_row_q6_K_ref."""
    columns, scales, inverses = local(256, np.float32), local(16, np.float32), local(16, np.float32)
    codes, largest = local(256, np.uint8), np.float32(0)
    turn_16(values, columns)
    least_squares_scales(columns, scales, inverses)
    for k in range(16):
        if abs(scales[k]) > abs(largest):
            largest = scales[k]
    if abs(largest) < SMALLEST:
        for j in range(N_BYTES):
            data[j] = 0
        return -1
    inverse = np.float32(-128) / largest
    bits = lane(half_bits(splat(np.float32(1) / inverse)), 0)
    finite = store_half(data, 208, bits)
    found = nearest_within(load(scales, 0) * inverse, SCALE_LOW, SCALE_HIGH)
    store(data, 192, to(to(found, np.int32), np.uint8))
    for k in range(16):
        start = nearest_within(load(values, 16 * k) * inverses[k], LOW, HIGH)
        store(codes, 16 * k, to(to(start, np.int32) - LOW if inverses[k] != ZERO else splat(np.int32(0)), np.uint8))
    store(scales, 0, float_from_half(bits) * found)
    encode_sub_blocks(values, scales, LOW, HIGH, codes)
    pack(codes, data)
    return -1 if finite else 0


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


kernels = block_kernels("q6_k", BLOCK, N_BYTES, BATCH, {"reference": reference}, decode)
