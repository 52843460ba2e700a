"""Polars: the namespaces `Expr.aq2` and `Series.aq2`, and the same functions free and typed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from aq2_pipeline import schemes
from aq2_pipeline.errors import Aq2Error, InputTypeError, SchemeError, hand_over
from aq2_pipeline.functions import FUNCTIONS, check_constant

if TYPE_CHECKING:
    from collections.abc import Callable

    from aq2_pipeline.functions import Function

    #: A column: its name, or an expression.
    IntoExpr = pl.Expr | str

__all__ = [
    "dequantize",
    "policy_scheme",
    "quantization_error",
    "quantize",
    "weight_stats",
]

#: The names that arguments after the first have in the struct that carries several columns into one call.
_CARRIED = "__aq2_{}"


@functools.cache
def _dtype(function: Function) -> pl.DataType:
    """Return the function's result type as Polars names it, known before anything runs."""
    return pl.Series(pl.from_arrow(pa.array([], function.result))).dtype


def _run(
    function: Function,
    columns: list[pl.Series],
    constants: dict[int, Any],
    *,
    batch: bool,
    n_threads: int | None = None,
) -> pl.Series:
    """Call the function chunk by chunk, without rechunking the first column.

    Parameters
    ----------
    function : Function
    columns : list of Series
        The arguments that are columns, in order; the first decides the chunks.
    constants : dict
        Position -> value of the others.
    batch : bool
        Whether the first column may be a part of a larger one.
    n_threads : int, optional
        Threads to use.
    """
    first = columns[0]
    results, row = [], 0
    for chunk in first.get_chunks() or [first]:
        pieces = iter([chunk, *(_piece(other, row, len(chunk), len(first)) for other in columns[1:])])
        n = len(columns) + len(constants)
        given = [constants[k] if k in constants else _arrow(function, k, next(pieces)) for k in range(n)]
        try:
            results.append(function(*given, n_threads=n_threads))
        except Aq2Error as error:
            if error.row is not None:
                error.at(row=error.row + row, batch=len(first) if batch else None)
            raise hand_over(error) from None
        row += len(chunk)
    result = pl.Series(pl.from_arrow(pa.chunked_array(results, function.result)))
    if len(result) != len(first):  # Polars does not notice
        msg = f"{function.sql_name} returned {len(result)} rows for {len(first)}"
        raise Aq2Error(msg)
    return result.alias(first.name)


def _arrow(function: Function, k: int, column: pl.Series) -> pa.Array:
    """Return an argument as Arrow holds it; objects would come as their addresses, in bytes."""
    try:
        if column.dtype != pl.Object:
            return column.to_arrow()
    except (pa.ArrowException, pl.exceptions.PanicException):  # a type that only Polars has, such as Int128
        pass
    msg = f"{function.arguments[k].name} are {column.dtype}"
    raise InputTypeError(msg, "cast it to a type that Arrow has").at(function=function.sql_name)


def _piece(column: pl.Series, row: int, n: int, whole: int) -> pl.Series:
    """Return the rows of a column that belong to a chunk of the first; a single value stands for all."""
    if len(column) == 1 and whole != 1:
        return column.new_from_index(0, n)
    return column.slice(row, n).rechunk()


@functools.lru_cache(maxsize=1024)
def _one_column(name: str, constants: tuple[tuple[int, Any], ...]) -> Callable[[pl.Series], pl.Series]:
    """Return the callable of one column: the same object each time, so that Polars merges equal expressions."""
    function, given = FUNCTIONS[name], dict(constants)
    return lambda series: _run(function, [series], given, batch=True)


@functools.lru_cache(maxsize=1024)
def _many_columns(name: str, constants: tuple[tuple[int, Any], ...]) -> Callable[[pl.Series], pl.Series]:
    function, given = FUNCTIONS[name], dict(constants)

    def call(carried: pl.Series) -> pl.Series:
        columns = [carried.struct.field(field) for field in carried.struct.fields]
        return _run(function, columns, given, batch=True)

    return call


