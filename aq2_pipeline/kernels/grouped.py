"""Codes with one float32 scale a group, whatever a code stands for: integers, codebooks, small floats.

A kind of code is three functions over lanes: `code_of(x)`, the codes nearest to
weights that were divided by their scale, `value_of(codes)`, and `nearest(x)`, which
is the value of the code, and may be had for less. `grouped_kernels`
makes kernels of them, with the layout of
`kernels.integer`: groups restart at each matrix row and begin at a byte, codes
are packed from the low bits on, padding bits are 0.

Three methods find the scale. `reference` divides the largest magnitude by the
largest value of a code. `search` tries scales around it (with both signs, where
the codes are not symmetric), gives each the least-squares scale of its codes,
takes the best some steps further, and keeps the smallest error of what is stored.
`refit` takes the least-squares steps only, from the reference on.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from aq2_pipeline.kernels._jit import DECODE, ENCODE, ERROR, helper, inlined, kernel
from aq2_pipeline.kernels.bits import INFINITY_BITS, LARGEST, MAGNITUDE, SMALLEST_NORMAL, extent, float_of
from aq2_pipeline.kernels.integer import first_bad, group_span
from aq2_pipeline.kernels.lanes import (
    LANES,
    join,
    largest,
    load,
    load_half,
    local,
    maximum,
    minimum,
    plus_product,
    ramp,
    reinterpreted,
    splat,
    store,
    to,
    total,
)
from aq2_pipeline.kernels.moments import BLOCK_SIZE, flush_lanes, keep_wide_lanes, wide_lanes_of, with_exact_errors
from aq2_pipeline.kernels.packing import eights_of, low_bytes, paired, store_eights

#: Scales that `search` tries, as parts of the reference's; the least-squares steps that follow, and those of `refit`.
N_CANDIDATES, FIRST, STEP = 12, np.float32(0.62), np.float32(0.04)
N_STEPS, N_REFITS = 3, 20
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
    """Return the importance of 16 weights of a group of `n` from a place on; behind the last, zeros."""
    for j in range(LANES):
        staging[j] = importance[first + at + j] if at + j < n else np.float32(0)
    return to(load(staging, 0), np.float64)


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
def largest_of(pattern: Any, params: Any, at: Any) -> Any:
    """Return the bits of the largest magnitude of a group, or of the whole that the caller measured."""
    low, high = extent(pattern)
    if params.size > at + 1:
        low, high = np.int32(params[at + 1]), np.int32(params[at + 2])
    return max(high, np.int32(low & MAGNITUDE))


@inlined
def sums_of(nearest: Any, values: Any, importance: Any, first: Any, inverse: Any, staging: Any) -> Any:
    """Return the weighted sums of weight times value and of value squared, for codes by an inverse scale."""
    products, squares = splat(np.float64(0)), splat(np.float64(0))
    for at in range(0, values.size, LANES):
        x = staged(values, at, staging)
        v, wide = to(nearest(x * inverse), np.float64), to(x, np.float64)
        if importance is None:
            products, squares = plus_product(products, wide, v), plus_product(squares, v, v)
        else:
            w = staged_importance(importance, first, values.size, at, staging)
            products, squares = products + wide * v * w, squares + v * v * w
    return total(products), total(squares)


@inlined
def loss_of(nearest: Any, values: Any, importance: Any, first: Any, scale: Any, staging: Any) -> Any:
    """Return the weighted squared error of a group stored with a scale."""
    found, inverse = splat(np.float64(0)), np.float32(1) / scale
    for at in range(0, values.size, LANES):
        x = staged(values, at, staging)
        e = to(x - nearest(x * inverse) * scale, np.float64)
        if importance is None:
            found = plus_product(found, e, e)
        else:
            found = found + e * e * staged_importance(importance, first, values.size, at, staging)
    return total(found)


@inlined
def searched(
    nearest: Any,
    values: Any,
    importance: Any,
    first: Any,
    reference: Any,
    n_candidates: Any,
    n_steps: Any,
    staging: Any,
) -> Any:
    """Return the best scale of a group: candidates around the reference, the second half negative; then steps."""
    best, gain = reference, np.float64(-1)
    for k in range(n_candidates + n_steps):
        inverse = np.float32(1) / best
        if k < n_candidates:
            inverse = np.float32(1) / ((FIRST + STEP * np.float32(k % N_CANDIDATES)) * reference)
            inverse = -inverse if k >= N_CANDIDATES else inverse
        products, squares = sums_of(nearest, values, importance, first, inverse, staging)
        if squares > 0 and products * products > gain * squares:
            scale = np.float32(products / squares)
            if abs(scale) >= SMALLEST_NORMAL:
                gain, best = products * products / squares, scale
        elif k >= n_candidates:
            break
    found = loss_of(nearest, values, importance, first, best, staging)
    return best if found < loss_of(nearest, values, importance, first, reference, staging) else reference


@inlined
def scale_of(
    nearest: Any, values: Any, importance: Any, first: Any, size: Any, top: Any, n_candidates: Any, n_steps: Any,
    staging: Any,
) -> Any:  # fmt: skip
    """Return the scale of a group whose largest magnitude has these bits: 0 if subnormal, NaN if not finite."""
    scale = float_of(size) / top
    if size >= INFINITY_BITS:
        scale = np.float32(np.nan)
    elif scale < SMALLEST_NORMAL:
        scale = np.float32(0)
    elif n_steps > 0:
        scale = searched(nearest, values, importance, first, scale, n_candidates, n_steps, staging)
    return scale


def _encoder(name: str, kind: Kind, n_candidates: int, n_steps: int, *, weighted: bool) -> Any:
    code_of, nearest, bits, top, group_at = kind.code_of, kind.nearest, kind.bits, np.float32(kind.top), kind.group_at

    @kernel(ENCODE, name)
    def encode(
        values: Any, row_length: Any, params: Any, importance: Any, data: Any, scales: Any, zero_points: Any
    ) -> Any:
        n, at, k = values.size, 0, 0
        row, group = group_span(params[group_at], row_length, n)
        staging, spare = local(LANES, np.float32), local(SPARE, np.uint8)
        given = importance if weighted else None
        for start in range(0, n, max(row, 1)):
            for low in range(start, start + row, group):
                own = values[low : min(low + group, start + row)]
                first = low % importance.size if weighted else 0
                size = largest_of(own.view(np.int32), params, group_at)
                scale = scale_of(nearest, own, given, first, size, top, n_candidates, n_steps, staging)
                if np.isnan(scale):
                    return first_bad(own, low)
                inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
                stop = at + (own.size * bits + 7) // 8
                for j in range(0, own.size, LANES):
                    codes = code_of(staged(own, j, staging) * inverse)
                    store_codes(codes, data[at:stop], j, bits, own.size, spare)
                scales[k] = scale
                at, k = stop, k + 1
        return -1

    return encode


def _error(name: str, kind: Kind, n_candidates: int, n_steps: int, *, weighted: bool) -> Any:
    nearest, top, group_at = kind.nearest, np.float32(kind.top), kind.group_at

    @kernel(ERROR, name)
    def error(values: Any, position: Any, row_length: Any, params: Any, importance: Any, lanes: Any, sums: Any) -> Any:
        n, held = values.size, wide_lanes_of(lanes)
        row, group = group_span(params[group_at], row_length, n)
        staging = local(LANES, np.float32)
        given = importance if weighted else None
        for start in range(0, n, max(row, 1)):
            for low in range(start, start + row, group):
                own = values[low : min(low + group, start + row)]
                first = low % importance.size if weighted else 0
                size = largest_of(own.view(np.int32), params, group_at)
                scale = scale_of(nearest, own, given, first, size, top, n_candidates, n_steps, staging)
                if np.isnan(scale):
                    return first_bad(own, low)
                inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
                for j in range(0, own.size, LANES):
                    x = staged(own, j, staging)
                    decoded = finite(nearest(x * inverse) * scale)
                    w = staged_importance(importance, first, own.size, j, staging) if weighted else None
                    held = with_exact_errors(held, x, decoded, w)
                    done = position + low + min(j + LANES, own.size)
                    if done // BLOCK_SIZE != (position + low + j) // BLOCK_SIZE:
                        keep_wide_lanes(held, lanes)
                        flush_lanes(lanes, sums)
                        held = wide_lanes_of(lanes)
        keep_wide_lanes(held, lanes)
        return -1

    return error


def _decoder(name: str, kind: Kind) -> Any:
    value_of, bits, most, group_at = kind.value_of, kind.bits, np.float64(kind.highest), kind.group_at
    specials = kind.specials

    @kernel(DECODE, name)
    def decode(data: Any, scales: Any, zero_points: Any, row_length: Any, params: Any, values: Any) -> Any:
        n, at, k = values.size, 0, 0
        row, group = group_span(params[group_at], row_length, n)
        staging, spare = local(LANES, np.float32), local(SPARE, np.uint8)
        for start in range(0, n, max(row, 1)):
            for low in range(start, start + row, group):
                high = min(low + group, start + row)
                stop = at + ((high - low) * bits + 7) // 8
                for j in range(low, high, LANES):
                    spelled = value_of(codes_at(data[at:stop], j - low, bits, high - low, spare))
                    if specials and largest(reinterpreted(spelled, np.int32) & MAGNITUDE) >= INFINITY_BITS:
                        store(staging, 0, spelled)
                        return first_bad(staging, j)
                    decoded = spelled * scales[k]
                    if np.float64(abs(scales[k])) * most > np.float64(LARGEST):
                        decoded = finite(decoded)
                    store_floats(decoded, values, j, high, staging)
                at, k = stop, k + 1
        return -1

    return decode


class Kind(NamedTuple):
    """A kind of code.

    Attributes
    ----------
    name : str
        What tells it apart in the cache.
    bits : int
        Bits a code, 2 to 8.
    top : float
        What the largest magnitude of a group is mapped to by `reference`.
    highest : float
        The largest magnitude of a value: whether a product may overflow.
    code_of, value_of, nearest : functions
        Of 16 lanes: float32 to int32 codes, these to float32, and both in one.
    symmetric : bool
        Whether the negative of each value is one, so that one sign of the scale is enough.
    group_at : int
        Where in `params` the group size is; the measure of a sliced group follows it.
    specials : bool
        Whether some codes, which no weight gets, spell infinities or NaNs.
    """

    name: str
    bits: int
    top: float
    highest: float
    code_of: Any
    value_of: Any
    nearest: Any
    symmetric: bool
    group_at: int = 0
    specials: bool = False


def grouped_kernels(kind: Kind) -> Any:
    """Return the kernels of a kind of code.

    Returns
    -------
    namespace
        `decode`, and `encode_<method>` and `error_<method>`, both also with
        `_weighted` behind the methods that search.
    """
    n_candidates = N_CANDIDATES if kind.symmetric else 2 * N_CANDIDATES
    made = {"decode": _decoder(f"{kind.name} decode", kind)}
    for method, search in (("reference", (0, 0)), ("search", (n_candidates, N_STEPS)), ("refit", (0, N_REFITS))):
        for weighted in (False, True) if search[1] else (False,):
            told = method + "_weighted" * weighted
            made[f"encode_{told}"] = _encoder(f"{kind.name} encode {told}", kind, *search, weighted=weighted)
            made[f"error_{told}"] = _error(f"{kind.name} error {told}", kind, *search, weighted=weighted)
    return SimpleNamespace(**made)


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
