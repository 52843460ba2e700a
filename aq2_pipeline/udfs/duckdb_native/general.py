"""The general body: any function on any types, through Arrow columns, as the Arrow UDF does it."""

from __future__ import annotations

import ctypes
from ctypes import c_void_p
from typing import TYPE_CHECKING, Any

from aq2_pipeline.errors import Aq2Error, InputTypeError
from aq2_pipeline.udfs.duckdb_native import capi, vectors
from aq2_pipeline.udfs.sql import call

if TYPE_CHECKING:
    from aq2_pipeline.functions import Function

__all__ = ["BODY", "body_of", "told"]

#: `void (duckdb_function_info, duckdb_data_chunk input, duckdb_vector output)`
BODY = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)


def told(function: Function, error: BaseException) -> bytes:
    """Return the text of an error as DuckDB is told it; without NUL, which would end it."""
    if isinstance(error, Aq2Error):
        text = str(error)
    else:  # an interrupt that meets Python code of ours, no memory, or a defect
        text = f"{function.sql_name}: {type(error).__name__}" + (f": {error}" if str(error) else "")
    return text.replace("\0", "\\0").encode(errors="replace")


def body_of(function: Function) -> Any:
    """Return the general body of a function, as a C function.

    An exception must not leave it: ctypes would print it, and DuckDB would go on with a result of garbage.
    """
    api = capi.load()

    def body(info: int, chunk: int, result: int) -> None:
        try:
            try:
                column = call(function, vectors.read(chunk), n_threads=1)  # DuckDB's threads are threads enough
            except InputTypeError:  # its text names types, which are not those of the views
                column = call(function, vectors.read(chunk, copy=True), n_threads=1)
            vectors.write(result, column)
        except BaseException as error:  # noqa: BLE001
            api.scalar_function_set_error(info, told(function, error))

    return BODY(body)
