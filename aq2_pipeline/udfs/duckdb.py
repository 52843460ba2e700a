"""DuckDB: the functions as Arrow UDFs on any connection."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa  # noqa: TC002 - DuckDB evaluates the annotations

from aq2_pipeline.errors import EngineError, InputTypeError
from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.udfs.sql import call, check_count, sql_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aq2_pipeline.functions import Function

__all__ = ["path", "register", "unregister"]


def _udf(function: Function) -> Callable[..., pa.Array]:
    """Return the function as DuckDB calls it: one chunked array an argument, at most 2,048 rows.

    One a function for the life of the process: a function that dies with the
    cursor it was registered through would crash the next call.
    """

    def udf(*columns: pa.ChunkedArray) -> pa.Array:
        check_count(function, len(columns))
        return call(
            function, [column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in columns]
        )

    udf.__name__ = function.sql_name
    return udf


#: Cursors of one database that register at the same time would find each other's functions half there.
_REGISTERING = threading.Lock()

_UDFS = {function.sql_name: (_udf(function), sql_type(function.result)) for function in FUNCTIONS.values()}


#: Who has our names where an unqualified call finds them. A table macro is called elsewhere.
_HOLDERS = """
SELECT function_name, return_type,
       CASE WHEN database_name <> 'system' OR function_type <> 'scalar' OR varargs IS DISTINCT FROM 'ANY' THEN 'foreign'
            WHEN parameter_types = [] THEN 'native' WHEN parameter_types = ['ANY'] THEN 'arrow' ELSE 'foreign' END
FROM duckdb_functions()
WHERE starts_with(function_name, 'aq2_') AND function_type NOT IN ('table', 'table_macro', 'pragma')
  AND database_name IN ('system', 'temp', current_database()) AND schema_name IN (SELECT unnest(current_schemas(true)))
"""


def _holders(con: duckdb.DuckDBPyConnection) -> dict[str, set[str]]:
    """Return which of our names are native functions of ours, which Arrow functions of ours, and which foreign.

    Ours are known by what they take and give: DuckDB keeps no other trace that every cursor sees.
    """
    found: dict[str, set[str]] = {"native": set(), "arrow": set(), "foreign": set()}
    try:
        # Not `execute`, which throws the pending result of the connection away; `sql` raises.
        rows = con.sql(_HOLDERS).fetchall()
    except duckdb.ResourceInUseException:
        with con.cursor() as cursor:  # sees what is committed
            rows = cursor.execute(_HOLDERS).fetchall()
    for name, result, holder in rows:
        if name in _UDFS:
            same = (result or "").replace('"', "") == _UDFS[name][1]
            found[holder if same else "foreign"].add(name)
    return found


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
        holders = _holders(con)
        ours = holders["native"] | holders["arrow"]
        if holders["foreign"]:
            msg = f"register: the name {min(holders['foreign'])!r} is taken by a function or macro that is not ours"
            raise EngineError(msg, "drop or rename it, or register with another connection")
        for name in sorted(set(_UDFS) - ours):
            try:
                _create(con, name)
            except duckdb.NotImplementedException:
                # A rollback took it from the catalog, but not from the connection's list; a cursor has its own.
                with con.cursor() as cursor:
                    _create(cursor, name)
        if len(ours) < len(_UDFS) and _holders(con)["arrow"] | ours != set(_UDFS):
            msg = "register: the functions are there, but not for the transaction that is open"
            raise EngineError(msg, "commit it or roll it back; then they are")


def unregister(con: duckdb.DuckDBPyConnection) -> None:
    """Take the functions back that `register` gave this connection; without any, nothing happens.

    Functions and macros of others under these names stay.

    Raises
    ------
    EngineError
        If they are native or were registered through another cursor, or the connection is
        closed or has a result that is not fetched to its end (which stays).
    InputTypeError
        If it is no connection.
    """
    with _engine_errors("unregister", con, "unregister through the connection that registered"), _REGISTERING:
        holders = _holders(con)
        if holders["native"]:
            msg = "unregister: the functions of this connection are native, which DuckDB keeps as long as the database"
            raise EngineError(msg, "leave them, or open a database with duckdb.connect() where enable() was not called")
        for name in sorted(holders["arrow"]):
            con.remove_function(name)


def path(con: duckdb.DuckDBPyConnection) -> str | None:
    """Return how a connection has the functions: ``"native"``, ``"arrow"`` (as Arrow UDFs), or None: not at all.

    Raises
    ------
    EngineError
        If the connection is closed.
    InputTypeError
        If it is no connection.

    Examples
    --------
    >>> import aq2_pipeline.duckdb
    >>> con = aq2_pipeline.duckdb.connect()
    >>> aq2_pipeline.duckdb.path(con) in ("native", "arrow")
    True
    >>> con.close()
    """
    with _engine_errors("path", con, "where a transaction is open, roll it back and ask again"):
        holders = _holders(con)
    return next((kind for kind in ("native", "arrow") if holders[kind] == set(_UDFS)), None)
