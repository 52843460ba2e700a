"""Tables of layers, batch by batch: the flat table that `ArrowQuantV2` users know."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline import arrow, build, layout, schemes
from aq2_pipeline.arguments import as_array, is_column
from aq2_pipeline.errors import Aq2Error, InputTypeError, InputValueError, SchemeError
from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.shapes import n_weights, nested_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array

    Shape = Sequence[int | None]

__all__ = [
    "Columns",
    "check_chunk",
    "dequantize_batch",
    "flat_schema",
    "input_columns",
    "is_chunk",
    "quantize_rows",
    "scheme_argument",
]

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
_LARGEST_AXIS = 2**63 - 1


class Columns(NamedTuple):
    """Which columns a table of layers has, beside `layer_name` and `weights`."""

    shape: bool
    chunks: bool
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
    text = kind.value_type if pt.is_dictionary(kind) else kind
    if not (pt.is_string(text) or pt.is_large_string(text) or pt.is_string_view(text)):
        msg = f"the column 'layer_name' is {kind}"
        raise InputTypeError(msg, "expected string").at(**place)
    for name in ("chunk", "start"):
        kind = schema.field(name).type if name in names else pa.null()
        if not (pt.is_integer(kind) or pt.is_null(kind)):
            msg = f"the column {name!r} is {kind}"
            raise InputTypeError(msg, "expected an integer: it says which part of a layer a row is").at(**place)
    others = tuple(name for name in names if name not in _TAKEN)
    for name in others:
        if name == _ERROR.name or any(name == field.name for field in _FLAT):
            msg = f"the column {name!r} would be overwritten"
            raise InputTypeError(msg, "rename it, or drop it").at(**place)
    return Columns("shape" in names, any(field.name in names for field in layout.CHUNK_FIELDS), others)


def scheme_argument(scheme: Any) -> Scheme | pa.Array:
    """Return one scheme, or a column of them as a pyarrow array: from a list, an ndarray or anything of Arrow's.

    Raises
    ------
    SchemeError
        For one that cannot be; those of a column are checked row by row.
    InputTypeError
        For what makes no column.
    """
    function = FUNCTIONS["quantize"]
    argument = function.arguments[1]
    return as_array(function, argument, scheme) if is_column(argument, scheme) else schemes.parse(scheme)


def flat_schema(schema: pa.Schema, *, with_error: bool) -> pa.Schema:
    """Return the schema of the flat table that comes of a table of layers; metadata is kept."""
    others = [field for field in schema if field.name not in _TAKEN]
    fields = [schema.field("layer_name"), *_FLAT, *others, *([_ERROR] if with_error else [])]
    return pa.schema(fields, metadata=schema.metadata)


def quantize_rows(
    batch: pa.RecordBatch,
    columns: Columns,
    schema: pa.Schema,
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
    schema : pyarrow.Schema
        Of the flat table; with the column `error` where failed rows are kept.
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
        if isinstance(choose, pa.Array) and len(choose) < len(batch):
            msg = f"scheme has {first_row + len(choose)} rows, the table has more"
            raise InputTypeError(msg, "give each row a scheme")
        shapes = _shapes(batch, columns, failures)
        scheme = _schemes(batch, columns, names, shapes, choose, failures)
        quantized = function(batch["weights"], scheme, shapes, n_threads=n_threads, failures=failures)
    except Aq2Error as error:
        raise error.at(function=f"ArrowQuantV2.{caller}") from None
    for row, failure in failures.items():
        failure.at(function=f"ArrowQuantV2.{caller}", layer=names[row], row=row + first_row)
    if failures and not keep:
        raise failures[min(failures)]
    stored = quantized.field("scheme")
    fields = {
        "layer_name": batch["layer_name"],
        **{name: quantized.field(name) for name in ("quantized_data", "scales", "zero_points")},
        "shape": pa.nulls(len(batch), layout.INTS) if shapes is None else pa.array(shapes, layout.INTS),
        "bit_width": _bit_widths(stored, scheme),
        "scheme": stored,
        "row_length": quantized.field("row_length"),
        **{name: batch[name] for name in columns.others},
    }
    if keep:
        fields["error"] = pa.array([str(failures[row]) if row in failures else None for row in range(len(batch))])
    return pa.RecordBatch.from_arrays(list(fields.values()), schema=schema), len(failures)


def _bit_widths(stored: pa.Array, scheme: Any) -> pa.Array:
    """Return the bits a code of each stored scheme."""
    if isinstance(scheme, schemes.Scheme):
        return build.equal_bytes(scheme.bit_width, stored)
    if isinstance(scheme, list):
        wanted = zip(scheme, arrow.validity(stored).tolist(), strict=True)
        return pa.array([told.bit_width if ok else None for told, ok in wanted], pa.uint8())
    names = stored.to_pylist()
    widths = {name: schemes.parse(name).bit_width for name in set(names) if name is not None}
    return pa.array([widths.get(name) for name in names], pa.uint8())


def _shapes(batch: pa.RecordBatch, columns: Columns, failures: dict[int, Aq2Error]) -> list[list[int] | None] | None:
    """Return each row's shape: its column, else the nesting of its type; None where neither is known."""
    nested = nested_shape(batch["weights"].type)
    known = [None if nested is None else list(nested)] * len(batch)
    if not columns.shape:
        return None if nested is None else known
    column, active = batch["shape"], arrow.validity(batch["weights"])
    if arrow.is_list(column.type) and arrow.is_list(column.type.value_type):
        given = _unwrapped(column, active, failures)
    else:
        given = arrow.read_lists(column, "the column 'shape'")
    for row, shape in enumerate(given):
        if shape and any(axis is not None and axis > _LARGEST_AXIS for axis in shape):
            given[row] = None
            if active[row]:
                error = InputValueError(f"the shape {shape} has an axis that is no length", "an axis is an int64")
                failures.setdefault(row, error.at(row=row))
    return [ours if theirs is None else theirs for ours, theirs in zip(known, given, strict=True)]


