"""Python: the functions on pyarrow, NumPy and Polars columns, at once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aq2_pipeline import schemes
from aq2_pipeline.arguments import as_argument, exports_arrow, is_column, over_chunks
from aq2_pipeline.columns import Tensors
from aq2_pipeline.errors import Aq2Error, InputTypeError, InputValueError
from aq2_pipeline.functions import FUNCTIONS, spelled_scheme, thread_count
from aq2_pipeline.layout import INTS
from aq2_pipeline.tensors import as_ndarray, is_tensor, rows_of

if TYPE_CHECKING:
    from aq2_pipeline.functions import Function

__all__ = ["dequantize", "policy_scheme", "quantization_error", "quantize", "weight_stats"]


def quantize(
    column: Any,
    scheme: Any,
    shape: Any = None,
    importance: Any = None,
    *,
    group_size: int | str | None = None,
    symmetric: bool | None = None,
    method: str | None = None,
    rotate: bool | None = None,
    threads: int | None = None,
) -> Any:
    """Quantize each row of a column of weights.

    Parameters
    ----------
    column : array-like
        A pyarrow Array or ChunkedArray, anything with ``__arrow_c_array__`` or
        ``__arrow_c_stream__``, a Polars Series, a 1-D ndarray (one row), a 2-D
        ndarray (a column of rows), or a list of ndarrays (tensors with their
        shapes).
    scheme : int or str or column
        Bits (2 to 8), a scheme's name, or one of these a row.
    shape : column of integer lists, or one tuple for all rows, optional
        The product is the row's length.
    importance : column of float lists, optional
        One non-negative weight an input channel, or one a weight.
    group_size, symmetric, method, rotate
        Sugar for the parts of a scheme's name.
    threads : int, optional
        Threads to use; the result does not depend on it.

    Returns
    -------
    pyarrow.StructArray, pyarrow.ChunkedArray or polars.Series
        `layout.QUANTIZED`, of the kind that came in; a StructArray for ndarrays.
        Null where the weights are null; an empty row has no data and no scales.

    Raises
    ------
    SchemeError, InputTypeError, InputValueError
        With the row (over all chunks) and the position.

    Notes
    -----
    The formulas are in `kernels.integer`.

    Examples
    --------
    >>> import numpy as np
    >>> import aq2_pipeline
    >>> q = aq2_pipeline.quantize(np.array([1.0, -7.0, 3.5], np.float32), 4)
    >>> q[0]["scales"].as_py(), q[0]["quantized_data"].as_py().hex()
    ([1.0], '190c')
    """
    keywords = {"group_size": group_size, "symmetric": symmetric, "method": method, "rotate": rotate}
    return _call("quantize", column, _scheme("quantize", scheme, keywords), shape, importance, threads=threads)


def quantization_error(
    column: Any,
    scheme: Any,
    shape: Any = None,
    importance: Any = None,
    *,
    group_size: int | str | None = None,
    symmetric: bool | None = None,
    method: str | None = None,
    rotate: bool | None = None,
    threads: int | None = None,
) -> Any:
    """Return what `quantize` would lose in each row; parameters are its.

    Returns
    -------
    pyarrow.StructArray, pyarrow.ChunkedArray or polars.Series
        float64 fields mse, rmse, max_abs, sqnr_db (decibels, +inf without
        error), cosine, bits_per_weight; null fields for an empty row.

    Examples
    --------
    >>> import numpy as np
    >>> import aq2_pipeline
    >>> error = aq2_pipeline.quantization_error(np.array([1.0, -7.0, 3.5], np.float32), 4)[0]
    >>> error["max_abs"].as_py(), error["cosine"].as_py() > 0.99
    (0.5, True)
    """
    keywords = {"group_size": group_size, "symmetric": symmetric, "method": method, "rotate": rotate}
    told = _scheme("quantization_error", scheme, keywords)
    return _call("quantization_error", column, told, shape, importance, threads=threads)


def dequantize(column: Any, *, threads: int | None = None) -> Any:
    """Decode each row of a quantized column to float32.

    Parameters
    ----------
    column : array-like
        What `quantize` returns, from any engine or file.
    threads : int, optional
        Threads to use.

    Returns
    -------
    pyarrow.LargeListArray, pyarrow.ChunkedArray or polars.Series
        Null where the row is null.

    Raises
    ------
    InputValueError, InputTypeError, SchemeError
        If a row contradicts itself.

    Examples
    --------
    >>> import numpy as np
    >>> import aq2_pipeline
    >>> aq2_pipeline.dequantize(aq2_pipeline.quantize(np.array([1.0, -7.0, 3.4], np.float32), 4)).to_pylist()
    [[1.0, -7.0, 3.0]]
    """
    return _call("dequantize", column, threads=threads)


def weight_stats(column: Any, *, threads: int | None = None) -> Any:
    """Return statistics of each row of weights.

    Parameters
    ----------
    column : array-like
        As `quantize` takes it; values that are not finite as float32 are counted, not refused.
    threads : int, optional
        Threads to use.

    Returns
    -------
    pyarrow.StructArray, pyarrow.ChunkedArray or polars.Series
        int64 count, zeros, non_finite; float64 min, max, mean, std (the
        population's), abs_max, kurtosis (Fisher's excess, null where std is 0),
        outlier_ratio (share with ``|w - mean| > 6 std``). Of an empty row only
        the count is not null.

    Examples
    --------
    >>> import numpy as np
    >>> import aq2_pipeline
    >>> aq2_pipeline.weight_stats(np.array([1.0, 0.0, -1.0, float("nan")], np.float32))[0]["non_finite"].as_py()
    1
    """
    return _call("weight_stats", column, threads=threads)


def policy_scheme(layer_name: Any, shape: Any, bit_width: Any, mode: Any = "diffusion") -> Any:
    """Return the scheme that a named policy gives a layer, or each row of a column of layers.

    Parameters
    ----------
    layer_name : str or column of str
    shape : sequence of int, None or column of integer lists
    bit_width : int or column of int
    mode : str or column of str

    Returns
    -------
    str, or a column of the kind of `layer_name`

    Examples
    --------
    >>> import aq2_pipeline
    >>> aq2_pipeline.policy_scheme("layers.0.mlp.weight", (4096, 4096), 4)
    'int4_g64'
    """
    if layer_name is None or isinstance(layer_name, str):
        return _call("policy_scheme", pa.array([layer_name], pa.string()), shape, bit_width, mode)[0].as_py()
    if isinstance(layer_name, list):
        layer_name = pa.array(layer_name, pa.string())
    return _call("policy_scheme", layer_name, shape, bit_width, mode)


def _scheme(name: str, scheme: Any, keywords: dict[str, Any]) -> Any:
    """Return a constant with its keywords spelled out, or a column, which takes none."""
    function = FUNCTIONS[name]
    if not is_column(function.arguments[1], scheme):
        return spelled_scheme(function, scheme, keywords)
    schemes.refuse_keywords(keywords)
    return scheme


def _call(name: str, column: Any, *others: Any, threads: int | None = None) -> Any:
    function = FUNCTIONS[name]
    threads = thread_count(threads)
    if hasattr(column, "aq2") and hasattr(column, "get_chunks"):  # a Polars Series, whose namespace keeps its chunks
        return column.aq2._call(name, *others, threads=threads)  # noqa: SLF001 - ours
    if isinstance(column, list) and function.arguments[0].kind == "weights":
        return _each_tensor(function, column, others, threads)
    whole = as_column(column, function)
    given = _arguments(function, others, len(whole))
    if not isinstance(whole, pa.ChunkedArray):
        return function(whole, *given, n_threads=threads)
    chunks = whole.chunks or [pa.nulls(0, whole.type)]  # a wrong type is one without rows, too
    results = over_chunks(function, chunks, given, threads, _shifted)
    if len(results) < len(chunks):  # one job for all
        ends = itertools.accumulate(map(len, chunks))
        results = [results[0].slice(end - len(chunk), len(chunk)) for end, chunk in zip(ends, chunks, strict=True)]
    return pa.chunked_array(results, function.result)


def _arguments(function: Function, others: tuple[Any, ...], n: int) -> list[Any]:
    return [as_argument(function, a, value, n) for a, value in zip(function.arguments[1:], others, strict=False)]


def _shifted(error: Aq2Error, row: int) -> Aq2Error:
    """Count an error's row over all chunks."""
    return error.at(row=error.row + row) if error.row is not None else error


