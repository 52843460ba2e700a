"""Every way to call a function, as one uniform list: Arrow columns in, one Arrow column out.

`ENGINES` holds them all. `engine.quantize(weights, scheme, shape)`,
`engine.dequantize(quantized)`, `engine.quantization_error(weights, scheme, shape)`
and `engine.weight_stats(weights)` give arrays of the types of
`aq2_pipeline.layout`, so that results compare with `==` between engines.
`engine.takes(weights, scheme, shape)` says by construction, from the types
alone, whether an engine can be asked at all.
"""

from __future__ import annotations

import atexit
import contextlib
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

import aq2_pipeline
import aq2_pipeline.duckdb
from aq2_pipeline import Aq2Error, ArrowQuantV2, layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What any engine may raise for bad rows; DuckDB keeps only the text.
ERRORS = (Aq2Error, duckdb.Error)

RESULTS = {
    "quantize": layout.QUANTIZED,
    "dequantize": layout.FLOATS,
    "quantization_error": layout.ERROR,
    "weight_stats": layout.STATS,
}


def normalised(column: Any, kind: pa.DataType) -> pa.Array:
    """Return an engine's column as one contiguous array of exactly this type."""
    if isinstance(column, pl.Series):
        column = column.to_arrow()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.cast(kind)


#: The two ways in which a DuckDB connection may have the functions.
PATHS = ("arrow", "native")


@contextlib.contextmanager
def connected(path: str = "arrow", **config: Any) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory database that has the functions on one of the `PATHS`, and close it."""
    native = path == "native"
    con = aq2_pipeline.duckdb.connect(config=config) if native else duckdb.connect(config=config)
    try:
        aq2_pipeline.register(con)
        assert aq2_pipeline.duckdb.path(con) == path
        yield con
    finally:
        con.close()


@cache
def _database(path: str) -> duckdb.DuckDBPyConnection:
    """Return the database that all calls of a path share: to open one and register takes 50 times what a call does."""
    kept = connected(path)
    atexit.register(kept.__exit__, None, None, None)
    return kept.__enter__()


def sql_literal(value: Any) -> str:
    """Return a Python constant as SQL spells it."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


def _leaves(kind: pa.DataType) -> pa.DataType:
    while pt.is_nested(kind) and not pt.is_struct(kind):
        kind = kind.value_type
    return kind


def _is_view(kind: pa.DataType) -> bool:
    return pt.is_list_view(kind) or pt.is_large_list_view(kind)


@dataclass(frozen=True)
class Engine:
    """One way to call the functions.

    Attributes
    ----------
    name : str
    call : callable
        ``call(function, first, *others)`` where the others are Arrow columns,
        constants, or None; returns the engine's own kind of column.
    supports : callable
        ``supports(function, first, *others)``, from the types alone.
    """

    name: str
    call: Callable[..., Any]
    supports: Callable[..., bool]

    def __str__(self) -> str:
        return self.name

    def run(self, function: str, first: pa.Array, *others: Any) -> pa.Array:
        """Call a function by its name; trailing arguments that are None are left out."""
        given = list(others)
        while given and given[-1] is None:
            given.pop()
        return normalised(self.call(function, first, *given), RESULTS[function])

    def takes(self, weights: pa.Array, scheme: Any = 4, shape: pa.Array | None = None) -> bool:
        """Whether these types can reach the engine's `quantize`."""
        return self.supports("quantize", weights, scheme, *([] if shape is None else [shape]))

    def quantize(self, weights: pa.Array, scheme: Any, shape: pa.Array | None = None) -> pa.StructArray:
        """Quantize; a StructArray of `layout.QUANTIZED`."""
        return self.run("quantize", weights, scheme, shape)

    def dequantize(self, quantized: pa.Array) -> pa.LargeListArray:
        """Dequantize; a large_list<float32>."""
        return self.run("dequantize", quantized)

    def quantization_error(self, weights: pa.Array, scheme: Any, shape: pa.Array | None = None) -> pa.StructArray:
        """Return the errors; a StructArray of `layout.ERROR`."""
        return self.run("quantization_error", weights, scheme, shape)

    def weight_stats(self, weights: pa.Array) -> pa.StructArray:
        """Return the statistics; a StructArray of `layout.STATS`."""
        return self.run("weight_stats", weights)


