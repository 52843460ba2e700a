"""Tables of layers, batch by batch: the flat table that `ArrowQuantV2` users know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline import arrow, layout, schemes
from aq2_pipeline.errors import Aq2Error, InputTypeError, SchemeError
from aq2_pipeline.functions import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aq2_pipeline.schemes import Scheme

__all__ = ["Columns", "dequantize_batch", "flat_schema", "input_columns", "quantize_rows", "scheme_argument"]

#: What the flat table has between `layer_name` and the columns that pass through.
_FLAT = (
    pa.field("quantized_data", pa.large_binary()),
    pa.field("scales", layout.FLOATS),
    pa.field("zero_points", layout.FLOATS),
    pa.field("shape", layout.INTS),
    pa.field("bit_width", pa.uint8()),
    pa.field("scheme", layout.TEXT),
    pa.field("row_length", pa.int64()),
)
_TAKEN = ("layer_name", "weights", "shape")
_ERROR = pa.field("error", pa.string())


class Columns(NamedTuple):
    """Which columns a table of layers has, beside `layer_name` and `weights`."""

    shape: bool
    tensor_shape: bool
    others: tuple[str, ...]


def input_columns(schema: pa.Schema, caller: str) -> Columns:
    """Find the columns of a table of layers.

    Raises
    ------
    InputTypeError
        If one is missing, twice there, of a wrong type, or would be overwritten.
    """
    place = {"function": f"ArrowQuantV2.{caller}"}
    names = schema.names
    for name in ("layer_name", "weights"):
        if name not in names:
            msg = f"the table has no column {name!r}; it has {', '.join(map(repr, names))}"
            raise InputTypeError(msg, "names are exact").at(**place)
    for name in sorted({name for name in names if names.count(name) > 1}):
        msg = f"the table has {names.count(name)} columns {name!r}"
        raise InputTypeError(msg, "rename all but one").at(**place)
    kind = schema.field("layer_name").type
    if not (pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind) or pt.is_dictionary(kind)):
        msg = f"the column 'layer_name' is {kind}"
        raise InputTypeError(msg, "expected string").at(**place)
    others = tuple(name for name in names if name not in _TAKEN)
    for name in others:
        if name == _ERROR.name or any(name == field.name for field in _FLAT):
            msg = f"the column {name!r} would be overwritten"
            raise InputTypeError(msg, "rename it, or drop it").at(**place)
    return Columns("shape" in names, "tensor_shape" in names, others)


def scheme_argument(scheme: Any) -> Scheme | pa.Array:
    """Return one scheme, or a column of them as a pyarrow array: from a list, an ndarray or anything of Arrow's.

    Raises
    ------
    SchemeError
        For one that cannot be; those of a column are checked row by row.
    """
    if hasattr(scheme, "__arrow_c_stream__"):
        return pa.chunked_array(scheme).combine_chunks()
    if hasattr(scheme, "__arrow_c_array__") or isinstance(scheme, list | np.ndarray):
        return pa.array(scheme)
    return schemes.parse(scheme)


def flat_schema(schema: pa.Schema, *, with_error: bool) -> pa.Schema:
    """Return the schema of the flat table that comes of a table of layers; metadata is kept."""
    others = [field for field in schema if field.name not in _TAKEN]
    fields = [schema.field("layer_name"), *_FLAT, *others, *([_ERROR] if with_error else [])]
    return pa.schema(fields, metadata=schema.metadata)


def quantize_rows(
    batch: pa.RecordBatch,
    columns: Columns,
    choose: Callable[..., str] | Any,
    first_row: int,
    n_threads: int | None,
    *,
    keep: bool,
    caller: str,
) -> tuple[pa.RecordBatch, int]:
    """Quantize one batch of layers.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
    columns : Columns
    choose : callable, Scheme or pyarrow.Array
        ``choose(name, shape)`` of a policy, or the schemes themselves.
    first_row : int
        The rows before this batch.
    n_threads : int or None
    keep : bool
        Keep failed rows as nulls, with an `error` column.
    caller : str
        The method that errors name.

    Returns
    -------
    (pyarrow.RecordBatch, int)
        The flat batch, and the number of failed rows.
    """
    function = FUNCTIONS["quantize"]
    names = arrow.decoded(batch["layer_name"]).to_pylist()
    failures: dict[int, Aq2Error] = {}
    try:
        shapes = _shapes(batch, columns)
        scheme = _schemes(batch, columns, names, shapes, choose, failures)
        shape_column = pa.array(shapes, layout.INTS)
        quantized = function(batch["weights"], scheme, shape_column, n_threads=n_threads, failures=failures)
    except Aq2Error as error:
        raise error.at(function=f"ArrowQuantV2.{caller}") from None
    for row, failure in failures.items():
        failure.at(function=f"ArrowQuantV2.{caller}", layer=names[row], row=row + first_row)
    if failures and not keep:
        raise failures[min(failures)]
    widths = {name: schemes.parse(name).bit_width for name in quantized.field("scheme").unique().to_pylist() if name}
    bits = [widths.get(name) for name in quantized.field("scheme").to_pylist()]
    fields = {
        "layer_name": batch["layer_name"],
        **{name: quantized.field(name) for name in ("quantized_data", "scales", "zero_points")},
        "shape": shape_column,
        "bit_width": pa.array(bits, pa.uint8()),
        "scheme": quantized.field("scheme"),
        "row_length": quantized.field("row_length"),
        **{name: batch[name] for name in columns.others},
    }
    if keep:
        fields["error"] = pa.array([str(failures[row]) if row in failures else None for row in range(len(batch))])
    schema = flat_schema(batch.schema, with_error=keep)
    return pa.RecordBatch.from_arrays(list(fields.values()), schema=schema), len(failures)


def _shapes(batch: pa.RecordBatch, columns: Columns) -> list[list[int] | None]:
    """Return each row's shape: its column, else the nesting of its type, else None."""
    nested = arrow.nested_shape(batch["weights"].type)
    known = [None if nested is None else list(nested)] * len(batch)
    if not columns.shape:
        return known
    column = batch["shape"]
    if arrow.is_list(column.type) and arrow.is_list(column.type.value_type):  # one level too deep, as the guide has it
        told = [row[0] if row and len(row) == 1 else row for row in column.to_pylist()]
        column = pa.array(told, layout.INTS)
    given = arrow.read_lists(column, "the column 'shape'")
    return [ours if theirs is None else theirs for ours, theirs in zip(known, given, strict=True)]