def _each_tensor(function: Function, tensors: list[Any], others: tuple[Any, ...], threads: int | None) -> pa.Array:
    """Run a list of tensors, each over its own memory and with its own shape."""
    arrays = []
    for row, item in enumerate(tensors):
        if not is_tensor(item):
            msg = f"row {row} is a {type(item).__name__}"
            raise InputTypeError(msg, "a list holds ndarrays or tensors").at(function=function.sql_name)
        try:
            arrays.append(as_ndarray(item))
        except Aq2Error as error:
            raise error.at(function=function.sql_name, row=row) from None
    given = _arguments(function, others, len(tensors))
    if len(given) > 1:  # the shape
        told = [None] * len(arrays) if given[1] is None else given[1].to_pylist()
        given[1] = pa.array([list(a.shape) if s is None else s for a, s in zip(arrays, told, strict=True)], INTS)
    if function.takes_chunks and len({values.dtype for values in arrays}) == 1:
        return function(Tensors(arrays), *given, n_threads=threads)
    chunks = [rows_of(values, 1) for values in arrays]
    results = over_chunks(function, chunks, given, threads, _shifted) if chunks else [pa.array([], function.result)]
    return pa.concat_arrays(results)


def as_column(column: Any, function: Function) -> pa.Array | pa.ChunkedArray:
    """Return what a user calls a column as pyarrow's; a 1-D array is one row, a 2-D array its rows.

    Raises
    ------
    InputTypeError
        For anything else.
    """
    try:
        if isinstance(column, (pa.Array, pa.ChunkedArray)):
            len(column)
            return column
        if is_tensor(column):
            values = as_ndarray(column)
            if values.ndim in (1, 2):
                return rows_of(values, 1 if values.ndim == 1 else len(values))
            msg = f"the array has {values.ndim} axes"
            raise InputTypeError(msg, "1 axis is one row, 2 are a column of rows; put tensors into a list: [array]")
        if exports_arrow(column):
            return pa.array(column) if hasattr(column, "__arrow_c_array__") else pa.chunked_array(column)
    except Aq2Error as error:
        raise error.at(function=function.sql_name) from None
    except SystemError:
        msg = "the column's length is negative"  # a forged struct of the C data interface
        raise InputValueError(msg).at(function=function.sql_name) from None
    msg = f"{function.arguments[0].name} is a {type(column).__name__}"
    hint = "a pyarrow array, a Polars Series, an ndarray, a list of ndarrays, or anything with __arrow_c_array__"
    raise InputTypeError(msg, hint).at(function=function.sql_name)
