"""What functions of lanes mean: a vector is a NumPy array. See `kernels.lanes`."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Lanes that kernels work with: an AVX-512 register of float32.
LANES = 16


def load(values: Any, at: Any) -> Any:
    """Return the 16 elements of an array from `at` on."""
    return values[at : at + LANES].copy()


def load_half(values: Any, at: Any) -> Any:
    """Return the 8 elements of an array from `at` on."""
    return values[at : at + LANES // 2].copy()


def local(n: Any, dtype: Any) -> Any:
    """Return `n` elements on the stack, whatever they hold; `n` is a constant, and its function keeps the array."""
    return np.empty(n, dtype)


def only_read(values: Any) -> Any:
    """Return an array as one that nobody writes to, as inputs are: what takes both is then compiled once."""
    view = values.view()
    view.flags.writeable = False
    return view


def transpose(values: Any, at: Any, stride: Any, target: Any, to_at: Any) -> None:
    """Write the 16 elements of 16 runs that begin `stride` apart so that lane k of each vector is of run k."""
    runs = [values[at + k * stride : at + k * stride + LANES] for k in range(LANES)]
    target[to_at : to_at + LANES * LANES] = np.stack(runs, axis=1).reshape(-1)


def read(data: Any, at: Any, dtype: Any) -> Any:
    """Return 16 little-endian elements of a type from a byte of an array of bytes on."""
    return data[at : at + LANES * np.dtype(dtype).itemsize].view(dtype).copy()


def store(values: Any, at: Any, vector: Any) -> None:
    """Write a vector, or a scalar, to an array from `at` on; to an array of bytes, in little-endian order."""
    flat = np.atleast_1d(vector).view(values.dtype)
    values[at : at + flat.size] = flat


def reinterpreted(vector: Any, dtype: Any) -> Any:
    """Return the same bits as elements of another type."""
    return vector.view(dtype)


def to(vector: Any, dtype: Any) -> Any:
    """Return the elements converted to another type; integers keep their low bits."""
    return vector.astype(dtype)


def join(low: Any, high: Any) -> Any:
    """Return one vector of the lanes of two."""
    return np.concatenate([low, high])


def lane(vector: Any, k: Any) -> Any:
    """Return one element."""
    return vector[k]


def ramp() -> Any:
    """Return 0 to 7 as a vector of uint64."""
    return np.arange(8, dtype=np.uint64)


def splat(scalar: Any) -> Any:
    """Return a scalar 16 times."""
    return np.full(LANES, scalar, np.asarray(scalar).dtype)


def plus_product(addend: Any, a: Any, b: Any) -> Any:
    """Return `addend + a * b`, where every product is exact: a fused multiply-add, which this allows, rounds alike."""
    return addend + a * b


def magnitude(vector: Any) -> Any:
    """Return the absolute values of float32."""
    return np.abs(vector)


def square_root(vector: Any) -> Any:
    """Return the square roots, correctly rounded."""
    return np.sqrt(vector)


def nearest(vector: Any) -> Any:
    """Return the nearest integers of float32 below 2**22 in magnitude, ties to even; a zero's sign is either."""
    return np.rint(vector)


def where(mask: Any, chosen: Any, other: Any) -> Any:
    """Return, lane by lane, the one or the other vector."""
    return np.where(mask, chosen, other)


def packed(mask: Any) -> Any:
    """Return 16 lanes of a mask as the bits of an integer, the first lane lowest."""
    return int(np.packbits(mask, bitorder="little").view("<u2")[0])


def unpacked(bits: Any) -> Any:
    """Return the low 16 bits of an integer as a mask, the lowest first."""
    return (int(bits) >> np.arange(LANES)) & 1 == 1


def maximum(a: Any, b: Any) -> Any:
    """Return the larger of two vectors' elements; no NaN."""
    return np.where(a > b, a, b)


def minimum(a: Any, b: Any) -> Any:
    """Return the smaller of two vectors' elements; no NaN."""
    return np.where(a < b, a, b)


def total(vector: Any) -> Any:
    """Return the sum of the lanes: halves are added until one lane is left."""
    while vector.size > 1:
        vector = vector[: vector.size // 2] + vector[vector.size // 2 :]
    return vector[0]


def largest(vector: Any) -> Any:
    """Return the largest element; no NaN."""
    return vector.max()


def shared_total(vector: Any, n: Any) -> Any:
    """Return, in each lane, the sum over its `n` neighbours: pairs, then pairs of pairs; `n` is a constant."""
    found, step = vector, 1
    while step < n:
        found, step = found + found[np.arange(found.size) ^ step], 2 * step
    return found


def shared_largest(vector: Any, n: Any) -> Any:
    """Return, in each lane, the largest of its `n` neighbours; no NaN; `n` is a constant."""
    return np.repeat(vector.reshape(-1, n).max(axis=1), n)


def butterfly(vector: Any, n: Any) -> Any:
    """Return `a + b` in the place of `a` and `a - b` in that of `b`, for lanes `n` apart; `n` is a constant."""
    lanes = np.arange(vector.size)
    other = vector[lanes ^ n]
    return np.where(lanes & n, other - vector, vector + other)
