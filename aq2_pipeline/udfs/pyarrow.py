"""pyarrow: the functions in its compute registry, one exact signature each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from aq2_pipeline import layout
from aq2_pipeline.errors import Aq2Error, EngineError
from aq2_pipeline.functions import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aq2_pipeline.functions import Function

__all__ = ["register_pyarrow"]

#: The registry matches types exactly, so each kind of argument has one.
_TYPES = {
    "weights": layout.FLOATS,
    "quantized": layout.QUANTIZED,
    "scheme": pa.string(),
    "shape": layout.INTS,
    "text": pa.string(),
    "integer": pa.int64(),
}


def _udf(function: Function) -> Callable[..., pa.Array]:
    def call(context: Any, *columns: Any) -> pa.Array:
        n = context.batch_length
        given = []
        for column, argument in zip(columns, function.arguments, strict=False):
            scalar = isinstance(column, pa.Scalar)
            if scalar and argument.kind == "scheme" and column.is_valid:
                given.append(column.as_py())
            else:  # a null scheme, too: it fails only rows that have weights
                given.append(pa.repeat(column, n) if scalar else column)
        try:
            return function(*given)
        except Aq2Error as error:
            raise (error.at(batch=n) if error.row is not None else error) from None

    return call


def register_pyarrow() -> None:
    """Register the functions with `pyarrow.compute`; a second call changes nothing.

    The types are exact: weights are ``large_list<float32>``, a scheme is a
    ``string``, a shape a ``large_list<int64>``. A function that takes a shape is
    registered with it too, under its name with ``_shaped``.

    Raises
    ------
    EngineError
        If somebody else has taken a name.

    Examples
    --------
    >>> import pyarrow as pa, pyarrow.compute as pc
    >>> import aq2_pipeline
    >>> aq2_pipeline.register_pyarrow()
    >>> weights = pa.array([[1.0, -2.0, 0.5]], pa.large_list(pa.float32()))
    >>> pc.call_function("aq2_quantize", [weights, pa.scalar("int4_g128")])[0]["length"].as_py()
    3
    """
    for function in FUNCTIONS.values():
        variants = {function.sql_name: function.n_required}
        if any(a.kind == "shape" and a.optional for a in function.arguments):
            variants[f"{function.sql_name}_shaped"] = 1 + [a.kind for a in function.arguments].index("shape")
        for name, n in variants.items():
            _register(name, function, n)


def _register(name: str, function: Function, n_arguments: int) -> None:
    doc = {"summary": function.summary, "description": "See the documentation of aq2-pipeline."}
    if name in pc.list_functions():
        if pc.get_function(name)._doc.summary != function.summary:  # noqa: SLF001 - the only trace it leaves
            msg = f"register_pyarrow: the name {name!r} is taken in this process"
            raise EngineError(msg)
        return
    types = {argument.name: _TYPES[argument.kind] for argument in function.arguments[:n_arguments]}
    pc.register_scalar_function(_udf(function), name, doc, types, function.result)
