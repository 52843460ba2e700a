"""The rows of a layer table, one at a time, from whatever holds the table: what sinks are fed with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
import pyarrow as pa

from aq2_pipeline import arrow
from aq2_pipeline.decoding import Decoding
from aq2_pipeline.errors import FormatError, InputTypeError, InputValueError
from aq2_pipeline.layers import is_chunk
from aq2_pipeline.shapes import n_weights
from aq2_pipeline.stored import Quantized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array

__all__ = ["Row", "readable", "rows_of"]


class Row(NamedTuple):
    """A layer, or a chunk of one.

    Attributes
    ----------
    name : str
    dtype : str or None
        Of the source.
    shape : tuple of int
        Its own.
    tensor_shape : tuple of int
        The layer's.
    start : int
        The elements of the layer before it.
    chunk : int or None
        None where it is the whole layer.
    quantized : Quantized or None
    weights : float32 array or None
    raw : uint8 array or None
        The little-endian bytes of elements of `dtype`.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    tensor_shape: tuple[int, ...]
    start: int = 0
    chunk: int | None = None
    quantized: Quantized | None = None
    weights: Array | None = None
    raw: Array | None = None


def rows_of(given: Any, function: str) -> Iterator[Row]:
    """Yield the rows of a layer table, a batch of it in memory at a time.

    Parameters
    ----------
    given : LazyFrame, DataFrame, pyarrow Table, RecordBatch or reader, or anything with ``__arrow_c_stream__``
        With ``layer_name``, ``shape``, ``dtype`` and ``quantized``, ``weights``
        (floats, or Binary in the bytes of `dtype`) or both; where rows are
        chunks, with ``chunk``, ``start`` and ``tensor_shape``; and, if some rows
        are neither, ``raw``. The arrays of a row are valid until the next.
    function : str
        What errors name.

    Raises
    ------
    InputTypeError, InputValueError, SchemeError
        Naming the layer.
    """
    for batch in _batches(readable(given, function)[0]):
        yield from _Batch(batch, function).rows()


def readable(given: Any, function: str) -> tuple[Any, list[str]]:
    """Return a layer table as `rows_of` reads it once, and the names of its columns.

    Raises
    ------
    InputTypeError
        If it is no table.
    """
    if isinstance(given, pl.LazyFrame):
        return given, given.collect_schema().names()
    if isinstance(given, pa.RecordBatch):
        return given, given.schema.names
    if not isinstance(given, pa.RecordBatchReader):
        if not hasattr(given, "__arrow_c_stream__"):
            msg = f"{function}: the table is a {type(given).__name__}"
            raise InputTypeError(msg, "give a LazyFrame, a table, or a reader of record batches")
        try:
            given = pa.RecordBatchReader.from_stream(given)
        except (pa.ArrowException, TypeError) as error:  # of a column, e.g.
            msg = f"{function}: the {type(given).__name__} is no table: {error}"
            raise InputTypeError(msg, "give a LazyFrame, a table, or a reader of record batches") from None
    return given, given.schema.names


