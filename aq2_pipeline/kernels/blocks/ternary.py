"""What TQ1_0 and TQ2_0 share: the float16 scale `d` of 256 weights whose codes are 0, 1 and 2 for -d, 0 and d.

The best codes of a scale give `d` to the weights beyond `d / 2`: to the n largest
magnitudes. Their mean is the best scale of them, so a sort finds the optimum,
exactly but for the rounding of `d`. Lane k is the k-th of 16 blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.blocks.columns import ONE, ZERO, inverse_or_zero, store_half
from aq2_pipeline.kernels.halves import half_bits, rounded_to_half
from aq2_pipeline.kernels.lanes import load, local, magnitude, maximum, minimum, splat, store, to, transpose, where

_HALF = np.float32(0.5)
_LARGEST = np.float32(np.finfo(np.float32).max)


@helper
def turn_256(values: Any, target: Any) -> None:
    """Turn 16 blocks of 256."""
    for i in range(0, 256, 16):
        transpose(values, i, 256, target, 16 * i)


@helper
def largest_magnitudes(columns: Any) -> Any:
    """Return the largest magnitude of each lane."""
    found = splat(ZERO)
    for i in range(0, columns.size, 16):
        found = maximum(found, magnitude(load(columns, i)))
    return found


@helper
def exchange(sizes: Any, weights: Any, i: Any, j: Any) -> None:
    """Put the larger of two first, and its importance with it."""
    a, b = load(sizes, i), load(sizes, j)
    store(sizes, i, maximum(a, b))
    store(sizes, j, minimum(a, b))
    if weights is not None:
        v, w = load(weights, i), load(weights, j)
        store(weights, i, where(a < b, w, v))
        store(weights, j, where(a < b, v, w))


@helper
def sort_down(sizes: Any, weights: Any) -> None:
    """Sort each lane's 256 by Batcher's odd-even merges, which compare the same pairs whatever the sizes are."""
    run = 1
    while run < 256:
        step = run
        while step > 0:
            for low in range(step % run, 256 - step, 2 * step):
                for i in range(low, min(low + step, 256 - step)):
                    if i // (2 * run) == (i + step) // (2 * run):
                        exchange(sizes, weights, 16 * i, 16 * (i + step))
            step //= 2
        run *= 2


@helper
def best_scale(sizes: Any, weights: Any) -> Any:
    """Return the mean of as many of the largest magnitudes as leave the least error."""
    best, found, xs, n = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    for i in range(0, 4096, 16):
        w = splat(ONE) if weights is None else load(weights, i)
        xs, n = xs + load(sizes, i) * w, n + w
        mean = where(n > ZERO, xs / n, splat(ZERO))
        found = where(mean * xs > best, mean, found)
        best = maximum(mean * xs, best)
    return found


@helper
def error_of(sizes: Any, weights: Any, d: Any) -> Any:
    """Return the squared error of each block."""
    found, inverse = splat(ZERO), inverse_or_zero(d)
    for i in range(0, 4096, 16):
        x = load(sizes, i)
        e = x - where(x * inverse >= _HALF, d, splat(ZERO))
        found = found + (e * e if weights is None else e * e * load(weights, i))
    return found


@helper
def ggml_scales(values: Any, halves: Any, inverses: Any) -> None:
    """Write ggml's scale of each block: the largest magnitude; the codes are of its inverse before it is rounded."""
    columns = local(4096, np.float32)
    turn_256(values, columns)
    d = largest_magnitudes(columns)
    inverse = inverse_or_zero(d)
    store(halves, 0, half_bits(d))
    # the inverse of what is below 2**-128 is infinite, and ggml's codes are then those of 0
    store(inverses, 0, where(inverse > _LARGEST, splat(ZERO), inverse))


@helper
def best_scales(values: Any, weights: Any, halves: Any, inverses: Any) -> None:
    """Write the scale of each block with the least squared error."""
    sizes, turned = local(4096, np.float32), local(4096, np.float32)
    turn_256(values, sizes)
    for i in range(0, 4096, 16):
        store(sizes, i, magnitude(load(sizes, i)))
    if weights is None:
        write_best(sizes, None, halves, inverses)
    else:
        turn_256(weights, turned)
        write_best(sizes, turned, halves, inverses)


@helper
def write_best(sizes: Any, weights: Any, halves: Any, inverses: Any) -> None:
    """Write the best scales of magnitudes, which are sorted for it."""
    sort_down(sizes, weights)
    widest = rounded_to_half(load(sizes, 0))
    d = rounded_to_half(best_scale(sizes, weights))
    better = error_of(sizes, weights, d) < error_of(sizes, weights, widest)
    d = where(better, d, widest)
    store(halves, 0, half_bits(d))
    store(inverses, 0, inverse_or_zero(d))


@helper
def ternary_codes(values: Any, at: Any, inverse: Any, codes: Any) -> None:
    """Write the codes of the 256 weights from `at` on."""
    for i in range(0, 256, 16):
        x = load(values, at + i) * inverse
        up = where(x >= _HALF, splat(np.int32(2)), splat(np.int32(1)))
        store(codes, i, to(where(x <= ZERO - _HALF, splat(np.int32(0)), up), np.uint8))


def encoders(n_bytes: int, pack: Any) -> tuple[Any, Any]:
    """Return `search` and `reference` of 16 blocks; `pack(codes, data, at)` writes codes, in front of the scale."""

    @helper
    def encode(values: Any, halves: Any, inverses: Any, data: Any) -> Any:
        codes = local(256, np.uint8)
        for k in range(16):
            at = n_bytes * k
            if not store_half(data, at + n_bytes - 2, halves[k]):
                return k
            ternary_codes(values, 256 * k, inverses[k], codes)
            pack(codes, data, at)
        return -1

    @helper
    def reference(values: Any, weights: Any, data: Any) -> Any:
        halves, inverses = local(16, np.int32), local(16, np.float32)
        ggml_scales(values, halves, inverses)
        return encode(values, halves, inverses, data)

    @helper
    def search(values: Any, weights: Any, data: Any) -> Any:
        halves, inverses = local(16, np.int32), local(16, np.float32)
        best_scales(values, weights, halves, inverses)
        return encode(values, halves, inverses, data)

    return search, reference
