"""DuckDB for users: `connect()`, or `register(con)`, then the functions in SQL.

The functions come on two paths with the same results: native functions, which
read DuckDB's own memory, in databases opened by `connect` or after `enable`; and
Arrow UDFs, on any connection, by `register`. `path` tells which.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import duckdb

from aq2_pipeline.udfs.duckdb import path, register, unregister
from aq2_pipeline.udfs.duckdb_native import installing

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["connect", "enable", "path", "register", "unregister"]


def connect(*args: Any, **keywords: Any) -> DuckDBPyConnection:
    """Open a connection that has the functions: native ones where this DuckDB can have them, else Arrow UDFs.

    Other connections of the process are not touched.

    Parameters
    ----------
    *args, **keywords
        What ``duckdb.connect`` takes.

    Raises
    ------
    EngineError
        If somebody else's function or macro in the database has one of the names.

    Notes
    -----
    A database file that is open in this process already is one database with
    it, and has what it has: without native functions there, these are Arrow UDFs.

    Examples
    --------
    >>> import aq2_pipeline.duckdb
    >>> con = aq2_pipeline.duckdb.connect()
    >>> con.sql("SELECT aq2_quantize([1.0, -2.0, 0.5], 4).scheme").fetchall()
    [('int4_g128',)]
    >>> con.close()
    """
    if installing.missing() is None:
        with installing.wanted():
            con = duckdb.connect(*args, **keywords)
    else:
        con = duckdb.connect(*args, **keywords)
    try:
        register(con)
    except BaseException:
        con.close()
        raise
    return con


def enable() -> bool:
    """Let every database that ``duckdb.connect`` opens from now on in this process have the native functions.

    Connections that are open already do not get them: `register` gives those
    Arrow UDFs. It cannot be taken back.

    Returns
    -------
    bool
        Whether they will. If not, a warning says why, unless
        ``AQ2_DUCKDB_NATIVE=0`` asked for it; `register` and `connect` work all
        the same.
    """
    reason = installing.missing()
    if reason is None:
        installing.enable()
    elif reason.startswith(installing.SWITCH):
        return False
    if reason is not None:
        warnings.warn(f"no native functions in DuckDB: {reason}", RuntimeWarning, stacklevel=2)
    return reason is None