def _batches(given: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(given, pl.LazyFrame):
        for frame in given.collect_batches(maintain_order=True, lazy=True, engine="streaming"):
            yield from frame.to_arrow().to_batches()
    elif isinstance(given, pa.RecordBatch):
        yield given
    else:
        yield from given


class _Batch:
    """A batch, its columns checked."""

    def __init__(self, batch: pa.RecordBatch, function: str) -> None:
        names = batch.schema.names
        for name in ("layer_name", "shape"):
            if names.count(name) != 1:
                msg = f"{function}: there are {names.count(name)} columns {name!r} among {', '.join(map(repr, names))}"
                raise InputTypeError(msg, "a layer table has layer_name, shape, dtype, and weights or quantized")
        if "weights" not in names and "quantized" not in names:
            msg = f"{function}: the table has neither the column 'weights' nor 'quantized'"
            raise InputTypeError(msg, f"it has {', '.join(map(repr, names))}")
        self.function = function
        self.names = arrow.decoded(batch["layer_name"]).to_pylist()
        none = [None] * len(batch)
        self.dtypes = batch["dtype"].to_pylist() if "dtype" in names else none
        self.shapes = arrow.read_lists(batch["shape"], "the column 'shape'")
        self.chunks = batch["chunk"].to_pylist() if "chunk" in names else none
        self.starts = batch["start"].to_pylist() if "start" in names else none
        wholes = (
            arrow.read_lists(batch["tensor_shape"], "the column 'tensor_shape'") if "tensor_shape" in names else none
        )
        self.wholes = wholes
        self.weights, self.raw = self._floats(batch), self._bytes(batch)
        self.quantized = self._decoding(batch["quantized"]) if "quantized" in names else None
        self._schemes = {} if self.quantized is None else self._schemes_by_row(self.quantized)

    def rows(self) -> Iterator[Row]:
        """Yield the rows."""
        for k, name in enumerate(self.names):
            if not isinstance(name, str):
                msg = f"{self.function}: a layer is called {name!r}"
                raise InputTypeError(msg, "layer_name is a text, and not null")
            shape, whole, start = self.shapes[k], self.wholes[k], self.starts[k]
            cut = is_chunk(shape, self.chunks[k], start, whole)
            row = Row(
                name,
                self.dtypes[k],
                self._shape(shape, name),
                self._shape(whole if cut else shape, name),
                (start or 0) if cut else 0,
                (self.chunks[k] or 0) if cut else None,
                self._quantized(k),
                self._slice(self.weights, k),
                self._slice(self.raw, k),
            )
            self._check_lengths(row)
            yield row

    def _shape(self, shape: Any, name: str) -> tuple[int, ...]:
        if shape is None or n_weights(shape) < 0:
            error = FormatError(f"the shape is {shape}", "a shape is a list of axes; a chunk has its layer's, too")
            raise error.at(function=self.function, layer=name)
        return tuple(shape)

    def _check_lengths(self, row: Row) -> None:
        size = n_weights(row.shape)
        for what, found in (
            ("weights", row.weights.size if row.weights is not None else size),
            ("codes", row.quantized.length if row.quantized is not None else size),
        ):
            if found != size:
                error = FormatError(f"the shape {list(row.shape)} has {size} elements, the row {found} {what}")
                raise error.at(function=self.function, layer=row.name)

    def _floats(self, batch: pa.RecordBatch) -> Any:
        if "weights" not in batch.schema.names or arrow.is_binary(batch["weights"].type):
            return None
        return self._column(batch["weights"], partial(arrow.read_floats, name="weights"))

    def _bytes(self, batch: pa.RecordBatch) -> Any:
        for name in ("raw", "weights"):
            if name in batch.schema.names and arrow.is_binary(batch[name].type):
                return self._column(batch[name], arrow.read_bytes)
        return None

    def _column(self, column: pa.Array, read: Any) -> Any:
        valid = arrow.validity(column)
        found = read(column, valid)
        for row, error in found.failures.items():
            raise error.at(function=self.function, layer=self.names[row], row=None)
        if len(found.nulls):
            msg = "a row has a null among its weights"
            raise InputValueError(msg, "fill or drop it").at(function=self.function)
        return found, valid

    def _slice(self, column: Any, row: int) -> Array | None:
        if column is None or not column[1][row]:
            return None
        found, _ = column
        values: Array = found.values[int(found.starts[row]) : int(found.stops[row])]
        return values

    def _decoding(self, column: pa.Array) -> Decoding:
        decoding = Decoding(column)
        for row, error in sorted(decoding.failures.items()):
            raise error.at(function=self.function, layer=self.names[row], row=None)
        return decoding

    def _schemes_by_row(self, decoding: Decoding) -> dict[int, Scheme]:
        return {int(row): scheme for scheme, rows in decoding.schemes for row in rows}

    def _quantized(self, row: int) -> Quantized | None:
        if row not in self._schemes or self.quantized is None:
            return None
        held = self.quantized
        data, scales, zero_points = (
            column.values[int(column.starts[row]) : int(column.stops[row])]
            for column in (held.data, held.scales, held.zero_points)
        )
        lengths = int(held.lengths[row]), int(held.row_lengths[row])
        return Quantized(self._schemes[row], *lengths, data, scales, zero_points)
