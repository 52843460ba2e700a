"""Integers of 2 to 8 bits with one float32 scale (and zero point) a group, densely packed.

Formulas (float32, no fused multiply-add; contract, section 5), with `q` the
number of bits, `round` half to even:

- symmetric: `scale = max|w| / (2**(q-1) - 1)`, code `round(w / scale) + 2**(q-1)`;
- asymmetric: the range is widened to hold 0, `scale = (max - min) / (2**q - 1)`,
  `zero = round(-min / scale)`, code `clamp(round(w / scale) + zero)`;
- decoded: `(code - zero) * scale`, clamped to the finite range.

`params` is `[bits, asymmetric, group_size]`. A group size of 0 is one group a matrix row
(`_channel`), of -1 one group for everything (`_tensor`). Groups restart at each
matrix row, start on a byte boundary, and the last of a matrix row may be short.
A slice of a group too long for one call has the whole group's extent in two
more parameters, as `measure` finds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import DECODE, ENCODE, ENCODE_HALVES, ERROR, MEASURE, helper, inlined, kernel
from aq2_pipeline.kernels.bits import (
    INFINITY_BITS,
    LARGEST,
    MAGNITUDE,
    ROUND,
    SMALLEST_NORMAL,
    bits_of,
    extent,
    float_of,
)
from aq2_pipeline.kernels.lanes import LANES, load, minimum, plus_product, splat, to
from aq2_pipeline.kernels.moments import BLOCK_SIZE, add_error, flush_lanes, keep_lanes, lanes_of, with_errors
from aq2_pipeline.kernels.packing import code, pack, unpack
from aq2_pipeline.kernels.widening import as_float, extent_of


@helper
def clamp_finite(values: Any) -> None:
    """Replace infinities that a product overflowed to by the largest finite float."""
    for j in range(values.size):
        values[j] = min(max(values[j], -LARGEST), LARGEST)


@helper
def may_overflow(scale: Any, zero: Any, top: Any) -> Any:
    """Tell whether some code decodes beyond the largest float: tested once a group, not once a value."""
    return np.float64(abs(scale)) * np.float64(max(zero, top - zero)) > np.float64(LARGEST)


@helper
def group_span(group_size: Any, row_length: Any, length: Any) -> Any:
    """Return (matrix row, group) in weights; 0 is a group a matrix row, -1 one for all."""
    if group_size < 0:
        return length, length
    if group_size == 0:
        return row_length, row_length
    return row_length, min(group_size, row_length)


@helper
def group_scale(low: Any, high: Any, bits: Any, asymmetric: Any) -> Any:
    """Return (scale, its inverse, zero point) from the bits of (min, max); a scale of -1 if they are not finite.

    The quotients of float32 are those of float64, rounded: twice the digits and
    two more are enough for that, so that the cheaper division gives the same bits.
    """
    largest = max(high, np.int32(low & MAGNITUDE))
    if largest >= INFINITY_BITS:
        return np.float32(-1), np.float32(0), np.int32(0)
    zero, top = np.int32(1 << (bits - 1)), np.int32((1 << bits) - 1)
    if asymmetric:
        scale = np.float32((np.float64(float_of(high)) - np.float64(float_of(low))) / np.float64(top))
    else:
        scale = float_of(largest) / np.float32(zero - np.int32(1))
    if scale < SMALLEST_NORMAL:  # a zero group
        return np.float32(0), np.float32(0), np.int32(0) if asymmetric else zero
    inverse = np.float32(1) / scale
    if asymmetric:
        zero = code(-float_of(low), inverse, np.int32(0), top)
    return scale, inverse, zero


@kernel(MEASURE)
def measure(values: Any, bounds: Any) -> Any:
    """Widen `bounds`, the bits of (min, max), by the extent of a slice of a group."""
    low, high = extent(values.view(np.int32))
    bounds[0] = max(np.int64(np.uint32(bounds[0])), np.int64(np.uint32(low)))
    bounds[1] = max(bounds[1], np.int64(high))
    return -1


@inlined
def bounds_of(values: Any, params: Any) -> Any:
    """Return the bits of (min, max) of a group, or those that the caller measured of the whole group."""
    if params.size > 3:
        return np.int32(params[3]), np.int32(params[4])
    return extent_of(values)


def encoder(bits: int, *, asymmetric: bool, signature: Any = ENCODE) -> Any:
    """Return the kernel of one width: the width is a constant in it, and each is compiled where it is asked for.

    Values are float32, or by another signature the bits of float16, which are widened in registers.

    A group's extent is found before the last one's codes are packed: its loads and
    the division overlap with the packing (0.144 against 0.162 ms per million).
    """

    @kernel(signature)
    def encode(
        values: Any, row_length: Any, params: Any, importance: Any, data: Any, scales: Any, zero_points: Any
    ) -> Any:
        n = values.size
        row, group = group_span(params[2], row_length, n)
        at, k, start, stop, end = 0, 0, 0, min(group, n), row
        low, high = bounds_of(values[:stop], params)
        while start < n:
            scale, inverse, zero = group_scale(low, high, bits, asymmetric)
            if scale < 0:
                return first_bad(values[start:stop], start)
            if stop == end:
                end += row
            following = min(stop + group, end, n)
            low, high = bounds_of(values[stop:following], params)
            size = ((stop - start) * bits + 7) // 8
            scales[k] = scale
            if asymmetric:
                zero_points[k] = np.float32(zero)
            pack(values[start:stop], inverse, zero, data[at : at + size], bits, asymmetric)
            at, k, start, stop = at + size, k + 1, stop, following
        return -1

    return encode


def decoder(bits: int) -> Any:
    """Return the decoding kernel of one width; symmetric rows have no zero points."""

    @kernel(DECODE)
    def decode(data: Any, scales: Any, zero_points: Any, row_length: Any, params: Any, values: Any) -> Any:
        n = values.size
        row, group = group_span(params[2], row_length, n)
        zero, top = np.float32(1 << (bits - 1)), np.float32((1 << bits) - 1)
        at, k = 0, 0
        for start in range(0, n, max(row, 1)):
            for low in range(start, start + row, group):
                high = min(low + group, start + row)
                if params[1] != 0:
                    zero = zero_points[k]
                size = ((high - low) * bits + 7) // 8
                unpack(data[at : at + size], zero, scales[k], values[low:high], bits)
                if may_overflow(scales[k], zero, top):
                    clamp_finite(values[low:high])
                at += size
                k += 1
        return -1

    return decode


encode2, encode3, encode4, encode5, encode6, encode7, encode8 = (encoder(b, asymmetric=False) for b in range(2, 9))
encode2_asym, encode3_asym, encode4_asym, encode5_asym, encode6_asym, encode7_asym, encode8_asym = (
    encoder(b, asymmetric=True) for b in range(2, 9)
)
encode2_halves, encode3_halves, encode4_halves, encode5_halves, encode6_halves, encode7_halves, encode8_halves = (
    encoder(b, asymmetric=False, signature=ENCODE_HALVES) for b in range(2, 9)
)
(
    encode2_asym_halves,
    encode3_asym_halves,
    encode4_asym_halves,
    encode5_asym_halves,
    encode6_asym_halves,
    encode7_asym_halves,
    encode8_asym_halves,
) = (encoder(b, asymmetric=True, signature=ENCODE_HALVES) for b in range(2, 9))
decode2, decode3, decode4, decode5, decode6, decode7, decode8 = (decoder(b) for b in range(2, 9))


@helper
def first_bad(values: Any, start: Any) -> Any:
    """Return the position in the row of a group's first bad value; -1 if another slice of the group has it."""
    for j in range(values.size):
        if bits_of(as_float(values[j])) & MAGNITUDE >= INFINITY_BITS:
            return start + j
    return -1


