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

from aq2_pipeline.kernels._jit import DECODE, ENCODE, ERROR, helper, kernel
from aq2_pipeline.kernels.bits import INFINITY_BITS, LARGEST, MAGNITUDE, SMALLEST_NORMAL, extent, float_of
from aq2_pipeline.kernels.integer import first_bad, group_span
from aq2_pipeline.kernels.lanes import LANES, largest, local, reinterpreted, store
from aq2_pipeline.kernels.moments import BLOCK_SIZE, flushed, keep_wide_lanes, wide_lanes_of, with_exact_errors
from aq2_pipeline.kernels.searches import GRID, N_REFITS, N_STEPS, best_scale
from aq2_pipeline.kernels.staging import (
    SPARE,
    codes_at,
    finite,
    staged,
    staged_importance,
    store_codes,
    store_floats,
    without_rest,
)


@helper
def extent_at(pattern: Any, params: Any, at: Any) -> Any:
    """Return the bits of (min, max) of a group, or of the whole that the caller measured."""
    if params.size > at + 1:
        return np.int32(params[at + 1]), np.int32(params[at + 2])
    return extent(pattern)


class Codes(NamedTuple):
    """What the loops over groups know of codes.

    Attributes
    ----------
    name : str
        What tells them apart in the cache.
    bits : int
        Bits a code, 2 to 8.
    code_of, nearest : functions
        Of 16 weights in steps of the scale, and the zero point: the codes, int32, and what they
        decode to in steps, float32.
    group_at : int
        Where in `params` the group size is; the measure of a sliced group follows it.
    has_zeros : bool
        Whether zero points are stored.
    """

    name: str
    bits: int
    code_of: Any
    nearest: Any
    group_at: int
    has_zeros: bool = False


def encoder(codes: Codes, method: str, find: Any, *, weighted: bool) -> Any:
    """Return the kernel that encodes.

    `find(values, importance, first, low, high, staging) -> (scale, zero point)` is told a group, its importance
    (or None) from `first` on, and the bits of its extent; the scale is NaN if these are not finite.
    """
    code_of, bits, group_at, has_zeros = codes.code_of, codes.bits, codes.group_at, codes.has_zeros

    @kernel(ENCODE, f"{codes.name} encode {method}{'_weighted' * weighted}")
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
                least, most = extent_at(own.view(np.int32), params, group_at)
                scale, zero = find(own, given, first, least, most, staging)
                if np.isnan(scale):
                    return first_bad(own, low)
                inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
                stop = at + (own.size * bits + 7) // 8
                for j in range(0, own.size, LANES):
                    found = code_of(staged(own, j, staging) * inverse, zero)
                    store_codes(found, data[at:stop], j, bits, own.size, spare)
                scales[k] = scale
                if has_zeros:
                    zero_points[k] = zero
                at, k = stop, k + 1
        return -1

    return encode


def error(codes: Codes, method: str, find: Any, *, weighted: bool) -> Any:
    """Return the kernel that sums the errors of what `encoder` writes."""
    nearest, group_at = codes.nearest, codes.group_at

    @kernel(ERROR, f"{codes.name} error {method}{'_weighted' * weighted}")
    def error(values: Any, position: Any, row_length: Any, params: Any, importance: Any, lanes: Any, sums: Any) -> Any:
        n, held = values.size, wide_lanes_of(lanes)
        row, group = group_span(params[group_at], row_length, n)
        staging = local(LANES, np.float32)
        given = importance if weighted else None
        for start in range(0, n, max(row, 1)):
            for low in range(start, start + row, group):
                own = values[low : min(low + group, start + row)]
                first = low % importance.size if weighted else 0
                least, most = extent_at(own.view(np.int32), params, group_at)
                scale, zero = find(own, given, first, least, most, staging)
                if np.isnan(scale):
                    return first_bad(own, low)
                inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
                for j in range(0, own.size, LANES):
                    x = staged(own, j, staging)
                    decoded = without_rest(finite(nearest(x * inverse, zero) * scale), own.size, j, staging)
                    w = staged_importance(importance, first, own.size, j, staging) if weighted else None
                    held = with_exact_errors(held, x, decoded, w)
                    done = position + low + min(j + LANES, own.size)
                    if done // BLOCK_SIZE != (position + low + j) // BLOCK_SIZE:
                        held = flushed(held, lanes, sums)
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
        Of 16 lanes: float32 to int32 codes, these to float32, and both in one; `value_of` is
        None where another decoder reads the codes.
    symmetric : bool
        Whether the negative of each value is one, so that one sign of the scale is enough.
    group_at : int
        Where in `params` the group size is; the measure of a sliced group follows it.
    specials : bool
        Whether some codes, which no weight gets, spell infinities or NaNs.
    grid : tuple of numbers
        The scales that `search` tries: see `kernels.searches`.
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
    grid: tuple[int, float, float] = GRID


def _finder(kind: Kind, nearest: Any, n_signs: int, n_steps: int) -> Any:
    """Return the function that finds the scale of a group: 0 if subnormal, NaN if not finite."""
    n_of_a_sign, smallest, step = kind.grid
    grid = n_signs * n_of_a_sign, n_of_a_sign, np.float32(smallest), np.float32(step)
    top = np.float32(kind.top)

    @helper
    def find(values: Any, importance: Any, first: Any, low: Any, high: Any, staging: Any) -> Any:
        size = max(high, np.int32(low & MAGNITUDE))
        scale = float_of(size) / top
        if size >= INFINITY_BITS:
            scale = np.float32(np.nan)
        elif scale < SMALLEST_NORMAL:
            scale = np.float32(0)
        elif n_steps > 0:
            scale = best_scale(nearest, values, importance, first, scale, grid, n_steps, staging)
        return scale, np.float32(0)

    return find


def _with_zero(function: Any) -> Any:
    """Return a function of weights as one of weights and a zero point, which is none."""

    @helper
    def ignoring(x: Any, _zero: Any) -> Any:
        return function(x)

    return ignoring


def method_kernels(codes: Codes, methods: dict[str, Any], unweighted: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return `encode_<method>` and `error_<method>`, both also with `_weighted` behind, of functions that find."""
    made = {}
    for method, find in methods.items():
        for weighted in (False,) if method in unweighted else (False, True):
            told = method + "_weighted" * weighted
            made[f"encode_{told}"] = encoder(codes, method, find, weighted=weighted)
            made[f"error_{told}"] = error(codes, method, find, weighted=weighted)
    return made


def finders(kind: Kind) -> tuple[Codes, dict[str, Any]]:
    """Return the codes of a kind, and the functions that find their scales: `reference`, `search` and `refit`."""
    codes = Codes(kind.name, kind.bits, _with_zero(kind.code_of), _with_zero(kind.nearest), kind.group_at)
    numbers = {"reference": (0, 0), "search": (1 if kind.symmetric else 2, N_STEPS), "refit": (0, N_REFITS)}
    return codes, {method: _finder(kind, codes.nearest, *given) for method, given in numbers.items()}


def grouped_kernels(kind: Kind) -> Any:
    """Return the kernels of a kind of code.

    Returns
    -------
    namespace
        `decode`, and `encode_<method>` and `error_<method>`, both also with
        `_weighted` behind the methods that search.
    """
    made = method_kernels(*finders(kind), unweighted=("reference",))
    return SimpleNamespace(decode=_decoder(f"{kind.name} decode", kind), **made)
