"""The codes of one row, checked: decoded, or compared with the weights that they stand for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aq2_pipeline import build, threads
from aq2_pipeline.decoding import read_by_kernels
from aq2_pipeline.differences import Difference, of_sums
from aq2_pipeline.errors import InputValueError
from aq2_pipeline.pieces import cut, frozen, slices, span
from aq2_pipeline.weights import frozen_view

if TYPE_CHECKING:
    from aq2_pipeline.pieces import Pieces
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array

__all__ = ["Quantized", "decoded", "difference_from"]

#: Weights that are decoded and compared at a time: 1 MB of float32. Fewer would stay in a core's own cache, and take a
#: third longer: weights that come from memory are not fetched ahead beyond a slice, and each slice is some Python.
_SLICE = 1 << 18


class Quantized(NamedTuple):
    """A row's codes, checked against its scheme.

    Attributes
    ----------
    scheme : Scheme
    length, row_length : int
    data : uint8 array
    scales, zero_points : float32 arrays
    """

    scheme: Scheme
    length: int
    row_length: int
    data: Array
    scales: Array
    zero_points: Array


def decoded(held: Quantized, n_threads: int | None = None) -> Array:
    """Return a row's weights as float32.

    Raises
    ------
    InputValueError
        If a stored value is not finite.
    """
    from aq2_pipeline.kernels.rows import decode_rows  # noqa: PLC0415 - kernels load at their first use

    pieces, given = _cut(held, None)
    values = build.empty(held.length, np.float32)
    status = np.full(pieces.rows.size, -1, np.int64)
    decode, params = held.scheme.codec.decode, frozen(held.scheme.params)
    arguments = (*given, values, *span(pieces.offsets, pieces.lengths), status)
    threads.run(
        [[partial(decode_rows, decode, params, a, b, *arguments)] for a, b in slices(pieces.lengths)], n_threads
    )
    _check(pieces, status)
    return values


def difference_from(weights: Array, held: Quantized, n_threads: int | None = None) -> Difference:
    """Compare weights with their codes; what these decode to is never in memory as a whole.

    Parameters
    ----------
    weights : float32 array
        As many as the codes are of.
    held : Quantized
    n_threads : int, optional
        The sums do not depend on it.

    Raises
    ------
    InputValueError
        If a stored value is not finite.
    """
    from aq2_pipeline.kernels import moments  # noqa: PLC0415 - kernels load at their first use
    from aq2_pipeline.kernels.rows import difference_rows  # noqa: PLC0415

    pieces, given = _cut(held, _SLICE)
    n = pieces.rows.size
    sums, status = np.zeros((n, moments.N_ERROR_SUMS)), np.full(n, -1, np.int64)
    about = (*given, frozen_view(np.ascontiguousarray(weights)), *span(pieces.offsets, pieces.lengths))
    decode, params, most = held.scheme.codec.decode, frozen(held.scheme.params), int(pieces.lengths.max(initial=0))

    def compare(first: int, last: int) -> None:
        scratch, lanes = np.empty(most, np.float32), np.zeros(moments.N_ERROR_SUMS * moments.N_LANES)
        difference_rows(decode, params, first, last, *about, scratch, lanes, sums.reshape(-1), status)

    threads.run([[partial(compare, a, b)] for a, b in slices(pieces.lengths)], n_threads)
    _check(pieces, status)
    return sum(map(of_sums, pieces.lengths.tolist(), sums), Difference())


def _cut(held: Quantized, size: int | None) -> tuple[Pieces, tuple[Array, ...]]:
    """Return a row in pieces of about so many weights, and what kernels read of them."""
    one, lengths, row_lengths = (np.array([n], np.int64) for n in (0, held.length, held.row_length))
    pieces = cut(held.scheme, one, lengths, row_lengths, size=size)
    arrays = (held.data, held.scales, held.zero_points)
    columns = [(array, np.zeros(1, np.int64), np.array([array.size], np.int64)) for array in arrays]
    return pieces, read_by_kernels(held.scheme, pieces, columns)


def _check(pieces: Pieces, status: Array) -> None:
    for k in np.flatnonzero(status >= 0).tolist():
        raise InputValueError("the stored value is not finite").at(position=int(pieces.offsets[k] + status[k]))
