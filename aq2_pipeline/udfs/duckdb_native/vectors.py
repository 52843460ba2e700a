"""DuckDB's vectors as Arrow columns, and Arrow columns into result vectors: what the general body stands on.

Lists and arrays of FLOAT, which may be huge, are read where they lie. Everything
else goes through DuckDB's own conversion, which copies it and gives the types
that an Arrow UDF sees.

Facts that decide the code here, tested with DuckDB 2.0.0: the C API flattens
the chunk before a function sees it, children of lists included; the entry of a
NULL row is garbage; a NULL struct row must be NULL in every child too, or DuckDB
copies strings that were never written.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline.errors import EngineError
from aq2_pipeline.udfs.duckdb_native import capi
from aq2_pipeline.udfs.duckdb_native.capi import TypeId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["arrow_types", "read", "type_of", "validity", "write"]

#: As in `writing`.
_MOST_FLOATS, _SPARE = 1 << 33, 1 << 16


class _CStruct(ctypes.Structure):
    """Room for an ArrowSchema (72 bytes) or an ArrowArray (80)."""

    _fields_ = (("words", ctypes.c_uint64 * 10),)


@functools.cache
def _options(lossless: bool) -> c_void_p:  # noqa: FBT001
    """Return Arrow options for conversions, of a small database of our own.

    The options of a user's connection would point to it after it is closed.
    """
    api = capi.load()
    config, database, connection, options = c_void_p(), c_void_p(), c_void_p(), c_void_p()
    settings = {
        "threads": "1",
        "arrow_lossless_conversion": str(lossless).lower(),
        "produce_arrow_string_view": "false",
    }
    api.create_config(ctypes.byref(config))
    for name, value in settings.items():
        api.set_config(config, name.encode(), value.encode())
    failed = api.open_ext(None, ctypes.byref(database), config, None)
    api.destroy_config(ctypes.byref(config))
    if failed or api.connect(database, ctypes.byref(connection)):
        msg = "DuckDB opens no database for Arrow conversions"
        raise EngineError(msg)
    api.connection_get_arrow_options(connection, ctypes.byref(options))
    return options  # the database and the connection live as long as the process


def _raise(api: Any, error: int | None) -> None:
    if error and api.error_data_has_error(error):
        message = (api.error_data_message(error) or b"").decode(errors="replace")
        api.destroy_error_data(ctypes.byref(c_void_p(error)))
        raise EngineError(message)
    if error:
        api.destroy_error_data(ctypes.byref(c_void_p(error)))


class _Types:
    """Logical types of some vectors or expressions, destroyed at the end."""

    def __init__(self, handles: Sequence[int]) -> None:
        self.handles = (c_void_p * max(len(handles), 1))(*handles)

    def __enter__(self) -> Any:
        return self.handles

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            capi.load().destroy_logical_type(ctypes.byref(c_void_p(handle)))


def type_of(api: Any, kind: int) -> tuple[Any, ...]:
    """Return a logical type as a tuple: its id, and what its children are; destroys nothing."""
    found = api.get_type_id(kind)
    if found in (TypeId.LIST, TypeId.ARRAY):
        child_of = api.list_type_child_type if found == TypeId.LIST else api.array_type_child_type
        with _Types([child_of(kind)]) as (child,):
            size = (api.array_type_array_size(kind),) if found == TypeId.ARRAY else ()
            return (found, type_of(api, child), *size)
    if found == TypeId.STRUCT:
        fields = []
        for k in range(api.struct_type_child_count(kind)):
            name = capi.take_text(api, api.struct_type_child_name(kind, k))
            with _Types([api.struct_type_child_type(kind, k)]) as (child,):
                fields.append((name, type_of(api, child)))
        return (found, tuple(fields))
    return (found,)


def _holds(kind: tuple[Any, ...], wanted: int) -> bool:
    return kind[0] == wanted or any(isinstance(part, tuple) and _holds(part, wanted) for part in kind[1:])


def arrow_types(kinds: Sequence[int]) -> list[pa.DataType]:
    """Return logical types as an Arrow UDF would see them; BIT as what says that it is BIT."""
    api, n = capi.load(), len(kinds)
    schema = _CStruct()
    names = (ctypes.c_char_p * max(n, 1))(*(f"column{k}".encode() for k in range(n)))
    lossless = any(_holds(type_of(api, kind), TypeId.BIT) for kind in kinds)
    handles = (c_void_p * max(n, 1))(*kinds)
    _raise(api, api.to_arrow_schema(_options(lossless), handles, names, n, ctypes.byref(schema)))
    return [field.type for field in pa.Schema._import_from_c(ctypes.addressof(schema))]  # noqa: SLF001


def _converted(vectors: Sequence[int], n: int) -> list[pa.Array]:
    """Return vectors as DuckDB itself converts them."""
    api = capi.load()
    with _Types([api.vector_get_column_type(vector) for vector in vectors]) as kinds:
        types = arrow_types(kinds)
        lossless = any(isinstance(kind, pa.OpaqueType) for kind in types)
        chunk, array = c_void_p(api.create_data_chunk(kinds, len(vectors))), _CStruct()
    if not chunk:
        msg = "DuckDB makes no chunk of these types"
        raise EngineError(msg)
    try:
        for k, vector in enumerate(vectors):
            api.vector_reference_vector(api.data_chunk_get_vector(chunk, k), vector)
        api.data_chunk_set_size(chunk, n)
        _raise(api, api.data_chunk_to_arrow(_options(lossless), chunk, ctypes.byref(array)))
    finally:
        api.destroy_data_chunk(ctypes.byref(chunk))
    whole = pa.Array._import_from_c(ctypes.addressof(array), pa.struct(list(enumerate_fields(types))))  # noqa: SLF001
    return [whole.field(k) for k in range(len(types))]


def enumerate_fields(types: Sequence[pa.DataType]) -> list[pa.Field]:
    """Return numbered fields of types."""
    return [pa.field(f"column{k}", kind) for k, kind in enumerate(types)]


def numbers(address: int | None, dtype: Any, n: int) -> Array:
    """Return n numbers that begin at an address, as they lie there."""
    if not address or n == 0:
        return np.empty(0, dtype)
    kind = np.dtype(dtype)
    return np.frombuffer((ctypes.c_char * (n * kind.itemsize)).from_address(address), kind, n)


def validity(api: Any, vector: int, n: int) -> Array | None:
    """Return which of the first n rows are not NULL; None where all are."""
    mask = api.vector_get_validity(vector)
    if not mask:
        return None
    words = numbers(mask, np.uint8, 8 * ((n + 63) // 64))
    return np.unpackbits(words, bitorder="little")[:n].view(bool)


def _floats(api: Any, child: int, size: int) -> pa.Array:
    """Return the FLOAT values of a list's child, as they lie there."""
    address = api.vector_get_data(child)
    mask = api.vector_get_validity(child)
    values = pa.foreign_buffer(address, 4 * size) if size else pa.py_buffer(b"")
    bitmap = pa.foreign_buffer(mask, 8 * ((size + 63) // 64)) if mask and size else None
    return pa.Array.from_buffers(pa.float32(), size, [bitmap, values])


def _bitmap(valid: Array | None) -> pa.Buffer | None:
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _float_lists(api: Any, vector: int, n: int) -> pa.Array:
    """Return a FLOAT[] vector as a list view over the memory of DuckDB, which may itself be the user's."""
    size = api.list_vector_get_size(vector)
    entries = numbers(api.vector_get_data(vector), np.int64, 2 * n).reshape(n, 2)
    valid = validity(api, vector, n)
    kept = entries if valid is None else np.where(valid[:, None], entries, 0)
    starts, sizes = (pa.py_buffer(np.ascontiguousarray(column)) for column in kept.T)
    child = _floats(api, api.list_vector_get_child(vector), size)
    kind = pa.large_list_view(pa.field("l", pa.float32()))
    return pa.Array.from_buffers(kind, n, [_bitmap(valid), starts, sizes], children=[child])


def _float_arrays(api: Any, vector: int, n: int, width: int) -> pa.Array:
    """Return a FLOAT[n] vector over the memory of DuckDB."""
    child = _floats(api, api.array_vector_get_child(vector), n * width)
    kind = pa.list_(pa.float32(), width)
    return pa.Array.from_buffers(kind, n, [_bitmap(validity(api, vector, n))], children=[child])


def read(chunk: int, *, copy: bool = False) -> list[pa.Array]:
    """Return a chunk's vectors as Arrow columns; what is not copied lives as long as the chunk.

    Parameters
    ----------
    chunk : int
    copy : bool
        Leave all to DuckDB's conversion, whose types are those of an Arrow UDF.
    """
    api = capi.load()
    n = api.data_chunk_get_size(chunk)
    vectors = [api.data_chunk_get_vector(chunk, k) for k in range(api.data_chunk_get_column_count(chunk))]
    found: dict[int, pa.Array] = {}
    for vector in vectors:
        with _Types([api.vector_get_column_type(vector)]) as (handle,):
            kind = type_of(api, handle)
        if kind[0] == TypeId.SQLNULL:
            found[vector] = pa.nulls(n)
        elif not copy and kind == (TypeId.LIST, (TypeId.FLOAT,)):
            found[vector] = _float_lists(api, vector, n)
        elif not copy and kind[:2] == (TypeId.ARRAY, (TypeId.FLOAT,)):
            found[vector] = _float_arrays(api, vector, n, kind[2])
    others = [vector for vector in vectors if vector not in found]
    if others:
        found.update(zip(others, _converted(others, n), strict=True))
    return [found[vector] for vector in vectors]


def _set_validity(api: Any, vector: int, valid: Array) -> None:
    """Write which rows are not NULL, whatever was written before."""
    if valid.all() and not api.vector_get_validity(vector):
        return
    api.vector_ensure_validity_writable(vector)
    bits = np.packbits(valid, bitorder="little")
    ctypes.memmove(api.vector_get_validity(vector), bits.ctypes.data, bits.size)


def _valid_of(column: pa.Array) -> Array:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)


def write(vector: int, column: pa.Array, parent: Array | None = None) -> None:
    """Write an Arrow column of one of the types of `layout` into a vector; where the parent is NULL, it is too.

    Raises
    ------
    MemoryError
        If DuckDB has no room for a list.
    """
    api, n = capi.load(), len(column)
    valid = _valid_of(column)
    if parent is not None:
        valid &= parent
    _set_validity(api, vector, valid)
    kind, buffers = column.type, column.buffers()
    if pt.is_struct(kind):
        for k in range(kind.num_fields):
            write(api.struct_vector_get_child(vector, k), column.field(k), valid)
        return
    if n == 0:
        return
    if pt.is_large_binary(kind) or pt.is_large_string(kind):
        offsets = numbers(buffers[1].address, np.int64, n + 1)
        _check_room(api, 2 * int(offsets[-1] - offsets[0]))
        _write_strings(vector, offsets, buffers[2], valid)
        return
    if not pt.is_large_list(kind):
        width = kind.bit_width // 8
        ctypes.memmove(api.vector_get_data(vector), buffers[1].address, n * width)
        return
    offsets = numbers(buffers[1].address, np.int64, n + 1)
    first, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    _make_room(api, vector, size)
    entries = np.stack([offsets[:-1] - first, np.diff(offsets)], axis=1)
    ctypes.memmove(api.vector_get_data(vector), entries.ctypes.data, entries.nbytes)
    if size:
        values = column.values.buffers()[1].address + 4 * first
        ctypes.memmove(api.vector_get_data(api.list_vector_get_child(vector)), values, 4 * size)


def _check_room(api: Any, n_bytes: int) -> None:
    """Raise where there is not so much memory: DuckDB's own exception must not cross Python."""
    trial = api.malloc(n_bytes + _SPARE)
    if not trial:
        msg = f"no memory for a result of {n_bytes // 2} bytes"
        raise MemoryError(msg)
    api.free(trial)


def _make_room(api: Any, vector: int, size: int) -> None:
    """Make room for floats in a list's child, which takes the next power of two."""
    if size > _MOST_FLOATS:
        raise MemoryError
    _check_room(api, 8 * size)
    if api.list_vector_reserve(vector, size) or api.list_vector_set_size(vector, size):
        raise MemoryError


def _write_strings(vector: int, offsets: Array, data: pa.Buffer | None, valid: Array) -> None:
    from aq2_pipeline.udfs.duckdb_native.bodies import write_strings  # noqa: PLC0415 - it loads Numba

    flags = valid.view(np.uint8)
    frozen = offsets.view()
    flags.flags.writeable = frozen.flags.writeable = False
    write_strings(vector, frozen, data.address if data is not None else 0, flags)