def _unwrapped(column: pa.Array, active: Array, failures: dict[int, Aq2Error]) -> list[list[int] | None]:
    """Return shapes that are nested one level too deep, as the guide has them; a row of several shapes fails."""
    axis = column.type.value_type.value_type
    if not (pt.is_integer(axis) or pt.is_null(axis)):
        msg = f"the column 'shape' is {column.type}"
        raise InputTypeError(msg, "expected a list of integers")
    try:
        column.validate(full=True)  # before Arrow follows its offsets
    except pa.ArrowInvalid as error:
        msg = f"the column 'shape' is damaged: {error}"
        raise InputValueError(msg) from None
    told = column.to_pylist()
    for row, shapes in enumerate(told):
        if shapes and len(shapes) > 1 and active[row]:
            failure = InputValueError(f"the shape {shapes} is {len(shapes)} shapes", "give each row one list of axes")
            failures[row] = failure.at(row=row)
    return [shapes and (shapes[0] if len(shapes) == 1 else None) for shapes in told]


def _schemes(
    batch: pa.RecordBatch,
    columns: Columns,
    names: list[str | None],
    shapes: list[list[int] | None] | None,
    choose: Any,
    failures: dict[int, Aq2Error],
) -> Any:
    """Return the scheme, or those of the rows where they differ; a policy reads a chunk's whole tensor's shape."""
    if not (callable(choose) or columns.chunks or failures):
        return choose
    shapes = shapes or [None] * len(batch)
    chunks, starts, wholes = _chunks(batch) if columns.chunks else ([None] * len(batch),) * 3
    given = choose.to_pylist() if isinstance(choose, pa.Array) else [choose] * len(batch)
    wanted: list[Scheme | None] = [None] * len(batch)
    active = arrow.validity(batch["weights"]).nonzero()[0].tolist()
    for row in active:
        if row in failures or given[row] is None:
            continue
        shape, start, whole = shapes[row], starts[row], wholes[row]
        try:
            told = choose(names[row], shape if whole is None else whole) if callable(choose) else given[row]
            scheme = schemes.parse(told)
            if is_chunk(shape, chunks[row], start, whole):
                check_chunk(scheme, shape, whole, start)
        except Aq2Error as error:
            failures[row] = error.at(row=row)
        else:
            wanted[row] = scheme
    first = wanted[active[0]] if active else None
    return wanted if first is None or any(wanted[row] is not first for row in active) else first


