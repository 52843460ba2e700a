"""A randomised Hadamard transform before a codec of groups, and its inverse behind it.

Each block of `k` weights of a matrix row, k a power of two, becomes `H D x / sqrt(k)`:
D changes signs, H is the Hadamard matrix in Sylvester's order, of entries
`(-1)**popcount(i & j)`. The result has the length of x, and its values are close to
normally distributed whatever x was, which costs a quantizer less than outliers do.
The inverse is `D H y / sqrt(k)`.

The sign of element i of a block is the top bit of the (i + 1)-th number of
splitmix64 (S. Vigna, G. Steele et al.) seeded with 0, set for minus; modulo 2**64:

    z = (i + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    sign = (z ^ (z >> 31)) >> 63

Sums and differences are of float32, in pairs 1, 2, 4, ... k/2 apart (the inverse: 16,
32, ... k/2, then 1, 2, 4, 8), the products with `1 / sqrt(k)` come first (last).

`params` is `[k, bits, *the codec's own]`, the last of which is its group size. A row
is worked through in units, which hold whole groups and whole blocks, on the stack.
A group that is longer than a unit is a matrix row, or everything: it is
rotated twice, once for its extent, and once for its codes.
"""

from __future__ import annotations

import functools
import importlib
import operator
from typing import Any

import numpy as np

from aq2_pipeline.kernels import integer
from aq2_pipeline.kernels._jit import DECODE, ENCODE, ERROR, helper, kernel, part
from aq2_pipeline.kernels.bits import INFINITY_BITS, MAGNITUDE
from aq2_pipeline.kernels.blocks.frame import furthest_from_zero
from aq2_pipeline.kernels.integer import first_bad, group_span
from aq2_pipeline.kernels.lanes import (
    LANES,
    butterfly,
    largest,
    load,
    local,
    maximum,
    only_read,
    reinterpreted,
    splat,
    store,
    to,
)
from aq2_pipeline.kernels.moments import (
    BLOCK_SIZE,
    MAX_ERROR,
    N_LANES,
    SQUARED_DECODED,
    SQUARED_ERROR,
    SQUARED_WEIGHT,
    flush_lanes,
)
from aq2_pipeline.kernels.staging import staged, store_floats

#: Weights of a block, and of the least that holds whole groups and whole blocks, at the most: 32 KiB of stack.
MOST = 1 << 13
#: Weights that are rotated at a time, at the least.
UNIT = 1 << 10
#: The codec's own parameters, and the two bounds of a long group.
N_TOLD = 8
#: The bits of 2**100: larger weights are refused, because their sums might be infinite.
TOO_LARGE = np.int32(0x71800000)

_SIGN = np.int32(-(2**31))


def signs(n: int) -> Any:
    """Return whether each of the first n elements of a block changes its sign."""
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(63) != 0


def _words() -> Any:
    """Return the signs of each sixteen elements as the low bits of a word; then, by size, those of short blocks."""
    minus = signs(MOST)
    short = [np.resize(minus[: max(k, 1)], LANES) for k in range(LANES)]
    rows = np.concatenate([minus.reshape(-1, LANES), short])
    return (rows @ (1 << np.arange(LANES))).astype(np.int32)


_WORDS, _AT_SHORT = _words(), MOST // LANES
_PLACES = np.arange(31, 31 - LANES, -1, dtype=np.int32)


