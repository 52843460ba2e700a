"""DuckDB: the functions as Arrow UDFs on any connection."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline.errors import Aq2Error, EngineError, InputTypeError
from aq2_pipeline.functions import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aq2_pipeline.functions import Argument, Function

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
            for column, argument in zip(given, function.arguments, strict=False):
                _refuse_wide(column.type, argument)
            return function(*given)
        except Aq2Error as error:
            known = {"batch": len(given[0])} if error.row is not None else {"function": function.sql_name}
            raise error.at(**known) from None

    call.__name__ = function.sql_name
    return call


def _refuse_wide(kind: pa.DataType, argument: Argument) -> None:
    """Refuse whole numbers that arrive as something else, with the cast that helps."""
    if argument.kind not in ("scheme", "shape", "integer"):
        return
    element = kind.value_type if pt.is_list(kind) or pt.is_fixed_size_list(kind) else kind
    if pt.is_decimal(element) or isinstance(element, pa.OpaqueType):
        cast = f"{argument.name}::BIGINT" + ("[]" if argument.kind == "shape" else "")
        msg = f"{argument.name} is {kind}"
        raise InputTypeError(msg, f"cast it, {cast}: HUGEINT, which sum() gives, and DECIMAL arrive like this")


#: Cursors of one database that register at the same time would find each other's functions half there.
_REGISTERING = threading.Lock()

_UDFS = {function.sql_name: (_udf(function), sql_type(function.result)) for function in FUNCTIONS.values()}


#: Who has our names where an unqualified call finds them. A table macro is called elsewhere.
_HOLDERS = """
SELECT function_name, database_name = 'system' AND function_type = 'scalar' AND varargs = 'ANY', return_type
FROM duckdb_functions()
WHERE starts_with(function_name, 'aq2_') AND function_type NOT IN ('table', 'table_macro', 'pragma')
  AND database_name IN ('system', 'temp', current_database()) AND schema_name IN (SELECT unnest(current_schemas(true)))
"""


def _holders(con: duckdb.DuckDBPyConnection) -> tuple[set[str], set[str]]:
    """Return which of our names functions of ours have, and which somebody else's.

    Ours are known by what they take and give: DuckDB keeps no other trace that every cursor sees.
    """
    ours: set[str] = set()
    foreign: set[str] = set()
    try:
        # Not `execute`, which throws the pending result of the connection away; `sql` raises.
        rows = con.sql(_HOLDERS).fetchall()
    except duckdb.ResourceInUseException:
        with con.cursor() as cursor:  # sees what is committed
            rows = cursor.execute(_HOLDERS).fetchall()
    for name, like_ours, result in rows:
        if name in _UDFS:
            same = like_ours and result.replace('"', "") == _UDFS[name][1]
            (ours if same else foreign).add(name)
    return ours, foreign


@contextmanager
def _engine_errors(call: str, con: Any, hint: str) -> Iterator[None]:
    """Turn DuckDB's errors into ours."""
    if isinstance(con, type) or not hasattr(con, "create_function"):
        msg = f"{call}: {con!r} is no DuckDB connection"
        raise InputTypeError(msg, "give what duckdb.connect() or duckdb.default_connection() returns")
    try:
        yield
    except duckdb.ResourceInUseException as error:
        msg = f"{call}: the connection has a result that is not fetched to its end"
        raise EngineError(msg, f"it is still there: fetch the rest, then {call}; or {call} before execute") from error
    except duckdb.ConnectionException as error:
        msg = f"{call}: {error}"
        raise EngineError(msg, "open a connection with duckdb.connect()") from error
    except duckdb.Error as error:
        msg = f"{call}: {error}"
        raise EngineError(msg, hint) from error


def _create(con: duckdb.DuckDBPyConnection, name: str) -> None:
    call, result = _UDFS[name]
    # No parameter types: named ones would not overload, and DOUBLE[] does not cast to FLOAT[].
    con.create_function(name, call, None, result, type="arrow", null_handling="special")  # type: ignore[call-overload]


def register(con: duckdb.DuckDBPyConnection) -> None:
    """Give a connection (and its cursors) the functions ``aq2_quantize``, ``aq2_dequantize`` and the others.

    Parameters
    ----------
    con : duckdb.DuckDBPyConnection
        Any open connection; a second call changes nothing.

    Raises
    ------
    EngineError
        If the connection is closed, has a result that is not fetched to its end
        (which stays), or somebody else's function or macro has one of the names.
    InputTypeError
        If it is no connection.

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
    with _engine_errors("register", con, "where a transaction is open, roll it back and register again"), _REGISTERING:
        ours, foreign = _holders(con)
        if foreign:
            msg = f"register: the name {min(foreign)!r} is taken by a function or macro that is not ours"
            raise EngineError(msg, "drop or rename it, or register with another connection")
        for name in sorted(set(_UDFS) - ours):
            try:
                _create(con, name)
            except duckdb.NotImplementedException:
                # A rollback took it from the catalog, but not from the connection's list; a cursor has its own.
                with con.cursor() as cursor:
                    _create(cursor, name)
        if len(ours) < len(_UDFS) and _holders(con)[0] != set(_UDFS):
            msg = "register: the functions are there, but not for the transaction that is open"
            raise EngineError(msg, "commit it or roll it back; then they are")


def unregister(con: duckdb.DuckDBPyConnection) -> None:
    """Take the functions back that `register` gave this connection; without any, nothing happens.

    Functions and macros of others under these names stay.

    Raises
    ------
    EngineError
        If they were registered through another cursor, or the connection is
        closed or has a result that is not fetched to its end (which stays).
    InputTypeError
        If it is no connection.
    """
    with _engine_errors("unregister", con, "unregister through the connection that registered"), _REGISTERING:
        for name in sorted(_holders(con)[0]):
            con.remove_function(name)
