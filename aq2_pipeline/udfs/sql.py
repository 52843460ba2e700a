"""What the functions are in SQL, for every adapter of a database: types, counts of arguments, and one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline.errors import Aq2Error, InputTypeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aq2_pipeline.functions import Argument, Function

__all__ = ["call", "check_count", "refuse_wide", "sql_type"]

_SQL_TYPES = {pa.int64(): "BIGINT", pa.float32(): "FLOAT", pa.float64(): "DOUBLE", pa.large_string(): "VARCHAR"}


def sql_type(kind: pa.DataType) -> str:
    """Return an Arrow type as DuckDB's SQL spells it."""
    if pt.is_struct(kind):
        return "STRUCT(" + ", ".join(f"{field.name} {sql_type(field.type)}" for field in kind) + ")"
    if pt.is_large_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    return "BLOB" if pt.is_large_binary(kind) else _SQL_TYPES[kind]


def check_count(function: Function, n: int) -> None:
    """Refuse a wrong number of arguments, with the signature.

    Raises
    ------
    InputTypeError
    """
    if not function.n_required <= n <= len(function.arguments):
        names = ", ".join(a.name + ("?" if a.optional else "") for a in function.arguments)
        msg = f"{n} arguments given"
        raise InputTypeError(msg, f"{function.sql_name}({names})").at(function=function.sql_name)


def refuse_wide(kind: pa.DataType, argument: Argument) -> None:
    """Refuse whole numbers that arrive as something else, with the cast that helps.

    Raises
    ------
    InputTypeError
    """
    if argument.kind not in ("scheme", "shape", "integer"):
        return
    element = kind.value_type if pt.is_list(kind) or pt.is_fixed_size_list(kind) else kind
    if pt.is_decimal(element) or isinstance(element, pa.OpaqueType):
        cast = f"{argument.name}::BIGINT" + ("[]" if argument.kind == "shape" else "")
        msg = f"{argument.name} is {kind}"
        raise InputTypeError(msg, f"cast it, {cast}: HUGEINT, which sum() gives, and DECIMAL arrive like this")


def call(function: Function, columns: Sequence[pa.Array], n_threads: int | None = None) -> pa.Array:
    """Run a function on one batch of an engine; an error's row counts in the batch and says so."""
    try:
        for column, argument in zip(columns, function.arguments, strict=False):
            refuse_wide(column.type, argument)
        return function(*columns, n_threads=n_threads)
    except Aq2Error as error:
        known = {"batch": len(columns[0])} if error.row is not None else {"function": function.sql_name}
        raise error.at(**known) from None