@inlined
def with_group(sums: Any, values: Any, scale: Any, inverse: Any, zero: Any, top: Any) -> Any:
    """Return the lanes of each sum with at most a block of one group, quantized and decoded in registers.

    The squares of codes less their zero are whole numbers, and a lane's 256 of them at most 255**2 * 256 < 2**24:
    their sum is exact in float32, and is scaled once.
    """
    most, steps_squared = np.float32(top - zero), splat(np.float32(0))
    for at in range(0, values.size - values.size % LANES, LANES):
        weights = load(values, at)
        steps = minimum((weights * inverse + ROUND) - ROUND, most)
        steps_squared = plus_product(steps_squared, steps, steps)
        sums = with_errors(sums, weights, steps * scale)
    squared_scale = np.float64(scale) * np.float64(scale)
    return sums[0], sums[1], sums[2] + to(steps_squared, np.float64) * squared_scale, sums[3]


@helper
def add_values(values: Any, scale: Any, inverse: Any, zero: Any, top: Any, lanes: Any) -> None:
    """Add the errors of values one by one."""
    for j in range(values.size):
        decoded = (np.float32(code(values[j], inverse, zero, top)) - np.float32(zero)) * scale
        add_error(values[j], min(max(decoded, -LARGEST), LARGEST), j % LANES, lanes)


@kernel(ERROR)
def error(values: Any, position: Any, row_length: Any, params: Any, importance: Any, lanes: Any, sums: Any) -> Any:
    """Sum the errors of a row, or of a piece of one from `position` on; status as `encode`.

    The sums are those of `moments.flush_lanes`; what was added last stays in the lanes.
    """
    bits, asymmetric, n = params[0], params[1] != 0, values.size
    row, group = group_span(params[2], row_length, n)
    top, held = np.int32((1 << bits) - 1), lanes_of(lanes)
    start, stop, end = 0, min(group, n), row
    low, high = bounds_of(values[:stop], params)
    while start < n:
        scale, inverse, zero = group_scale(low, high, bits, asymmetric)
        if scale < 0:
            return first_bad(values[start:stop], start)
        if stop == end:
            end += row
        following = min(stop + group, end, n)
        low, high = bounds_of(values[stop:following], params)
        overflows = may_overflow(scale, np.float32(zero), np.float32(top))
        while start < stop:
            block = min(start + BLOCK_SIZE, stop)
            rest = start
            if not overflows:
                held = with_group(held, values[start:block], scale, inverse, zero, top)
                rest = block - (block - start) % LANES
            if rest < block:
                keep_lanes(held, lanes)
                add_values(values[rest:block], scale, inverse, zero, top, lanes)
                held = lanes_of(lanes)
            if np.uint64(position + start) // np.uint64(BLOCK_SIZE) != np.uint64(position + block) // np.uint64(
                BLOCK_SIZE
            ):
                keep_lanes(held, lanes)
                flush_lanes(lanes, sums)
                held = lanes_of(lanes)
            start = block
        stop = following
    keep_lanes(held, lanes)
    return -1
