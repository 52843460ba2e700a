"""DuckDB's C API, as the Python wheel exports it, through ctypes.

The wheel exports the whole documented API on purpose. Which of its functions are
used here is the table `SIGNATURES`; `load` fails where one of them is missing.
Handles are plain addresses.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from ctypes import POINTER, c_bool, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any

__all__ = ["SIGNATURES", "Access", "Descriptor", "TypeId", "library_path", "load", "take_text"]

_P, _PP, _N, _S = c_void_p, POINTER(c_void_p), c_uint64, c_char_p

#: name -> (result, arguments)
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "array_type_array_size": (_N, (_P,)),
    "array_type_child_type": (_P, (_P,)),
    "array_vector_get_child": (_P, (_P,)),
    "connect": (c_int32, (_P, _PP)),
    "connection_get_arrow_options": (None, (_P, _PP)),
    "create_config": (c_int32, (_PP,)),
    "create_data_chunk": (_P, (_PP, _N)),
    "create_list_type": (_P, (_P,)),
    "create_logical_type": (_P, (c_int32,)),
    "create_scalar_function": (_P, ()),
    "create_struct_type": (_P, (_PP, POINTER(c_char_p), _N)),
    "data_chunk_get_column_count": (_N, (_P,)),
    "data_chunk_get_size": (_N, (_P,)),
    "data_chunk_get_vector": (_P, (_P, _N)),
    "data_chunk_set_size": (None, (_P, _N)),
    "data_chunk_to_arrow": (_P, (_P, _P, _P)),
    "destroy_client_context": (None, (_PP,)),
    "destroy_config": (None, (_PP,)),
    "destroy_data_chunk": (None, (_PP,)),
    "destroy_error_data": (None, (_PP,)),
    "destroy_expression": (None, (_PP,)),
    "destroy_logical_type": (None, (_PP,)),
    "destroy_scalar_function": (None, (_PP,)),
    "destroy_value": (None, (_PP,)),
    "disconnect": (None, (_PP,)),
    "error_data_has_error": (c_bool, (_P,)),
    "error_data_message": (_S, (_P,)),
    "expression_fold": (_P, (_P, _P, _PP)),
    "expression_is_foldable": (c_bool, (_P,)),
    "expression_return_type": (_P, (_P,)),
    "free": (None, (_P,)),
    "get_int64": (c_int64, (_P,)),
    "get_type_id": (c_int32, (_P,)),
    "get_varchar": (_P, (_P,)),
    "is_null_value": (c_bool, (_P,)),
    "list_type_child_type": (_P, (_P,)),
    "list_vector_get_child": (_P, (_P,)),
    "list_vector_get_size": (_N, (_P,)),
    "list_vector_reserve": (c_int32, (_P, _N)),
    "list_vector_set_size": (c_int32, (_P, _N)),
    "malloc": (_P, (_N,)),
    "open_ext": (c_int32, (_S, _PP, _P, _PP)),
    "register_scalar_function": (c_int32, (_P, _P)),
    "register_static_extension": (c_int32, (_P,)),
    "scalar_function_bind_get_argument": (_P, (_P, _N)),
    "scalar_function_bind_get_argument_count": (_N, (_P,)),
    "scalar_function_bind_get_extra_info": (_P, (_P,)),
    "scalar_function_bind_set_error": (None, (_P, _S)),
    "scalar_function_get_bind_data": (_P, (_P,)),
    "scalar_function_get_client_context": (None, (_P, _PP)),
    "scalar_function_get_extra_info": (_P, (_P,)),
    "scalar_function_set_bind": (None, (_P, _P)),
    "scalar_function_set_bind_data": (None, (_P, _P, _P)),
    "scalar_function_set_bind_data_copy": (None, (_P, _P)),
    "scalar_function_set_error": (None, (_P, _S)),
    "scalar_function_set_extra_info": (None, (_P, _P, _P)),
    "scalar_function_set_function": (None, (_P, _P)),
    "scalar_function_set_name": (None, (_P, _S)),
    "scalar_function_set_return_type": (None, (_P, _P)),
    "scalar_function_set_special_handling": (None, (_P,)),
    "scalar_function_set_varargs": (None, (_P, _P)),
    "set_config": (c_int32, (_P, _S, _S)),
    "struct_type_child_count": (_N, (_P,)),
    "struct_type_child_name": (_P, (_P, _N)),
    "struct_type_child_type": (_P, (_P, _N)),
    "struct_vector_get_child": (_P, (_P, _N)),
    "to_arrow_schema": (_P, (_P, _PP, POINTER(c_char_p), _N, _P)),
    "vector_assign_string_element_len": (None, (_P, _N, _P, _N)),
    "vector_ensure_validity_writable": (None, (_P,)),
    "vector_get_column_type": (_P, (_P,)),
    "vector_get_data": (_P, (_P,)),
    "vector_get_validity": (_P, (_P,)),
    "vector_reference_vector": (None, (_P, _P)),
}


class TypeId:
    """The logical types that are told apart, by the numbers of the C API."""

    TINYINT, SMALLINT, INTEGER, BIGINT = 2, 3, 4, 5
    UTINYINT, USMALLINT, UINTEGER, UBIGINT = 6, 7, 8, 9
    FLOAT, DOUBLE = 10, 11
    VARCHAR, BLOB = 17, 18
    LIST, STRUCT, BIT, ARRAY, ANY, SQLNULL = 24, 25, 29, 33, 34, 36


class Descriptor(ctypes.Structure):
    """`duckdb_extension_descriptor`, layout 1."""

    _fields_ = (
        ("version", c_uint32),
        ("set_error", c_void_p),
        ("internal", c_void_p),
        ("name", c_char_p),
        ("extension_version", c_char_p),
        ("api_version", c_char_p),
        ("entry_cpp", c_void_p),
        ("entry_capi_v1", c_void_p),
        ("entry_capi_v2", c_void_p),
    )


class Access(ctypes.Structure):
    """`duckdb_extension_access`: what an entry is handed."""

    _fields_ = (
        ("set_error", c_void_p),
        ("get_database", ctypes.CFUNCTYPE(c_void_p, c_void_p)),
        ("get_api", c_void_p),
    )


class _Functions:
    """The functions of `SIGNATURES` as attributes, without the prefix."""

    def __init__(self, library: Any) -> None:
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, f"duckdb_{name}")
            function.restype, function.argtypes = result, list(arguments)
            setattr(self, name, function)


def library_path() -> str:
    """Return the file of DuckDB's own extension module, which holds the API."""
    path = importlib.import_module("_duckdb").__file__
    if path is None:
        msg = "the module _duckdb has no file"
        raise OSError(msg)
    return path


@functools.cache
def load() -> Any:
    """Return the API.

    Raises
    ------
    OSError
        If the library cannot be opened.
    AttributeError
        If it lacks a function.
    """
    return _Functions(ctypes.CDLL(library_path()))


def take_text(api: Any, address: int | None) -> str:
    """Return a text that DuckDB allocated, and free it."""
    if not address:
        return ""
    text = ctypes.string_at(address).decode(errors="replace")
    api.free(address)
    return text
