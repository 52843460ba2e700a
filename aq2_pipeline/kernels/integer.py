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
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import DECODE, ENCODE, ERROR, helper, inlined, kernel
from aq2_pipeline.kernels.bits import (
    INFINITY_BITS,
    LARGEST,
    ROUND,
    ROUND_BITS,
    SMALLEST_NORMAL,
    abs_max_bits,
    bits_of,
    first_non_finite,
    float_of,
    ordered,
)
from aq2_pipeline.kernels.moments import BLOCK_SIZE, N_LANES, add_error, flush_lanes


@helper
def range_with_zero(bits: Any) -> Any:
    """Return (min, max) of the floats, widened to hold 0, by integer comparisons."""
    low, high = np.int32(0), np.int32(0)
    for j in range(bits.size):
        key = ordered(bits[j])
        low = min(low, key)
        high = max(high, key)
    return float_of(ordered(low)), float_of(high)


@helper
def code(x: Any, inverse: Any, zero: Any, top: Any) -> Any:
    """Return `clamp(round(x * inverse) + zero, 0, top)`."""
    rounded = np.int32(bits_of(x * inverse + ROUND) - ROUND_BITS)
    return min(max(np.int32(rounded + zero), np.int32(0)), top)


def packer(bits: int) -> Any:
    """Return a helper that packs the codes of one group at `bits` bits each.

    A factory, because the width must be a constant: then LLVM unrolls the inner
    loops and vectorises over steps. A step is the least number of codes that
    fills whole bytes.
    """
    step = 8 // int(np.gcd(8, bits))
    step_bytes = step * bits // 8
    word_of = np.int32 if step_bytes == 1 else np.uint64
    top = np.int32((1 << bits) - 1)

    @helper
    def pack(values: Any, inverse: Any, zero: Any, data: Any) -> None:
        n_steps = values.size // step
        for s in range(n_steps):
            word = word_of(0)
            for k in range(step):
                c = word_of(code(values[step * s + k], inverse, zero, top))
                word = word_of(word | word_of(c << word_of(k * bits)))
            for k in range(step_bytes):
                data[step_bytes * s + k] = np.uint8((word >> word_of(8 * k)) & word_of(255))
        at, held, rest = n_steps * step_bytes, 0, np.int64(0)
        for j in range(n_steps * step, values.size):  # the short end of a group; padding bits are 0
            rest |= np.int64(code(values[j], inverse, zero, top)) << held
            held += bits
            if held >= 8:
                data[at] = np.uint8(rest & 255)
                at, held, rest = at + 1, held - 8, rest >> 8
        if held > 0:
            data[at] = np.uint8(rest)

    return pack


def unpacker(bits: int) -> Any:
    """Return a helper that decodes one group: `(code - zero) * scale`; padding bits are ignored."""
    step = 8 // int(np.gcd(8, bits))
    step_bytes = step * bits // 8
    word_of = np.int32 if step_bytes == 1 else np.uint64
    mask = word_of((1 << bits) - 1)

    @helper
    def unpack(data: Any, zero: Any, scale: Any, values: Any) -> None:
        n_steps = values.size // step
        for s in range(n_steps):
            word = word_of(0)
            for k in range(step_bytes):
                word = word_of(word | word_of(word_of(data[step_bytes * s + k]) << word_of(8 * k)))
            for k in range(step):
                c = np.int32((word >> word_of(k * bits)) & mask)
                values[step * s + k] = (np.float32(c) - zero) * scale
        for j in range(n_steps * step, values.size):
            at, shift = j * bits // 8, j * bits % 8
            word = word_of(data[at])
            if shift + bits > 8:
                word = word_of(word | word_of(word_of(data[at + 1]) << word_of(8)))
            c = np.int32((word >> word_of(shift)) & mask)
            values[j] = (np.float32(c) - zero) * scale

    return unpack


pack2, pack3, pack4, pack5, pack6, pack7, pack8 = (packer(bits) for bits in range(2, 9))
unpack2, unpack3, unpack4, unpack5, unpack6, unpack7, unpack8 = (unpacker(bits) for bits in range(2, 9))


@inlined
def pack_group(bits: Any, values: Any, inverse: Any, zero: Any, data: Any) -> None:
    """Write the codes of one group."""
    if bits == 4:
        pack4(values, inverse, zero, data)
    elif bits == 8:
        pack8(values, inverse, zero, data)
    elif bits == 2:
        pack2(values, inverse, zero, data)
    elif bits == 3:
        pack3(values, inverse, zero, data)
    elif bits == 5:
        pack5(values, inverse, zero, data)
    elif bits == 6:
        pack6(values, inverse, zero, data)
    else:
        pack7(values, inverse, zero, data)


@inlined
def unpack_group(bits: Any, data: Any, zero: Any, scale: Any, values: Any) -> None:
    """Read the values of one group."""
    if bits == 4:
        unpack4(data, zero, scale, values)
    elif bits == 8:
        unpack8(data, zero, scale, values)
    elif bits == 2:
        unpack2(data, zero, scale, values)
    elif bits == 3:
        unpack3(data, zero, scale, values)
    elif bits == 5:
        unpack5(data, zero, scale, values)
    elif bits == 6:
        unpack6(data, zero, scale, values)
    else:
        unpack7(data, zero, scale, values)


@helper
def clamp_finite(values: Any) -> None:
    """Replace infinities that a product overflowed to by the largest finite float."""
    for j in range(values.size):
        values[j] = min(max(values[j], -LARGEST), LARGEST)