def _chunks(batch: pa.RecordBatch) -> tuple[list[int | None], list[int | None], list[list[int] | None]]:
    """Return the columns chunk, start and tensor_shape; None in every row of one that is not there."""
    none = pa.nulls(len(batch))
    chunk, start, whole = (
        batch[field.name] if field.name in batch.schema.names else none for field in layout.CHUNK_FIELDS
    )
    return chunk.to_pylist(), start.to_pylist(), arrow.read_lists(whole, "the column 'tensor_shape'")


def is_chunk(shape: Shape | None, chunk: int | None, start: int | None, tensor_shape: Shape | None) -> bool:
    """Whether a row of a layer table is a part of its layer, and not the whole."""
    if tensor_shape is not None and shape == tensor_shape and start in (None, 0):
        return False
    return not (chunk is None and start is None and tensor_shape is None)


def check_chunk(scheme: Scheme, shape: Shape | None, tensor_shape: Shape | None, start: int | None) -> None:
    """Check that the bytes of a chunk are a part of its layer's, so that those of all chunks, joined, are the layer's.

    Parameters
    ----------
    scheme : Scheme
    shape : list of int or None
        The chunk's own.
    tensor_shape : list of int or None
        The layer's.
    start : int or None
        The weights of the layer before the chunk.

    Raises
    ------
    SchemeError
        If the scheme has one scale for what is cut.
    InputValueError
        If the chunk is not cut where groups and matrix rows end, or does not say where.
    """
    if scheme.group == schemes.PER_TENSOR:
        msg = f"{scheme!s} has one scale a tensor, and the row is a chunk of one"
        raise SchemeError(msg, "use _channel or _g" if scheme.block == 1 else "take a scheme without")
    if tensor_shape is None or shape is None:
        msg = f"the row is a chunk without a {'tensor_shape' if tensor_shape is None else 'shape'}"
        raise InputValueError(msg, "a chunk has its own shape, and in tensor_shape the whole layer's")
    n_whole, n_chunk = n_weights(tensor_shape), n_weights(shape)
    if n_whole < 0 or n_chunk < 0:
        told = f"tensor_shape {list(tensor_shape)}" if n_whole < 0 else f"shape {list(shape)}"
        msg = f"the {told} has an axis that is null or negative"
        raise InputValueError(msg)
    if list(shape[1:]) != list(tensor_shape[1:]):
        msg = f"a chunk of the shape {list(shape)} is no part of the tensor_shape {list(tensor_shape)}"
        raise InputValueError(msg, "cut along the first axis, so that all other axes are the layer's")
    vector = len(tensor_shape) <= 1
    if vector and scheme.group == schemes.PER_CHANNEL:
        msg = f"{scheme!s} has one scale a vector, and the row is a chunk of one"
        raise SchemeError(msg, "use _g")
    if start is None and vector:
        msg = "the row is a chunk of a vector, without a start"
        raise InputValueError(msg, "start says how many weights of the layer are before the chunk")
    first = start or 0
    last = first + n_chunk
    if first < 0 or last > n_whole:
        msg = f"the chunk's weights {first} to {last} are not within the layer's {n_whole}"
        raise InputValueError(msg, "start counts weights of the whole layer")
    step = math.lcm(scheme.group, scheme.block) if vector else math.prod(axis or 0 for axis in shape[1:])
    if step and (first % step or (last % step and last != n_whole)):
        msg = (
            f"the chunk's weights {first} to {last} cut a {f'group or block of {scheme!s}' if vector else 'matrix row'}"
        )
        raise InputValueError(msg, f"begin and end chunks at multiples of {step}")


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
            lengths[row] = n_weights(shape)
    fields = {name: batch[name] for name in needed} | {"length": pa.array(lengths, pa.int64())}
    mask = batch["scheme"].is_null()
    return pa.StructArray.from_arrays(list(fields.values()), list(fields), mask=mask)