# --- Polars ----------------------------------------------------------------------------------------------------------


def _polars_supports(_function: str, *columns: Any) -> bool:
    kinds = [column.type for column in columns if isinstance(column, pa.Array)]
    return not any(_is_view(kind) or isinstance(kind, pa.BaseExtensionType) for kind in kinds)


def _series(column: pa.Array) -> pl.Series:
    return pl.Series(pl.from_arrow(pa.concat_arrays([column])))  # a sliced fixed_size_list with nulls fails otherwise


def _polars_frame(function: str, first: pa.Array, others: tuple[Any, ...]) -> tuple[pl.DataFrame, pl.Expr]:
    frame = {"first": _series(first)}
    given = []
    for k, other in enumerate(others):
        if isinstance(other, pa.Array):
            frame[f"other{k}"] = _series(other)
            given.append(pl.col(f"other{k}"))
        else:
            given.append(other)
    expression = getattr(pl.col("first").aq2, function)(*given)
    return pl.DataFrame(frame), expression.alias("result")


def _polars_eager(function: str, first: pa.Array, *others: Any) -> pl.Series:
    frame, expression = _polars_frame(function, first, others)
    return frame.select(expression)["result"]


def _polars_lazy(function: str, first: pa.Array, *others: Any) -> pl.Series:
    frame, expression = _polars_frame(function, first, others)
    return frame.lazy().select(expression).collect()["result"]


def _polars_streaming(function: str, first: pa.Array, *others: Any) -> pl.Series:
    frame, expression = _polars_frame(function, first, others)
    return frame.lazy().select(expression).collect(engine="streaming")["result"]


def _polars_series(function: str, first: pa.Array, *others: Any) -> pl.Series:
    given = [_series(other) if isinstance(other, pa.Array) else other for other in others]
    return getattr(_series(first).aq2, function)(*given)


# --- DuckDB ----------------------------------------------------------------------------------------------------------


def _duckdb_supports(_function: str, *columns: Any) -> bool:
    kinds = [column.type for column in columns if isinstance(column, pa.Array)]
    return not any(isinstance(kind, pa.BaseExtensionType) or pt.is_float16(_leaves(kind)) for kind in kinds)


def _duckdb(path: str, function: str, first: pa.Array, *others: Any) -> pa.ChunkedArray:
    columns, arguments = {"first": first}, ["first"]
    for k, other in enumerate(others):
        if isinstance(other, pa.Array):
            columns[f"other{k}"] = other
            arguments.append(f"other{k}")
        else:
            arguments.append(sql_literal(other))
    with _database(path).cursor() as con:
        con.register("source", pa.table(columns))
        query = f"SELECT aq2_{function}({', '.join(arguments)}) AS result FROM source"  # noqa: S608 - our own names
        return con.sql(query).to_arrow_table()["result"]


# --- pyarrow ---------------------------------------------------------------------------------------------------------


def _pyarrow_supports(function: str, first: pa.Array, *others: Any) -> bool:
    if first.type != (layout.QUANTIZED if function == "dequantize" else layout.FLOATS):
        return False
    if not others:
        return True
    scheme = others[0]
    if not (isinstance(scheme, str) or (isinstance(scheme, pa.Array) and scheme.type == pa.string())):
        return False
    return len(others) == 1 or (len(others) == 2 and others[1].type == layout.INTS)