@helper
def group_span(group_size: Any, row_length: Any, length: Any) -> Any:
    """Return (matrix row, group) in weights; 0 is a group a matrix row, -1 one for all."""
    if group_size < 0:
        return length, length
    if group_size == 0:
        return row_length, row_length
    return row_length, min(group_size, row_length)


@inlined
def group_scale(pattern: Any, bits: Any, asymmetric: Any) -> Any:
    """Return (scale, its inverse, zero point); a scale of -1 where a value is not finite."""
    largest, top = abs_max_bits(pattern), np.int32((1 << bits) - 1)
    if largest >= INFINITY_BITS:
        return np.float32(-1), np.float32(0), np.int32(0)
    if not asymmetric:
        zero = np.int32(1 << (bits - 1))
        scale, inverse = scale_and_inverse(np.float64(float_of(largest)) / np.float64(zero - 1))
        return scale, inverse, zero
    low, high = range_with_zero(pattern)
    scale, inverse = scale_and_inverse((np.float64(high) - np.float64(low)) / np.float64(top))
    return scale, inverse, code(-low, inverse, np.int32(0), top)


@helper
def scale_and_inverse(exact: Any) -> Any:
    """Round a scale to float32 and invert it; below the smallest normal it is a zero group."""
    scale = np.float32(exact)
    if scale < SMALLEST_NORMAL:
        return np.float32(0), np.float32(0)
    return scale, np.float32(np.float64(1) / np.float64(scale))


@kernel(ENCODE)
def encode(values: Any, row_length: Any, params: Any, importance: Any, data: Any, scales: Any, zero_points: Any) -> Any:
    """Encode one row of weights; the status is the position of its first bad value, or -1."""
    bits, asymmetric, n = params[0], params[1] != 0, values.size
    row, group = group_span(params[2], row_length, n)
    pattern = values.view(np.int32)
    at, k = 0, 0
    for start in range(0, n, max(row, 1)):
        for low in range(start, start + row, group):
            high = min(low + group, start + row)
            scale, inverse, zero = group_scale(pattern[low:high], bits, asymmetric)
            if scale < 0:
                return low + first_non_finite(pattern[low:high])
            size = ((high - low) * bits + 7) // 8
            pack_group(bits, values[low:high], inverse, zero, data[at : at + size])
            scales[k] = scale
            if asymmetric:
                zero_points[k] = np.float32(zero)
            at += size
            k += 1
    return -1


@kernel(DECODE)
def decode(data: Any, scales: Any, zero_points: Any, row_length: Any, params: Any, values: Any) -> Any:
    """Decode one row of weights; symmetric rows have no zero points. Returns -1."""
    bits, n = params[0], values.size
    row, group = group_span(params[2], row_length, n)
    zero, top = np.float32(1 << (bits - 1)), np.float32((1 << bits) - 1)
    at, k = 0, 0
    for start in range(0, n, max(row, 1)):
        for low in range(start, start + row, group):
            high = min(low + group, start + row)
            if params[1] != 0:
                zero = zero_points[k]
            size = ((high - low) * bits + 7) // 8
            unpack_group(bits, data[at : at + size], zero, scales[k], values[low:high])
            if may_overflow(scales[k], zero, top):
                clamp_finite(values[low:high])
            at += size
            k += 1
    return -1


@helper
def may_overflow(scale: Any, zero: Any, top: Any) -> Any:
    """Tell whether some code decodes beyond the largest float: tested once a group, not once a value."""
    return np.float64(abs(scale)) * np.float64(max(zero, top - zero)) > np.float64(LARGEST)


@helper
def add_group_error(values: Any, at: Any, scale: Any, inverse: Any, zero: Any, top: Any, lanes: Any, sums: Any) -> None:
    """Quantize and decode one group in registers and add its errors; `at` is its position in the row."""
    origin = np.float32(zero)
    overflows = may_overflow(scale, origin, np.float32(top))
    j = 0
    while j < values.size:
        lane = (at + j) % N_LANES
        stop = min(values.size, j + N_LANES - lane)
        add_strip(values[j:stop], scale, inverse, zero, origin, top, overflows, lane, lanes)
        j = stop
        if (at + j) % BLOCK_SIZE == 0:
            flush_lanes(lanes, sums)


@helper
def add_strip(
    values: Any, scale: Any, inverse: Any, zero: Any, origin: Any, top: Any, overflows: Any, lane: Any, lanes: Any
) -> None:
    """Add the errors of at most `N_LANES` values to the lanes from `lane` on."""
    for i in range(values.size):
        decoded = (np.float32(code(values[i], inverse, zero, top)) - origin) * scale
        if overflows:
            decoded = min(max(decoded, -LARGEST), LARGEST)
        add_error(values[i], decoded, lane + i, lanes)


@kernel(ERROR)
def error(values: Any, position: Any, row_length: Any, params: Any, importance: Any, lanes: Any, sums: Any) -> Any:
    """Sum the errors of a row, or of a piece of one from `position` on; status as `encode`.

    The sums are those of `moments.flush_lanes`; the last block stays in the lanes.
    """
    bits, asymmetric, n = params[0], params[1] != 0, values.size
    row, group = group_span(params[2], row_length, n)
    pattern = values.view(np.int32)
    top = np.int32((1 << bits) - 1)
    for start in range(0, n, max(row, 1)):
        for low in range(start, start + row, group):
            high = min(low + group, start + row)
            scale, inverse, zero = group_scale(pattern[low:high], bits, asymmetric)
            if scale < 0:
                return low + first_non_finite(pattern[low:high])
            add_group_error(values[low:high], position + low, scale, inverse, zero, top, lanes, sums)
    return -1