def _schemes(
    batch: pa.RecordBatch,
    columns: Columns,
    names: list[str | None],
    shapes: list[list[int] | None],
    choose: Any,
    failures: dict[int, Aq2Error],
) -> Any:
    """Return the scheme, or a column of them; a policy reads the whole tensor's shape where a row is a chunk."""
    whole = arrow.read_lists(batch["tensor_shape"], "the column 'tensor_shape'") if columns.tensor_shape else None
    if whole is None and not callable(choose):
        return choose
    whole = whole or [None] * len(batch)
    given = choose.to_pylist() if isinstance(choose, pa.Array) else [choose] * len(batch)
    wanted: list[str | None] = [None] * len(batch)
    for row in np.flatnonzero(arrow.validity(batch["weights"])).tolist():
        try:
            told = shapes[row] if whole[row] is None else whole[row]
            scheme = schemes.parse(choose(names[row], told) if callable(choose) else given[row])
            if whole[row] is not None and scheme.group == schemes.PER_TENSOR:
                msg = f"{scheme!s} has one scale a tensor, and the row is a chunk of one"
                raise SchemeError(msg, "use _channel or _g")
        except Aq2Error as error:
            failures[row] = error.at(row=row)
        else:
            wanted[row] = schemes.spelled(scheme)
    return pa.array(wanted, layout.TEXT)


def dequantize_batch(batch: pa.RecordBatch, first_row: int, n_threads: int | None) -> pa.RecordBatch:
    """Decode one batch of a flat table, or of a layer table with a column `quantized`."""
    names = batch.schema.names
    quantized = batch["quantized"] if "quantized" in names else _assembled(batch)
    try:
        weights = FUNCTIONS["dequantize"](quantized, n_threads=n_threads)
    except Aq2Error as error:
        layer = batch["layer_name"][error.row].as_py() if error.row is not None and "layer_name" in names else None
        row = None if error.row is None else error.row + first_row
        raise error.at(function="ArrowQuantV2.dequantize_arrow", layer=layer, row=row) from None
    used = {"layer_name", "shape", "quantized", "error", *(field.name for field in _FLAT)}
    fields = {name: batch[name] for name in ("layer_name",) if name in names}
    fields["weights"] = weights
    fields |= {name: batch[name] for name in names if name == "shape" or name not in used}
    return pa.RecordBatch.from_pydict(fields, metadata=batch.schema.metadata)


def _assembled(batch: pa.RecordBatch) -> pa.Array:
    """Put the flat table's columns back into a struct; a row without a shape is one matrix row."""
    needed = ("scheme", "row_length", "quantized_data", "scales", "zero_points")
    missing = [name for name in needed if name not in batch.schema.names]
    if missing:
        msg = f"the table has no column {', '.join(map(repr, missing))}"
        raise InputTypeError(msg, "expected what quantize_arrow returns, or a column 'quantized'").at(
            function="ArrowQuantV2.dequantize_arrow"
        )
    shapes = arrow.read_lists(batch["shape"], "the column 'shape'") if "shape" in batch.schema.names else []
    lengths = batch["row_length"].to_pylist()
    for row, shape in enumerate(shapes):
        if shape is not None and lengths[row] is not None:
            lengths[row] = arrow.n_weights(shape)
    fields = {name: batch[name] for name in needed} | {"length": pa.array(lengths, pa.int64())}
    mask = batch["scheme"].is_null()
    return pa.StructArray.from_arrays(list(fields.values()), list(fields), mask=mask)
