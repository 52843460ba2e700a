"""What users write as arguments, made one thing for every engine that calls in Python: a constant or a column."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aq2_pipeline import threads
from aq2_pipeline.errors import Aq2Error, InputTypeError
from aq2_pipeline.layout import FLOATS, INTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aq2_pipeline.functions import Argument, Function

__all__ = ["as_argument", "as_array", "exports_arrow", "is_column", "over_chunks"]

#: Chunks up to this size are worked through side by side, each on one thread; larger ones one after the other, each
#: cut into slices between which an interrupt is answered.
_MOST_BYTES = 1 << 26
#: What one value of an argument is for all rows, where it is a list by itself.
_LISTS = {"shape": INTS, "importance": FLOATS}


def exports_arrow(value: Any) -> bool:
    """Whether a value hands out Arrow data: pyarrow, Polars, DuckDB, nanoarrow."""
    return hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__")


def is_column(argument: Argument, value: Any) -> bool:
    """Whether a value is a column of an argument's values, and not one value for all rows.

    Arrow data is a column, and so are lists and 1-D arrays of the argument's
    values: of numbers and names for a scheme, of lists for a shape.
    """
    if exports_arrow(value):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim == (2 if argument.kind in _LISTS else 1)
    if not isinstance(value, list | tuple):
        return False
    if argument.kind in _LISTS:
        return any(item is None or isinstance(item, list | tuple | np.ndarray) for item in value)
    return isinstance(value, list)


def as_argument(function: Function, argument: Argument, value: Any, n: int) -> Any:
    """Return None, a constant scheme, or a pyarrow array of `n` rows.

    Raises
    ------
    InputTypeError
        For what makes no column, or one of another length.
    """
    if value is None and argument.optional:
        return None
    column = is_column(argument, value)
    if argument.kind == "scheme" and not column:
        return value
    array = as_array(function, argument, value, None if column else n)
    if len(array) != n:
        msg = f"{argument.name} has {len(array)} rows, {function.arguments[0].name} has {n}"
        raise InputTypeError(msg).at(function=function.sql_name)
    return array


def as_array(function: Function, argument: Argument, value: Any, n: int | None = None) -> pa.Array:
    """Return a column, or one value `n` times, as a pyarrow array.

    Raises
    ------
    InputTypeError
        For what makes no column.
    """
    try:
        return _array(argument, value) if n is None else _repeated(argument, value, n)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        msg = f"{argument.name} makes no column: {error}"
        raise InputTypeError(msg).at(function=function.sql_name) from None


def _array(argument: Argument, value: Any) -> pa.Array:
    if isinstance(value, pa.Array):
        return value
    if hasattr(value, "__arrow_c_array__"):
        return pa.array(value)
    if hasattr(value, "__arrow_c_stream__"):
        return pa.chunked_array(value).combine_chunks()
    rows = [list(item) if isinstance(item, tuple | np.ndarray) else item for item in value]
    return pa.array(rows if argument.kind in _LISTS else value)


def _repeated(argument: Argument, value: Any, n: int) -> pa.Array:
    if argument.kind in _LISTS and isinstance(value, list | tuple | np.ndarray):
        return pa.array([list(value)], None if len(value) else _LISTS[argument.kind]).take(pa.array(np.zeros(n, int)))
    return pa.array([value]).take(pa.array(np.zeros(n, int)))


def over_chunks(
    function: Function,
    chunks: Sequence[pa.Array],
    others: Sequence[Any],
    n_threads: int | None,
    place: Callable[[Aq2Error, int], Aq2Error],
) -> list[pa.Array]:
    """Run a function on the chunks of a column; the other arguments are constants or arrays of all rows.

    Parameters
    ----------
    function : Function
    chunks : sequence of pyarrow.Array
        One at the least.
    others : sequence
        As `as_argument` returns them.
    n_threads : int, optional
    place : callable
        ``place(error, row)`` says where in the whole column an error is, given
        the rows before the chunk that the error counts in.

    Returns
    -------
    list of pyarrow.Array
        A result a chunk, or one for all of them.
    """
    if len(chunks) == 1 or (function.takes_chunks and len({chunk.type for chunk in chunks}) == 1):
        column = chunks[0] if len(chunks) == 1 else pa.chunked_array(chunks)
        try:
            return [function(column, *others, n_threads=n_threads)]
        except Aq2Error as error:
            raise place(error, 0) from None
    firsts = [0, *itertools.accumulate(map(len, chunks))]
    results: list[Any] = [None] * len(chunks)
    errors: dict[int, Aq2Error] = {}

    def work(k: int, inner: int | None) -> None:
        if errors and min(errors) < k:  # the lowest bad row is told, and it is not here
            return
        given = (other.slice(firsts[k], len(chunks[k])) if isinstance(other, pa.Array) else other for other in others)
        try:
            results[k] = function(chunks[k], *given, n_threads=inner)
        except Aq2Error as error:
            errors[k] = place(error, firsts[k])

    if max(chunk.nbytes for chunk in chunks) <= _MOST_BYTES:
        threads.run(([partial(work, k, 1)] for k in range(len(chunks))), n_threads)
    else:
        for k in range(len(chunks)):
            work(k, n_threads)
    if errors:
        raise errors.pop(min(errors)) from None
    return results
