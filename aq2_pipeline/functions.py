"""The one table of functions. Every engine reads it; none adds a function of its own."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aq2_pipeline import layout, ops, policy, schemes
from aq2_pipeline.errors import Aq2Error, InputTypeError, InputValueError, SchemeError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

__all__ = ["FUNCTIONS", "Argument", "Function", "check_constant", "spelled_scheme", "thread_count"]


@dataclass(frozen=True)
class Argument:
    """A positional argument.

    Attributes
    ----------
    name : str
    kind : {"weights", "quantized", "scheme", "shape", "importance", "text", "integer"}
        What it holds.
    optional : bool
        Whether it may be left out.
    """

    name: str
    kind: str
    optional: bool = False


@dataclass(frozen=True)
class Function:
    """One function on every engine.

    Attributes
    ----------
    name : str
        Its name in Python and Polars; with the prefix ``aq2_`` in SQL and pyarrow.
    arguments : tuple of Argument
    result : pyarrow.DataType
    implementation : callable
        ``implementation(*columns, n_threads=None, failures=None)``, where a
        scheme may also be a constant.
    summary : str
    takes_chunks : bool
        Whether the first argument may be a chunked array, and is then one job.
    """

    name: str
    arguments: tuple[Argument, ...]
    result: pa.DataType
    implementation: Callable[..., pa.Array]
    summary: str
    takes_chunks: bool = False

    @property
    def sql_name(self) -> str:
        """The name in SQL and pyarrow."""
        return f"aq2_{self.name}"

    @property
    def n_required(self) -> int:
        """Arguments that must be given."""
        return sum(not argument.optional for argument in self.arguments)

    def __call__(self, *columns: Any, **options: Any) -> pa.Array:
        """Run it; errors name it."""
        try:
            return self.implementation(*columns, **options)
        except Aq2Error as error:
            raise error.at(function=self.sql_name) from None


def _policy_scheme(*columns: pa.Array, n_threads: int | None = None, failures: Any = None) -> pa.Array:
    del n_threads  # names are not worth a thread
    return ops.map_rows(policy.policy_scheme, *columns, failures=failures)


_WEIGHTS = Argument("weights", "weights")
_CODED = (
    _WEIGHTS,
    Argument("scheme", "scheme"),
    Argument("shape", "shape", optional=True),
    Argument("importance", "importance", optional=True),
)
_LAYER = (
    Argument("layer_name", "text"),
    Argument("shape", "shape"),
    Argument("bit_width", "integer"),
    Argument("mode", "text"),
)

FUNCTIONS = {
    function.name: function
    for function in (
        Function(
            "quantize",
            _CODED,
            layout.QUANTIZED,
            ops.quantize,
            "Quantize each row of weights.",
            takes_chunks=True,
        ),
        Function(
            "dequantize",
            (Argument("quantized", "quantized"),),
            layout.FLOATS,
            ops.dequantize,
            "Decode each quantized row.",
        ),
        Function(
            "quantization_error",
            _CODED,
            layout.ERROR,
            ops.quantization_error,
            "What quantizing would lose, without decoding to memory.",
            takes_chunks=True,
        ),
        Function("weight_stats", (_WEIGHTS,), layout.STATS, ops.weight_stats, "Statistics of each row of weights."),
        Function("policy_scheme", _LAYER, layout.TEXT, _policy_scheme, "The scheme that a named policy gives a layer."),
    )
}


def thread_count(n: Any) -> int | None:
    """Return a number of threads that a user asked for; None is the limit of this process.

    Raises
    ------
    InputValueError
        For anything else.
    """
    try:
        count = None if n is None or isinstance(n, bool) else operator.index(n)
    except TypeError:
        count = None
    if n is None or (count is not None and count >= 1):
        return count
    msg = f"threads: {n!r} is no number of threads"
    raise InputValueError(msg, "an integer from 1, or None for the cores of this process")


def spelled_scheme(function: Function, scheme: Any, keywords: dict[str, Any]) -> str:
    """Return a constant scheme with its keywords spelled out.

    Raises
    ------
    SchemeError
        For a scheme that cannot be, or a contradiction.
    """
    try:
        return schemes.spelled(schemes.parse(scheme, **keywords))
    except SchemeError as error:
        raise error.at(function=function.sql_name) from None


def check_constant(function: Function, argument: Argument, value: Any) -> Any:
    """Check a constant when an expression is built; return it as something hashable.

    Raises
    ------
    SchemeError
        For a scheme, width or mode that cannot be.
    InputTypeError
        For a constant of a wrong type.
    """
    place = {"function": function.sql_name}
    try:
        if argument.kind == "scheme":
            return spelled_scheme(function, value, {})
        if argument.name == "mode":
            return policy.mode_name(value)
        if argument.name == "bit_width":
            return policy.checked_width(value)
    except SchemeError as error:
        raise error.at(**place) from None
    if value is None or (argument.kind == "text" and isinstance(value, str)):
        return value
    if argument.kind in ("shape", "importance"):
        number = int if argument.kind == "shape" else (int, float)
        try:
            numbers = tuple(getattr(x, "item", lambda x=x: x)() for x in value)
        except TypeError:
            numbers = (None,)
        if all(isinstance(x, number) and not isinstance(x, bool) for x in numbers):
            return numbers
    msg = f"{argument.name} is {value!r}"
    raise InputTypeError(msg, "a column, or one value for all rows").at(**place)