def _expression(name: str, first: IntoExpr, *others: Any) -> pl.Expr:
    """Build the expression of a call; what is not an expression is a constant."""
    function = FUNCTIONS[name]
    given: list[Any] = [pl.col(first) if isinstance(first, str) else first, *others]
    while len(given) > function.n_required and given[-1] is None:
        given.pop()
    constants = []
    columns = []
    for k, (value, argument) in enumerate(zip(given, function.arguments, strict=False)):
        if isinstance(value, pl.Expr):
            columns.append(value)
        elif argument.kind == "scheme":
            check_constant(function, argument, value)
            constants.append((k, value))
        else:
            check_constant(function, argument, value)
            columns.append(_literal(value))
    if len(columns) == 1:
        call = _one_column(name, tuple(constants))
        return columns[0].map_batches(call, _dtype(function), is_elementwise=True)
    carried = [columns[0], *(column.alias(_CARRIED.format(k)) for k, column in enumerate(columns[1:]))]
    call = _many_columns(name, tuple(constants))
    return pl.struct(carried).map_batches(call, _dtype(function), is_elementwise=True)


def _literal(value: Any) -> pl.Expr:
    """Return a constant argument: a shape is a list, the rest as Polars takes it."""
    if isinstance(value, (list, tuple)):
        return pl.lit(pl.Series([list(value)]), dtype=None).first()
    return pl.lit(value)


def _scheme(scheme: Any, keywords: dict[str, Any]) -> Any:
    """Return the scheme with its keywords spelled out; a column takes none."""
    if isinstance(scheme, pl.Expr) or _is_column(scheme):
        if any(value is not None for value in keywords.values()):
            msg = "scheme: a column of schemes takes no keywords"
            raise SchemeError(msg, "spell them in the column's names, e.g. 'int4_g64_asym'")
        return scheme
    return schemes.spelled(schemes.parse(scheme, **keywords))


def quantize(
    weights: IntoExpr,
    scheme: int | str | pl.Expr,
    shape: IntoExpr | None = None,
    importance: IntoExpr | None = None,
    *,
    group_size: int | str | None = None,
    symmetric: bool | None = None,
    method: str | None = None,
    rotate: bool | None = None,
) -> pl.Expr:
    """Quantize each row of weights.

    Parameters
    ----------
    weights : str or Expr
        A column of lists, arrays or binary.
    scheme : int, str or Expr
        Bits, a scheme's name, or a column of either.
    shape : str or Expr, optional
        A column of integer lists: the tensor's shape.
    importance : str or Expr, optional
        A column of float lists.
    group_size, symmetric, method, rotate
        Sugar for the parts of a scheme's name.

    Returns
    -------
    Expr
        A struct, `aq2_pipeline.layout.QUANTIZED`; null where the weights are null.

    Raises
    ------
    SchemeError
        For a scheme that cannot be, when the expression is built.

    Examples
    --------
    >>> import polars as pl
    >>> from aq2_pipeline.polars import quantize
    >>> df = pl.DataFrame({"w": [[1.0, -2.0, 0.5]]}, schema={"w": pl.List(pl.Float32)})
    >>> df.select(quantize("w", 4).struct.field("scheme", "length")).row(0)
    ('int4_g128', 3)
    """
    keywords = {"group_size": group_size, "symmetric": symmetric, "method": method, "rotate": rotate}
    return _expression("quantize", weights, _scheme(scheme, keywords), _column(shape), _column(importance))


def quantization_error(
    weights: IntoExpr,
    scheme: int | str | pl.Expr,
    shape: IntoExpr | None = None,
    importance: IntoExpr | None = None,
    *,
    group_size: int | str | None = None,
    symmetric: bool | None = None,
    method: str | None = None,
    rotate: bool | None = None,
) -> pl.Expr:
    """Return what `quantize` would lose in each row; parameters are its.

    Returns
    -------
    Expr
        A struct of float64: mse, rmse, max_abs, sqnr_db (decibels), cosine, bits_per_weight.
    """
    keywords = {"group_size": group_size, "symmetric": symmetric, "method": method, "rotate": rotate}
    return _expression("quantization_error", weights, _scheme(scheme, keywords), _column(shape), _column(importance))


def dequantize(quantized: IntoExpr) -> pl.Expr:
    """Decode each quantized row to a list of float32."""
    return _expression("dequantize", quantized)


def weight_stats(weights: IntoExpr) -> pl.Expr:
    """Return a struct of statistics of each row of weights."""
    return _expression("weight_stats", weights)