@part
def signed(vector: Any, at: Any, k: Any) -> Any:
    """Return sixteen elements from a place of a block on with their signs changed."""
    word = _WORDS[_AT_SHORT + k] if k < LANES else _WORDS[(at & (k - 1)) // LANES]
    minus = (splat(word) << load(_PLACES, 0)) & _SIGN
    return reinterpreted(reinterpreted(vector, np.int32) ^ minus, np.float32)


@part
def within(vector: Any, k: Any) -> Any:
    """Return the sums and differences of elements up to eight apart."""
    if k > 1:
        vector = butterfly(vector, 1)
    if k > 2:
        vector = butterfly(vector, 2)
    if k > 4:
        vector = butterfly(vector, 4)
    if k > 8:
        vector = butterfly(vector, 8)
    return vector


@part
def across(values: Any, n: Any, k: Any) -> None:
    """Put the sums and differences of elements 16 and more apart in their places: two distances at a time."""
    step = LANES
    while 2 * step < k:
        for block in range(0, n, 4 * step):
            for at in range(block, block + step, LANES):
                a, b = load(values, at), load(values, at + step)
                c, d = load(values, at + 2 * step), load(values, at + 3 * step)
                low, high, low_rest, high_rest = a + b, c + d, a - b, c - d
                store(values, at, low + high)
                store(values, at + step, low_rest + high_rest)
                store(values, at + 2 * step, low - high)
                store(values, at + 3 * step, low_rest - high_rest)
        step *= 4
    if step < k:
        for block in range(0, n, 2 * step):
            for at in range(block, block + step, LANES):
                a, b = load(values, at), load(values, at + step)
                store(values, at, a + b)
                store(values, at + step, a - b)


@part
def shrinking(k: Any) -> Any:
    """Return `1 / sqrt(k)`."""
    return np.float32(1 / np.sqrt(np.float64(k)))


@part
def rotate(values: Any, k: Any, turned: Any) -> Any:
    """Write the rotated blocks; return the position of a value that is too large or not finite, or -1."""
    factor, seen = shrinking(k), splat(np.int32(0))
    for at in range(0, values.size, LANES):
        x = staged(values, at, turned[at : at + LANES])
        seen = maximum(seen, reinterpreted(x, np.int32) & MAGNITUDE)
        store(turned, at, within(signed(x, at, k) * factor, k))
    if largest(seen) > TOO_LARGE:
        bad = first_bad(values, 0)
        return bad if bad >= 0 else furthest_from_zero(values)
    across(turned, values.size, k)
    return -1


@part
def rotate_back(turned: Any, k: Any, values: Any) -> Any:
    """Write the blocks as they were before; return whether all values are finite."""
    factor, seen, n = shrinking(k), splat(np.int32(0)), values.size
    for j in range(n, (n + LANES - 1) // LANES * LANES):
        turned[j] = np.float32(0)
    across(turned, n, k)
    for at in range(0, n, LANES):
        # the sum with 0 makes 0 of -0
        x = signed(within(load(turned, at), k) * factor, at, k) + np.float32(0)
        seen = maximum(seen, reinterpreted(x, np.int32) & MAGNITUDE)
        store_floats(x, values, at, n, turned[at : at + LANES])
    return largest(seen) < INFINITY_BITS


@part
def least_unit(k: Any, group: Any) -> Any:
    """Return the least number of weights that is whole groups and whole blocks: k is a power of two."""
    shared = group & -group
    return group * (k // min(shared, k))


@part
def unit_of(k: Any, row: Any, group: Any) -> Any:
    """Return how many weights of a matrix row are rotated at a time."""
    if group > MOST:
        return MOST
    least = least_unit(k, max(group, 1))
    return min(least * max(1, UNIT // least), max(row, 1))


@part
def bytes_of(n: Any, group: Any, bits: Any) -> Any:
    """Return the bytes of the codes of whole groups and the rest of `n` weights, or of a slice of a long group."""
    return n // group * ((group * bits + 7) // 8) + (n % group * bits + 7) // 8


_measure = part(integer.measure.py_func)


@part
def tell(params: Any, own: Any, k: Any, group: Any, turned: Any, told: Any) -> Any:
    """Write the codec's own parameters, for a long group its bounds behind them; return (their number, status)."""
    n = params.size - 2
    for j in range(n):
        told[j] = params[j + 2]
    if group <= MOST:
        return n, -1
    told[n], told[n + 1] = 0, 0
    for at in range(0, own.size, MOST):
        stop = min(at + MOST, own.size)
        status = rotate(own[at:stop], k, turned)
        if status >= 0:
            return n, at + status
        _measure(only_read(turned[: stop - at]), told[n : n + 2])
    return n + 2, -1


@part
def add_whole(values: Any, decoded: Any, lanes: Any) -> None:
    """Add whole vectors of values and what they decode to, in float64.

    A code in other coordinates may be far from the weight, and float32 does not hold their difference exactly.
    """
    errors, squares = load(lanes, SQUARED_ERROR * N_LANES), load(lanes, SQUARED_WEIGHT * N_LANES)
    others, most = load(lanes, SQUARED_DECODED * N_LANES), load(lanes, MAX_ERROR * N_LANES)
    for at in range(0, values.size, LANES):
        w, d = to(load(values, at), np.float64), to(load(decoded, at), np.float64)
        e = w - d
        errors, squares, others = errors + e * e, squares + w * w, others + d * d
        most = maximum(most, maximum(e, d - w))
    store(lanes, SQUARED_ERROR * N_LANES, errors)
    store(lanes, SQUARED_WEIGHT * N_LANES, squares)
    store(lanes, SQUARED_DECODED * N_LANES, others)
    store(lanes, MAX_ERROR * N_LANES, most)


@part
def add_errors(values: Any, decoded: Any, position: Any, lanes: Any, sums: Any) -> None:
    """Add values and what they decode to, each to the lane of its position, and blocks of sums where they end."""
    j, n = 0, values.size
    while j < n:
        place, stop = position + j, j + 1
        if place % LANES == 0 and j + LANES <= n:
            stop = j + min((n - j) // LANES * LANES, BLOCK_SIZE - place % BLOCK_SIZE)
            add_whole(values[j:stop], decoded[j:stop], lanes)
        else:
            at, w, d = place % LANES, np.float64(values[j]), np.float64(decoded[j])
            lanes[SQUARED_ERROR * N_LANES + at] += (w - d) * (w - d)
            lanes[SQUARED_WEIGHT * N_LANES + at] += w * w
            lanes[SQUARED_DECODED * N_LANES + at] += d * d
            lanes[MAX_ERROR * N_LANES + at] = max(lanes[MAX_ERROR * N_LANES + at], abs(w - d))
        if (position + stop) % BLOCK_SIZE == 0:
            flush_lanes(lanes, sums)
        j = stop


def _kernel_of(module: str, name: str) -> Any:
    return operator.attrgetter(name)(importlib.import_module(module))


@functools.cache
def encoder(module: str, encode_name: str) -> Any:
    """Return a kernel that rotates what it hands on to another encoder, of a module and a name there."""
    encode_some = helper(_kernel_of(module, encode_name).py_func)

    @kernel(ENCODE, f"{module} {encode_name}")
    def encode(
        values: Any, row_length: Any, params: Any, importance: Any, data: Any, scales: Any, zero_points: Any
    ) -> Any:
        n, k, at, g = values.size, params[0], 0, 0
        row, group = group_span(params[params.size - 1], row_length, n)
        unit = unit_of(k, row, group)
        turned, told = local(MOST, np.float32), local(N_TOLD, np.int64)
        for start in range(0, n, max(row, 1)):
            n_told, status = tell(params, values[start : start + row], k, group, turned, told)
            if status >= 0:
                return start + status
            for low in range(start, start + row, unit):
                own = values[low : min(low + unit, start + row)]
                status = rotate(own, k, turned)
                if status >= 0:
                    return low + status
                stop, last = at + bytes_of(own.size, group, params[1]), g + (own.size + group - 1) // group
                encode_some(
                    only_read(turned[: own.size]), own.size, only_read(told[:n_told]), importance, data[at:stop],
                    scales[g:last], zero_points[g:last],
                )  # fmt: skip
                at, g = stop, last if group <= MOST else g
            g += group > MOST
        return -1

    return encode


@functools.cache
def decoder(module: str, decode_name: str) -> Any:
    """Return a kernel that rotates back what another decoder gives."""
    decode_some = helper(_kernel_of(module, decode_name).py_func)

    @kernel(DECODE, f"{module} {decode_name}")
    def decode(data: Any, scales: Any, zero_points: Any, row_length: Any, params: Any, values: Any) -> Any:
        n, k, at, g = values.size, params[0], 0, 0
        row, group = group_span(params[params.size - 1], row_length, n)
        unit, turned = unit_of(k, row, group), local(MOST, np.float32)
        for start in range(0, n, max(row, 1)):
            for low in range(start, start + row, unit):
                own = values[low : min(low + unit, start + row)]
                stop, last = at + bytes_of(own.size, group, params[1]), g + (own.size + group - 1) // group
                decode_some(
                    data[at:stop], scales[g:last], zero_points[g:last], own.size, params[2:], turned[: own.size]
                )
                if not rotate_back(turned, k, own):
                    return low
                at, g = stop, last if group <= MOST else g
            g += group > MOST
        return -1

    return decode


@functools.cache
def error(module: str, encode_name: str, decode_name: str) -> Any:
    """Return a kernel that sums the errors of the weights themselves, of an encoder and its decoder."""
    encode_some = helper(_kernel_of(module, encode_name).py_func)
    decode_some = helper(_kernel_of(module, decode_name).py_func)

    @kernel(ERROR, f"{module} {encode_name} {decode_name}")
    def add(values: Any, position: Any, row_length: Any, params: Any, importance: Any, lanes: Any, sums: Any) -> Any:
        n, k = values.size, params[0]
        row, group = group_span(params[params.size - 1], row_length, n)
        unit = unit_of(k, row, group)
        turned, told = local(MOST, np.float32), local(N_TOLD, np.int64)
        data, scales, zero_points = local(MOST, np.uint8), local(MOST, np.float32), local(MOST, np.float32)
        for start in range(0, n, max(row, 1)):
            n_told, status = tell(params, values[start : start + row], k, group, turned, told)
            if status >= 0:
                return start + status
            for low in range(start, start + row, unit):
                own = values[low : min(low + unit, start + row)]
                status = rotate(own, k, turned)
                if status >= 0:
                    return low + status
                codes, m = data[: bytes_of(own.size, group, params[1])], (own.size + group - 1) // group
                there, own_told = turned[: own.size], only_read(told[:n_told])
                encode_some(only_read(there), own.size, own_told, importance, codes, scales[:m], zero_points[:m])
                stored = only_read(codes), only_read(scales[:m]), only_read(zero_points[:m])
                decode_some(*stored, own.size, own_told, there)
                rotate_back(turned, k, there)
                add_errors(own, there, position + low, lanes, sums)
        return -1

    return add
