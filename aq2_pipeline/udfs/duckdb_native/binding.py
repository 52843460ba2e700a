"""What is checked when a statement is bound: counts and types of arguments, and constants."""

from __future__ import annotations

import ctypes
from ctypes import c_void_p
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from aq2_pipeline import schemes
from aq2_pipeline.errors import Aq2Error
from aq2_pipeline.functions import check_constant
from aq2_pipeline.udfs.duckdb_native import capi, vectors
from aq2_pipeline.udfs.duckdb_native.capi import TypeId
from aq2_pipeline.udfs.duckdb_native.general import told
from aq2_pipeline.udfs.sql import check_count, refuse_wide

if TYPE_CHECKING:
    from aq2_pipeline.functions import Argument, Function
    from aq2_pipeline.udfs.duckdb_native.plans import Plans

__all__ = ["BIND", "COPY", "bind_of"]

#: `void (duckdb_bind_info)`
BIND = ctypes.CFUNCTYPE(None, c_void_p)
#: `void *(void *)`
COPY = ctypes.CFUNCTYPE(c_void_p, c_void_p)

_INTEGERS = range(TypeId.TINYINT, TypeId.UINTEGER + 1)
#: Constants of these kinds are looked at; those of the others are columns like any other.
_CHECKED = ("scheme", "integer")
#: The type of a parameter that is not known yet.
_UNKNOWN = 0


class _Arguments:
    """The argument expressions of one call, destroyed at the end."""

    def __init__(self, api: Any, info: int) -> None:
        self.api, self.info = api, info
        n = api.scalar_function_bind_get_argument_count(info)
        self.expressions = [api.scalar_function_bind_get_argument(info, k) for k in range(n)]
        self.kinds = [api.expression_return_type(expression) for expression in self.expressions]
        self.types = [vectors.type_of(api, kind) for kind in self.kinds]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for kind in self.kinds:
            self.api.destroy_logical_type(ctypes.byref(c_void_p(kind)))
        for expression in self.expressions:
            self.api.destroy_expression(ctypes.byref(c_void_p(expression)))

    def constant(self, k: int) -> int | str | None:
        """Return the integer or string that an argument always is; None for anything else, NULL included."""
        text = self.types[k][0] == TypeId.VARCHAR
        if not (text or self.types[k][0] in _INTEGERS) or not self.api.expression_is_foldable(self.expressions[k]):
            return None
        context, value = c_void_p(), c_void_p()
        self.api.scalar_function_get_client_context(self.info, ctypes.byref(context))
        try:
            error = c_void_p(self.api.expression_fold(context, self.expressions[k], ctypes.byref(value)))
            if error:  # an expression that fails does so when it runs, or never
                failed = self.api.error_data_has_error(error)
                self.api.destroy_error_data(ctypes.byref(error))
                if failed:
                    return None
            if not value or self.api.is_null_value(value):
                return None
            if text:
                return capi.take_text(self.api, self.api.get_varchar(value))
            return int(self.api.get_int64(value))
        finally:
            self.api.destroy_value(ctypes.byref(value))
            self.api.destroy_client_context(ctypes.byref(context))

    def arrow_types(self) -> list[pa.DataType]:
        """Return the types as an Arrow UDF would see them; null where one is not known yet."""
        known = [k for k, kind in enumerate(self.types) if kind[0] not in (_UNKNOWN, TypeId.SQLNULL)]
        found = dict(zip(known, vectors.arrow_types([self.kinds[k] for k in known]), strict=True)) if known else {}
        return [found.get(k, pa.null()) for k in range(len(self.kinds))]


def _check_types(function: Function, types: list[pa.DataType], scheme: str | None) -> None:
    """Refuse what the function refuses of these types: it is asked with no rows."""
    for kind, argument in zip(types, function.arguments, strict=False):
        refuse_wide(kind, argument)
    fields = [pa.field(f"column{k}", kind) for k, kind in enumerate(types)]
    columns: list[Any] = [column.combine_chunks() for column in pa.schema(fields).empty_table().columns]
    if scheme is not None and schemes.parse(scheme).input_dtype is not None:
        columns[1] = scheme  # the type of the weights must go with it
    function(*columns)


def _looked_at(argument: Argument) -> bool:
    return argument.kind in _CHECKED or argument.name == "mode"


def _bind(function: Function, plans: Plans, api: Any, info: int) -> int:
    """Check a call; return the address of what its bodies are told."""
    with _Arguments(api, info) as given:
        check_count(function, len(given.kinds))
        scheme = None
        for k, argument in enumerate(function.arguments[: len(given.kinds)]):
            value = given.constant(k) if _looked_at(argument) else None
            if value is not None:
                checked = check_constant(function, argument, value)
                scheme = checked if argument.kind == "scheme" else scheme
        types = given.arrow_types()
        try:
            _check_types(function, types, scheme)
        except Aq2Error as error:
            raise error.at(function=function.sql_name) from None
        return plans.bound(function, tuple(given.types), scheme)


def bind_of(function: Function, plans: Plans, record: Any) -> Any:
    """Return the bind callback of a function, as a C function; like a body, it lets no exception out."""
    api, copy = capi.load(), COPY(_same)

    def bind(info: int) -> None:
        try:
            call = _bind(function, plans, api, info)
            plans.speed_up(function, record, call)
            api.scalar_function_set_bind_data(info, call, None)
            api.scalar_function_set_bind_data_copy(info, ctypes.cast(copy, c_void_p))
        except BaseException as error:  # noqa: BLE001
            api.scalar_function_bind_set_error(info, told(function, error))

    return BIND(bind)


def _same(address: int) -> int:
    """Copy what a call was bound to: it lives for ever and never changes, so it is its own copy."""
    return address