def policy_scheme(
    layer_name: IntoExpr, shape: IntoExpr, bit_width: int | pl.Expr, mode: str | pl.Expr = "diffusion"
) -> pl.Expr:
    """Return the scheme that a named policy gives each layer: a column for `quantize`."""
    return _expression("policy_scheme", layer_name, _column(shape), bit_width, mode)


def _is_column(value: Any) -> bool:
    """Whether a value is a column as it stands; a list is one, a tuple is one row's shape."""
    return isinstance(value, pl.Series | list) or any(
        hasattr(value, name) for name in ("__arrow_c_array__", "__arrow_c_stream__", "__array__")
    )


def _column(value: Any) -> Any:
    return pl.col(value) if isinstance(value, str) else value


@pl.api.register_expr_namespace("aq2")
class Aq2Expr:
    """`Expr.aq2`: each function with the expression as its first argument."""

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def quantize(self, scheme: Any, shape: Any = None, importance: Any = None, **keywords: Any) -> pl.Expr:
        """See `aq2_pipeline.polars.quantize`."""
        return quantize(self._expr, scheme, shape, importance, **keywords)

    def quantization_error(self, scheme: Any, shape: Any = None, importance: Any = None, **keywords: Any) -> pl.Expr:
        """See `aq2_pipeline.polars.quantization_error`."""
        return quantization_error(self._expr, scheme, shape, importance, **keywords)

    def dequantize(self) -> pl.Expr:
        """See `aq2_pipeline.polars.dequantize`."""
        return dequantize(self._expr)

    def weight_stats(self) -> pl.Expr:
        """See `aq2_pipeline.polars.weight_stats`."""
        return weight_stats(self._expr)

    def policy_scheme(self, shape: Any, bit_width: Any, mode: Any = "diffusion") -> pl.Expr:
        """See `aq2_pipeline.polars.policy_scheme`."""
        return policy_scheme(self._expr, shape, bit_width, mode)


@pl.api.register_series_namespace("aq2")
class Aq2Series:
    """`Series.aq2`: each function with the series as its first argument, at once."""

    def __init__(self, series: pl.Series) -> None:
        self._series = series

    def call(self, name: str, *others: Any, threads: int | None = None) -> pl.Series:
        """Call a function by its name: what the methods below and `aq2_pipeline.quantize` do."""
        function = FUNCTIONS[name]
        given = [self._series, *others]
        while len(given) > function.n_required and given[-1] is None:
            given.pop()
        columns, constants = [], {}
        for k, (value, argument) in enumerate(zip(given, function.arguments, strict=False)):
            if argument.kind == "scheme" and not _is_column(value):
                constants[k] = value
                continue
            if not _is_column(value):
                check_constant(function, argument, value)
                value = [value]  # noqa: PLW2901 - one for all rows
            column = pl.Series(value)
            if len(column) not in (1, len(self._series)):
                msg = f"{argument.name} has {len(column)} rows, {function.arguments[0].name} {len(self._series)}"
                raise InputTypeError(msg).at(function=function.sql_name)
            columns.append(column)
        return _run(function, columns, constants, batch=False, n_threads=threads)

    def quantize(self, scheme: Any, shape: Any = None, importance: Any = None, **keywords: Any) -> pl.Series:
        """See `aq2_pipeline.polars.quantize`."""
        return self.call("quantize", _scheme(scheme, keywords), shape, importance)

    def quantization_error(self, scheme: Any, shape: Any = None, importance: Any = None, **keywords: Any) -> pl.Series:
        """See `aq2_pipeline.polars.quantization_error`."""
        return self.call("quantization_error", _scheme(scheme, keywords), shape, importance)

    def dequantize(self) -> pl.Series:
        """See `aq2_pipeline.polars.dequantize`."""
        return self.call("dequantize")

    def weight_stats(self) -> pl.Series:
        """See `aq2_pipeline.polars.weight_stats`."""
        return self.call("weight_stats")

    def policy_scheme(self, shape: Any, bit_width: Any, mode: Any = "diffusion") -> pl.Series:
        """See `aq2_pipeline.polars.policy_scheme`."""
        return self.call("policy_scheme", shape, bit_width, mode)
