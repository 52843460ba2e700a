"""DuckDB: the functions as Arrow UDFs on any connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline.errors import Aq2Error, EngineError, InputTypeError
from aq2_pipeline.functions import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aq2_pipeline.functions import Function

__all__ = ["register", "unregister"]

_SQL_TYPES = {pa.int64(): "BIGINT", pa.float32(): "FLOAT", pa.float64(): "DOUBLE", pa.large_string(): "VARCHAR"}


def sql_type(kind: pa.DataType) -> str:
    """Return an Arrow type as DuckDB's SQL spells it."""
    if pt.is_struct(kind):
        return "STRUCT(" + ", ".join(f"{field.name} {sql_type(field.type)}" for field in kind) + ")"
    if pt.is_large_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    return "BLOB" if pt.is_large_binary(kind) else _SQL_TYPES[kind]


def _udf(function: Function) -> Callable[..., pa.Array]:
    """Return the function as DuckDB calls it: one chunked array an argument, at most 2,048 rows.

    One a function for the life of the process: a function that dies with the
    cursor it was registered through would crash the next call.
    """

    def call(*columns: pa.ChunkedArray) -> pa.Array:
        if not function.n_required <= len(columns) <= len(function.arguments):
            names = ", ".join(a.name + ("?" if a.optional else "") for a in function.arguments)
            msg = f"{len(columns)} arguments given"
            raise InputTypeError(msg, f"{function.sql_name}({names})").at(function=function.sql_name)
        given = [column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in columns]
        try:
            return function(*given)
        except Aq2Error as error:
            raise (error.at(batch=len(given[0])) if error.row is not None else error) from None

    call.__name__ = function.sql_name
    return call


_UDFS = {function.sql_name: (_udf(function), sql_type(function.result)) for function in FUNCTIONS.values()}


def _registered(con: duckdb.DuckDBPyConnection) -> set[str]:
    rows = con.execute("SELECT DISTINCT function_name FROM duckdb_functions() WHERE starts_with(function_name, 'aq2_')")
    return {name for (name,) in rows.fetchall()} & set(_UDFS)


def register(con: duckdb.DuckDBPyConnection) -> None:
    """Give a connection (and its cursors) the functions ``aq2_quantize``, ``aq2_dequantize`` and the others.

    Parameters
    ----------
    con : duckdb.DuckDBPyConnection
        Any open connection; a second call changes nothing.

    Raises
    ------
    EngineError
        If the connection is closed or cannot take functions.

    Examples
    --------
    >>> import duckdb
    >>> import aq2_pipeline
    >>> con = duckdb.connect()
    >>> aq2_pipeline.register(con)
    >>> con.sql("SELECT aq2_quantize([1.0, -2.0, 0.5], 4).scheme").fetchall()
    [('int4_g128',)]
    >>> con.close()
    """
    try:
        for name in sorted(set(_UDFS) - _registered(con)):
            call, result = _UDFS[name]
            # No parameter types: named ones would not overload, and DOUBLE[] does not cast to FLOAT[].
            con.create_function(name, call, None, result, type="arrow", null_handling="special")  # type: ignore[call-overload]
    except duckdb.Error as error:
        msg = f"register: {error}"
        raise EngineError(msg) from error


def unregister(con: duckdb.DuckDBPyConnection) -> None:
    """Take the functions back that `register` gave this connection; without any, nothing happens.

    Raises
    ------
    EngineError
        If they were registered through another cursor, or the connection is closed.
    """
    try:
        for name in sorted(_registered(con)):
            con.remove_function(name)
    except duckdb.Error as error:
        msg = f"unregister: {error}"
        raise EngineError(msg, "unregister through the connection that registered") from error
