"""A quantized column on its way back to weights. Nothing in it is believed before it is checked."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline import arrow, build, threads
from aq2_pipeline.errors import InputTypeError, InputValueError
from aq2_pipeline.pieces import cut, frozen, sizes_of, slices, span, wanted_schemes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from aq2_pipeline.errors import Aq2Error
    from aq2_pipeline.pieces import Failures, Pieces
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array, Weights

_REQUIRED = ("scheme", "length", "quantized_data", "scales", "zero_points")


class Decoding:
    """One call's rows.

    Parameters
    ----------
    quantized : pyarrow.Array
        As `ops.dequantize` takes it.
    skip : collection of int
        Rows to leave null.

    Attributes
    ----------
    lengths, row_lengths : int64 arrays
    valid : bool array
    failures : dict
        Row -> what is wrong with it.
    data, scales, zero_points : Weights
        The values of the column, and where each row's begin and end.
    schemes : list of (Scheme, int64 array)
        With the rows that each is of.
    """

    def __init__(self, quantized: pa.Array, skip: Collection[int] = ()) -> None:
        fields = _fields(quantized)
        n = len(quantized)
        self.failures: Failures = {}
        self.valid = arrow.validity(quantized)
        self.valid[list(skip)] = False
        self.lengths = np.zeros(n, np.int64)
        self.row_lengths = np.zeros(n, np.int64)
        self.data = arrow.read_bytes(fields["quantized_data"], self.valid)
        self.scales = arrow.read_floats(fields["scales"], self.valid, name="scales")
        self.zero_points = arrow.read_floats(fields["zero_points"], self.valid, name="zero_points")
        for column in (self.data, self.scales, self.zero_points):
            for row, error in column.failures.items():
                self._fail(row, error)
        self.schemes = self._read_schemes(fields["scheme"])
        self._read_lengths(fields["length"], fields.get("row_length"))
        for scheme, rows in self.schemes:
            self._check_sizes(scheme, rows)
            self._check_numbers("scale", self.scales, rows, -np.inf, np.inf)
            self._check_numbers("zero point", self.zero_points, rows, 0.0, float(2**scheme.bit_width - 1))

    def _fail(self, row: int, error: Aq2Error) -> None:
        self.failures.setdefault(row, error.at(row=row))
        self.valid[row] = False
        self.lengths[row] = self.row_lengths[row] = 0

    def _read_schemes(self, names: pa.Array) -> list[tuple[Scheme, Array]]:
        """Return the stored schemes with their rows; what only a request may say is refused."""
        if not (pt.is_string(names.type) or pt.is_large_string(names.type) or pt.is_string_view(names.type)):
            msg = f"the field scheme is {names.type}"
            raise InputTypeError(msg, "expected string")
        found = wanted_schemes(names, self.valid.copy(), self.failures, stored=True)
        for row in self.failures:
            self.valid[row] = False
        return found

    def _read_lengths(self, length: pa.Array, row_length: pa.Array | None) -> None:
        self.lengths[:] = _int64(length, np.full(self.valid.size, -1))
        self.row_lengths[:] = self.lengths if row_length is None else _int64(row_length, self.lengths)
        sizes = self.data.lengths
        bad = (self.lengths < 0) | (self.row_lengths < 0) | ((self.row_lengths == 0) & (self.lengths > 0))
        bad |= self.lengths % np.maximum(self.row_lengths, 1) != 0
        bad |= self.lengths > 8 * sizes  # a weight takes a bit at least: no forged length can ask for memory
        for row in np.flatnonzero(bad & self.valid).tolist():
            told = f"length {self.lengths[row]} and row_length {self.row_lengths[row]}"
            self._fail(row, InputValueError(f"{told} contradict {sizes[row]} bytes of data"))
        self.lengths[~self.valid] = self.row_lengths[~self.valid] = 0

    def _check_sizes(self, scheme: Scheme, rows: Array) -> None:
        for row in rows[self.row_lengths[rows] % scheme.block != 0].tolist():
            msg = f"{scheme.name!r} has rows of a multiple of {scheme.block} weights, found {self.row_lengths[row]}"
            self._fail(int(row), InputValueError(msg))
        expected = sizes_of(scheme, self.lengths[rows], self.row_lengths[rows])
        columns = (self.data, self.scales, self.zero_points)
        for name, want, column in zip(("bytes of data", "scales", "zero points"), expected, columns, strict=True):
            found = column.lengths[rows]
            for k in np.flatnonzero((want != found) & self.valid[rows]).tolist():
                msg = f"{scheme.name!r} with {self.lengths[rows[k]]} weights has {want[k]} {name}, found {found[k]}"
                self._fail(int(rows[k]), InputValueError(msg))

    def _check_numbers(self, name: str, lists: Weights, rows: Array, low: float, high: float) -> None:
        good = np.isfinite(lists.values) & (lists.values >= low) & (lists.values <= high)
        good[lists.nulls] = False
        bad = np.flatnonzero(~good)
        if bad.size == 0:
            return
        for row in rows[self.valid[rows]].tolist():
            k = int(np.searchsorted(bad, lists.starts[row]))
            if k < bad.size and bad[k] < lists.stops[row]:
                group = int(bad[k] - lists.starts[row])
                value = None if bad[k] in lists.nulls else float(lists.values[bad[k]])
                error = InputValueError(f"the {name} of group {group} is {'null' if value is None else repr(value)}")
                self._fail(row, error.at(position=group, value=value))

    def decode(self, n_threads: int | None) -> tuple[Array, Array]:
        """Return (offsets, values) of the decoded column; the values of rows in `failures` mean nothing."""
        from aq2_pipeline.kernels.rows import decode_rows  # noqa: PLC0415 - kernels load at their first use

        offsets = build.offsets_of(self.lengths)
        values = build.empty(offsets[-1], np.float32)
        tasks: list[Sequence[Callable[[], None]]] = []
        results = []
        for scheme, rows in self.schemes:
            pieces = cut(scheme, rows, self.lengths, self.row_lengths)
            columns = [
                (c.values, c.starts, np.where(self.valid, c.stops, c.starts))
                for c in (self.data, self.scales, self.zero_points)
            ]
            target = span(pieces.of(offsets[:-1]) + pieces.offsets, pieces.lengths)
            status = np.full(pieces.rows.size, -1, np.int64)
            arguments = (*read_by_kernels(scheme, pieces, columns), values, *target, status)
            decode, params = scheme.codec.decode, frozen(scheme.params)
            tasks += ([partial(decode_rows, decode, params, a, b, *arguments)] for a, b in slices(pieces.lengths))
            results.append((pieces, status))
        threads.run(tasks, n_threads)
        for pieces, status in results:
            for k in np.flatnonzero(status >= 0)[::-1]:  # the first bad piece of a row has the last word
                row, position = int(pieces.rows[k]), int(pieces.offsets[k] + status[k])
                error = InputValueError("the stored value is not finite")
                self.failures[row] = error.at(row=row, position=position)
        return offsets, values


def read_by_kernels(scheme: Scheme, pieces: Pieces, columns: Sequence[tuple[Array, Array, Array]]) -> tuple[Array, ...]:
    """Return what `decode_rows` reads: data, scales and zero points with the spans of the pieces, and row lengths.

    Parameters
    ----------
    scheme : Scheme
    pieces : Pieces
    columns : sequence of (values, starts, stops)
        Data, scales and zero points, and where each row's are.
    """
    spans = pieces.spans(scheme, [ends for _, *ends in columns])  # type: ignore[misc]
    read = [(values, *ends) for (values, *_), ends in zip(columns, spans, strict=True)]
    return (*itertools.chain.from_iterable(read), frozen(pieces.row_lengths))


def _fields(quantized: pa.Array) -> dict[str, pa.Array]:
    """Return the fields by name; an error where one is missing."""
    if pt.is_null(quantized.type):
        none = pa.nulls(len(quantized))
        return dict.fromkeys(_REQUIRED[1:], none) | {"scheme": none.cast(pa.string())}
    if not pt.is_struct(quantized.type):
        msg = f"the column is {quantized.type}"
        raise InputTypeError(msg, "expected the struct that aq2_quantize returns")
    names = [field.name for field in quantized.type]
    missing = [name for name in _REQUIRED if names.count(name) != 1]
    if missing:
        msg = f"the struct has not one field {', '.join(map(repr, missing))}; it has {', '.join(map(repr, names))}"
        raise InputTypeError(msg, "expected the struct that aq2_quantize returns")
    return {name: arrow.decoded(quantized.field(name)) for name in (*_REQUIRED, "row_length") if name in names}


def _int64(column: pa.Array, instead: Array) -> Array:
    """Return a column of integers as int64, with something instead of its nulls."""
    if pt.is_null(column.type):
        return instead
    if not pt.is_integer(column.type):
        msg = f"length and row_length are {column.type}"
        raise InputTypeError(msg, "expected int64")
    valid = arrow.validity(column)
    if not pt.is_int64(column.type):
        column = column.fill_null(0).cast(pa.int64(), safe=False)  # a forged uint64 becomes negative, and is refused
    return np.where(valid, arrow.integers(column), instead)
