"""The importance of weights, by which a search minimises their error: a column of lists, checked and cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.types as pt

from aq2_pipeline import arrow, schemes
from aq2_pipeline.errors import InputTypeError, InputValueError, SchemeError
from aq2_pipeline.pieces import span

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from aq2_pipeline.errors import Aq2Error
    from aq2_pipeline.pieces import Pieces
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array, Weights

__all__ = ["Importance", "refuse"]


class Importance:
    """A column with one weight an input channel (a place in a matrix row), or one a weight.

    Parameters
    ----------
    column : pyarrow.Array
        Lists of floats, or of decimals, as SQL has literals; null where a row has none.
    valid : bool array
        The rows that have weights.

    Attributes
    ----------
    given : bool array
        The rows that have an importance.

    Raises
    ------
    InputTypeError
        If it holds no lists of floats.
    """

    def __init__(self, column: pa.Array, valid: Array) -> None:
        if not pt.is_null(column.type) and not _are_lists_of_floats(column.type):
            msg = f"importance is {column.type}"
            raise InputTypeError(msg, "expected a list of floats: one weight an input channel, or one a weight")
        self.given = arrow.validity(column) & valid
        self._read: Weights | None = None
        if self.given.any():
            self._read = arrow.read_floats(column, self.given, name="importance")
            self._read.fail_null_elements()

    def check(self, row: int, length: int, row_length: int) -> Aq2Error | None:
        """Return what is wrong with a row's importance, given its weights and those of its matrix rows."""
        read = self._of_rows
        if row in read.failures:
            return InputValueError(f"importance: {read.failures[row].reason}", read.failures[row].hint)
        values = read.values[read.starts[row] : read.stops[row]]
        if values.size not in (length, row_length):
            msg = f"importance has {values.size} values; the row has {length} weights in matrix rows of {row_length}"
            return InputValueError(msg, "one value an input channel, or one a weight")
        bad = np.flatnonzero(~((values >= 0) & (values < np.inf)))
        if bad.size:
            msg = f"the importance {float(values[bad[0]])!r} at position {bad[0]} is negative or not finite"
            return InputValueError(msg)
        if values.size and not values.any():
            return InputValueError("importance is 0 everywhere", "leave it out, or make it NULL for this row")
        return None

    def total(self, row: int, length: int) -> float:
        """Return the sum of the importance over a row's weights."""
        read = self._of_rows
        values = read.values[read.starts[row] : read.stops[row]]
        return float(values.sum(dtype=np.float64)) * (length / max(values.size, 1))

    def read_by_kernels(self, pieces: Pieces, lengths: Array, row_lengths: Array) -> tuple[Array, Array, Array]:
        """Return (values, starts, stops) of the importance of pieces.

        A piece gets a matrix row of it, or its own part: where it lies within a
        matrix row, and where there is one a weight.
        """
        read = self._of_rows
        starts, sizes = pieces.of(read.starts), pieces.of(read.lengths)
        if pieces.whole:
            return read.values, *span(starts, sizes)
        whole = pieces.of(row_lengths)
        each, inside = sizes == pieces.of(lengths), pieces.row_lengths < whole
        first = np.where(each, pieces.offsets, np.where(inside, pieces.offsets % np.maximum(whole, 1), 0))
        return read.values, *span(starts + first, np.where(each | inside, pieces.lengths, sizes))

    @property
    def _of_rows(self) -> Weights:
        assert self._read is not None  # noqa: S101 - asked only of rows that are given
        return self._read


def _are_lists_of_floats(kind: pa.DataType) -> bool:
    """Whether a column holds lists of floats, or of what SQL takes a list of numbers with a point for."""
    return arrow.is_list(kind) and (pt.is_floating(kind.value_type) or pt.is_decimal(kind.value_type))


def refuse(scheme: Scheme, rows: Any, fail: Callable[[int, Aq2Error], None]) -> None:
    """Fail the rows whose scheme searches for nothing."""
    msg = f"the scheme {scheme.name!r} cannot use importance"
    if scheme.rotation:
        msg += ": a rotation mixes the weights of its blocks"
    others = ", ".join(map(repr, schemes.heeding_importance(scheme)))
    hint = "leave importance out, or make it NULL for this row" + (f"; {others} can use it" if others else "")
    for row in rows.tolist():
        fail(row, SchemeError(msg, hint))