def _pyarrow(function: str, first: pa.Array, *others: Any) -> pa.Array:
    aq2_pipeline.register_pyarrow()
    name = f"aq2_{function}" + ("_shaped" if len(others) > 1 else "")
    given = [other if isinstance(other, pa.Array) else pa.scalar(other, pa.string()) for other in others]
    return pc.call_function(name, [first, *given])


# --- Python ----------------------------------------------------------------------------------------------------------


def _python(function: str, first: pa.Array, *others: Any) -> pa.Array:
    return getattr(aq2_pipeline, function)(first, *others)


def _python_chunked(function: str, first: pa.Array, *others: Any) -> pa.ChunkedArray:
    """Call with uneven chunks, of which one is empty."""
    third = len(first) // 3
    chunks = [first.slice(0, third), first.slice(third, 0), first.slice(third, third + 1), first.slice(2 * third + 1)]
    return getattr(aq2_pipeline, function)(pa.chunked_array(chunks, first.type), *others)


def _wrapper_supports(function: str, *columns: Any) -> bool:
    return function in ("quantize", "dequantize") and len(columns) < 4  # no importance


def flat(rows: pa.Table) -> pa.StructArray:
    """Put the flat table of `quantize_arrow` back into `layout.QUANTIZED`."""
    rows = rows.combine_chunks()
    lengths = []
    for shape, row_length in zip(rows["shape"].to_pylist(), rows["row_length"].to_pylist(), strict=True):
        n = row_length
        if shape is not None and row_length is not None:
            n = 1
            for axis in shape:
                n *= axis
        lengths.append(n)
    columns = {name: normalised(rows[name], layout.QUANTIZED.field(name).type) for name in rows.column_names
               if name in layout.QUANTIZED.names}  # fmt: skip
    columns["length"] = pa.array(lengths, pa.int64())
    fields = [columns[name] for name in layout.QUANTIZED.names]
    return pa.StructArray.from_arrays(fields, fields=list(layout.QUANTIZED), mask=columns["scheme"].is_null())


def _wrapper(function: str, first: pa.Array, *others: Any) -> pa.Array:
    names = pa.array([f"layer.{k}" for k in range(len(first))], pa.string())
    if function == "dequantize":
        table = pa.table({"layer_name": names, "quantized": first})
        return ArrowQuantV2().dequantize_arrow(table)["weights"]
    columns = {"layer_name": names, "weights": first}
    if len(others) > 1:
        columns["shape"] = others[1]
    return flat(ArrowQuantV2().quantize_arrow(pa.table(columns), scheme=others[0]))


def _any(*_columns: Any) -> bool:
    return True


ENGINES = [
    Engine("polars-eager", _polars_eager, _polars_supports),
    Engine("polars-lazy", _polars_lazy, _polars_supports),
    Engine("polars-streaming", _polars_streaming, _polars_supports),
    Engine("polars-series", _polars_series, _polars_supports),
    Engine("duckdb", partial(_duckdb, "arrow"), _duckdb_supports),
    Engine("duckdb-native", partial(_duckdb, "native"), _duckdb_supports),
    Engine("pyarrow", _pyarrow, _pyarrow_supports),
    Engine("python", _python, _any),
    Engine("python-chunked", _python_chunked, _any),
    Engine("wrapper", _wrapper, _wrapper_supports),
]
BY_NAME = {engine.name: engine for engine in ENGINES}


def outcome(call: Callable[[], pa.Array]) -> pa.Array | str:
    """Return what a call gives, or the text of its error; `except` is for our errors and DuckDB's only."""
    try:
        return call()
    except ERRORS as error:
        return str(error)


def everywhere(function: str, first: pa.Array, *others: Any) -> dict[str, pa.Array | str]:
    """Run a function on every engine that takes the types: engine name -> result or error text."""
    given = list(others)
    while given and given[-1] is None:
        given.pop()
    return {
        engine.name: outcome(partial(engine.run, function, first, *given))
        for engine in ENGINES
        if engine.supports(function, first, *given)
    }
