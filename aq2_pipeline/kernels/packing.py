"""Integer codes of 2 to 8 bits, from weights to dense bytes and back: one group of equal scale at a time.

The code of a weight is `round(weight * inverse) + zero`, half to even; value *i*
of a group starts at bit *i·bits* and padding bits are 0. Adding `ROUND` leaves
the rounded integer in the low bits of the float, so that a code costs a
multiplication, a float and an integer addition.

Sixteen codes are squeezed together by halves: as 64-bit lanes a pair is
`p | p >> (32 - bits)`, then pairs of pairs, then eight codes in `bits` bytes. Per
million weights in groups of 128, abs-max and scales included, on one AVX-512
core: 0.13 ms at 4 bits, 0.11 at 8, 0.2 at 2 and 3, 0.3 at 5, 6 and 7, where plain
loops that LLVM vectorised by itself took 0.29, 0.26, 0.43, 0.6 and 0.8 to 1.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper, inlined
from aq2_pipeline.kernels.bits import ROUND, ROUND_BITS, bits_of
from aq2_pipeline.kernels.lanes import LANES, lane, load, load_half, minimum, ramp, reinterpreted, store, to
from aq2_pipeline.kernels.widening import as_float


@helper
def code(x: Any, inverse: Any, zero: Any, top: Any) -> Any:
    """Return `min(round(x * inverse) + zero, top)`."""
    rounded = np.int32(bits_of(x * inverse + ROUND) - ROUND_BITS)
    return min(np.int32(rounded + zero), top)


@inlined
def pack(values: Any, inverse: Any, zero: Any, data: Any, bits: Any, clamps: Any) -> None:
    """Write the codes of one group at `bits` bits each; `bits` and `clamps` are constants of the kernel.

    Codes may exceed the largest only with a zero point, where both ends of the
    range may round up: without one, `max / scale` is never half a step beyond.
    """
    n, shift, top = values.size - values.size % LANES, np.int32(zero - ROUND_BITS), np.int32((1 << bits) - 1)
    for at in range(0, n, LANES):
        codes = reinterpreted(as_float(load(values, at)) * inverse + ROUND, np.int32) + shift
        if clamps:
            codes = minimum(codes, top)
        if bits == 8:
            store(data, at, to(codes, np.uint8))
        elif bits == 4:
            store(data, at >> 1, to(paired(codes, bits), np.uint8))
        else:
            first = (at >> 3) * bits
            store_eights(eights_of(codes, bits), data, first, bits, first + bits + 8 <= n * bits >> 3)
    if n < values.size:
        pack_rest(values[n:], inverse, zero, data[n * bits >> 3 :], bits)


@inlined
def paired(codes: Any, bits: Any) -> Any:
    """Return eight uint64, each with two codes in its low bits."""
    pairs = reinterpreted(codes, np.uint64)
    return pairs | (pairs >> np.uint64(32 - bits))


@inlined
def eights_of(codes: Any, bits: Any) -> Any:
    """Return two uint64, each with eight codes in its low bits."""
    pairs = reinterpreted(to(paired(codes, bits), np.uint16), np.uint32)
    fours = reinterpreted((pairs & np.uint32(0xFFFF)) | ((pairs >> np.uint32(16)) << np.uint32(2 * bits)), np.uint64)
    return (fours & np.uint64(0xFFFFFFFF)) | ((fours >> np.uint64(32)) << np.uint64(4 * bits))


@inlined
def store_eights(eights: Any, data: Any, at: Any, bits: Any, more: Any) -> None:
    """Write the low `bits` bytes of each of two uint64."""
    if more:  # the rest of a word lies in bytes of this group that come later
        store(data, at, lane(eights, 0))
        store(data, at + bits, lane(eights, 1))
    else:
        for k in range(bits):
            data[np.uint64(at + k)] = np.uint8(lane(eights, 0) >> np.uint64(8 * k))
            data[np.uint64(at + bits + k)] = np.uint8(lane(eights, 1) >> np.uint64(8 * k))


@helper
def pack_rest(values: Any, inverse: Any, zero: Any, data: Any, bits: Any) -> None:
    """Write the codes of fewer values than lanes."""
    at, held, rest, top = 0, 0, np.int64(0), np.int32((1 << bits) - 1)
    for j in range(values.size):
        rest |= np.int64(code(as_float(values[j]), inverse, zero, top)) << held
        held += bits
        if held >= 8:
            data[at] = np.uint8(rest & 255)
            at, held, rest = at + 1, held - 8, rest >> 8
    if held > 0:
        data[at] = np.uint8(rest)


@inlined
def unpack(data: Any, zero: Any, scale: Any, values: Any, bits: Any) -> None:
    """Read the values of one group: `(code - zero) * scale`; padding bits are ignored."""
    n, mask = values.size - values.size % LANES, np.int32((1 << bits) - 1)
    for at in range(0, n, LANES):
        if bits == 8:
            codes = to(load(data, at), np.int32)
            store(values, at, (to(codes, np.float32) - zero) * scale)
        elif bits == 4:
            pairs = to(load_half(data, at >> 1), np.uint64)
            nibbles = reinterpreted((pairs | (pairs << np.uint64(28))) & np.uint64(0x0000000F0000000F), np.int32)
            store(values, at, (to(nibbles, np.float32) - zero) * scale)
        else:
            for half in range(2):
                word = low_bytes(data, (at >> 3) * bits + half * bits, bits)
                eight = to(((ramp() * np.uint64(0) + word) >> (ramp() * np.uint64(bits))), np.int32) & mask
                store(values, at + 8 * half, (to(eight, np.float32) - zero) * scale)
    if n < values.size:
        unpack_rest(data[n * bits >> 3 :], zero, scale, values[n:], bits)


@inlined
def low_bytes(data: Any, at: Any, bits: Any) -> Any:
    """Return `bits` bytes, which hold eight codes, as an integer."""
    word = np.uint64(0)
    for k in range(bits):
        word |= np.uint64(data[np.uint64(at + k)]) << np.uint64(8 * k)
    return word


@helper
def unpack_rest(data: Any, zero: Any, scale: Any, values: Any, bits: Any) -> None:
    """Read fewer values than lanes."""
    for j in range(values.size):
        at, held = j * bits // 8, j * bits % 8
        word = np.int32(data[at])
        if held + bits > 8:
            word |= np.int32(data[at + 1]) << 8
        values[j] = (np.float32((word >> held) & ((1 << bits) - 1)) - zero) * scale
