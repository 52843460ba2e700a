"""Polars: the namespaces `Expr.aq2` and `Series.aq2`, and the same functions free and typed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from aq2_pipeline import schemes
from aq2_pipeline.arguments import as_argument, is_column, over_chunks
from aq2_pipeline.errors import Aq2Error, InputTypeError, hand_over
from aq2_pipeline.functions import FUNCTIONS, check_constant, spelled_scheme
from aq2_pipeline.udfs.polars_forks import refuse_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from aq2_pipeline.functions import Argument, Function

    #: A column: its name, or an expression.
    IntoExpr = pl.Expr | str

__all__ = [
    "dequantize",
    "policy_scheme",
    "quantization_error",
    "quantize",
    "weight_stats",
]

#: Polars' own layouts: binary as views, which the older level copies.
_AS_IT_IS = pl.CompatLevel.newest()
#: The names that columns have in the struct that carries several into one call.
_CARRIED = "__aq2_{}"


@functools.cache
def _dtype(function: Function) -> pl.DataType:
    """Return the function's result type as Polars names it, known before anything runs."""
    return pl.Series(pl.from_arrow(pa.array([], function.result))).dtype


def _run(function: Function, first: pl.Series, others: list[Any], *, batch: bool, threads: int | None) -> pl.Series:
    """Call the function chunk by chunk, without rechunking the first column.

    Parameters
    ----------
    function : Function
    first : Series
        The first argument.
    others : list
        The other arguments, as users write them; a column of one row stands for all.
    batch : bool
        Whether the first column may be a part of a larger one.
    threads : int, optional
    """
    refuse_after_fork(function.name)
    n = len(first)
    given = []
    for argument, value in zip(function.arguments[1:], others, strict=False):
        told = value
        if isinstance(value, pl.Series):
            told = _arrow(function, argument, value.new_from_index(0, n) if len(value) == 1 else value.rechunk())
        given.append(as_argument(function, argument, told, n))

    def place(error: Aq2Error, row: int) -> Aq2Error:
        if error.row is not None:
            error.at(row=error.row + row, batch=n if batch else None)
        return hand_over(error)

    chunks = [_arrow(function, function.arguments[0], chunk) for chunk in first.get_chunks() or [first]]
    results = over_chunks(function, chunks, given, threads, place)
    found = results[0] if len(results) == 1 else pa.chunked_array(results, function.result)
    result = pl.Series(pl.from_arrow(found, rechunk=False))  # of several chunks it would copy
    if len(result) != n:  # Polars does not notice
        msg = f"{function.sql_name} returned {len(result)} rows for {n}"
        raise Aq2Error(msg)
    return result.alias(first.name)


def _arrow(function: Function, argument: Argument, column: pl.Series) -> pa.Array:
    """Return a series of one chunk as Arrow holds it; objects would come as their addresses, in bytes."""
    try:
        if column.dtype != pl.Object:
            return column.to_arrow(compat_level=_AS_IT_IS)
    except (pa.ArrowException, pl.exceptions.PanicException):  # a type that only Polars has, such as Int128
        pass
    msg = f"{argument.name} are {column.dtype}"
    raise InputTypeError(msg, "cast it to a type that Arrow has").at(function=function.sql_name)


#: A call's arguments after the first: ("column", None) for the next column, or ("constant", value).
_Others = tuple[tuple[str, Any], ...]


@functools.lru_cache(maxsize=1024)
def _callable(name: str, others: _Others) -> Callable[[pl.Series], pl.Series]:
    """Return the callable of an expression: the same object each time, so that Polars merges equal expressions."""
    function = FUNCTIONS[name]
    n_columns = 1 + sum(kind == "column" for kind, _ in others)

    def call(series: pl.Series) -> pl.Series:
        columns = [series] if n_columns == 1 else series.struct.unnest().get_columns()
        if len(columns) != n_columns:
            msg = f"{len(columns)} columns for {n_columns} arguments"
            raise InputTypeError(msg, "an expression of several columns goes in alone").at(function=function.sql_name)
        rest = iter(columns[1:])
        given = [next(rest) if kind == "column" else value for kind, value in others]
        return _run(function, columns[0].alias(series.name), given, batch=True, threads=None)

    return call


def _expression(name: str, first: IntoExpr, *others: Any) -> pl.Expr:
    """Build the expression of a call; what is not an expression or a column is a constant, checked now."""
    function = FUNCTIONS[name]
    refuse_after_fork(function.name)
    columns = [pl.col(first) if isinstance(first, str) else first]
    told: list[tuple[str, Any]] = []
    for argument, value in zip(function.arguments[1:], others, strict=False):
        if isinstance(value, pl.Series):
            value = pl.lit(value)  # noqa: PLW2901 - a column as an expression has it
        if isinstance(value, pl.Expr):
            columns.append(value.alias(_CARRIED.format(len(columns))))
            told.append(("column", None))
        else:
            told.append(("constant", check_constant(function, argument, value)))
    call = _callable(name, tuple(told))
    if len(columns) == 1:
        return columns[0].map_batches(call, _dtype(function), is_elementwise=True)
    return pl.struct(columns).map_batches(call, _dtype(function), is_elementwise=True)


def _scheme(name: str, scheme: Any, keywords: dict[str, Any]) -> Any:
    """Return the scheme with its keywords spelled out; a column takes none."""
    function = FUNCTIONS[name]
    if isinstance(scheme, pl.Expr) or is_column(function.arguments[1], scheme):
        schemes.refuse_keywords(keywords)
        return scheme
    return spelled_scheme(function, scheme, keywords)


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
    return _expression("quantize", weights, _scheme("quantize", scheme, keywords), _column(shape), _column(importance))


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
    told = _scheme("quantization_error", scheme, keywords)
    return _expression("quantization_error", weights, told, _column(shape), _column(importance))


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

    def _call(self, name: str, *others: Any, threads: int | None = None) -> pl.Series:
        return _run(FUNCTIONS[name], self._series, list(others), batch=False, threads=threads)

    def quantize(self, scheme: Any, shape: Any = None, importance: Any = None, **keywords: Any) -> pl.Series:
        """See `aq2_pipeline.polars.quantize`."""
        return self._call("quantize", _scheme("quantize", scheme, keywords), shape, importance)

    def quantization_error(self, scheme: Any, shape: Any = None, importance: Any = None, **keywords: Any) -> pl.Series:
        """See `aq2_pipeline.polars.quantization_error`."""
        told = _scheme("quantization_error", scheme, keywords)
        return self._call("quantization_error", told, shape, importance)

    def dequantize(self) -> pl.Series:
        """See `aq2_pipeline.polars.dequantize`."""
        return self._call("dequantize")

    def weight_stats(self) -> pl.Series:
        """See `aq2_pipeline.polars.weight_stats`."""
        return self._call("weight_stats")

    def policy_scheme(self, shape: Any, bit_width: Any, mode: Any = "diffusion") -> pl.Series:
        """See `aq2_pipeline.polars.policy_scheme`."""
        return self._call("policy_scheme", shape, bit_width, mode)
