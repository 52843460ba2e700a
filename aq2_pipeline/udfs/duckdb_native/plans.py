"""What bodies without Python read: schemes by number, calls as they were bound, sizes that are known.

Everything here lives as long as the process, because engine threads hold
addresses of it; the tables have room for some thousand entries, and where they
are full the general body works instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline import schemes
from aq2_pipeline.codecs import Sizes
from aq2_pipeline.ops import error_figures
from aq2_pipeline.udfs.duckdb_native import tables
from aq2_pipeline.udfs.duckdb_native.capi import TypeId
from aq2_pipeline.udfs.duckdb_native.vectors import numbers, write

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aq2_pipeline.functions import Function
    from aq2_pipeline.schemes import Scheme

    Ints = NDArray[np.int64]

__all__ = ["Plans"]

#: `int64 (int64, int64, int64)`: what bodies call back; 0 is good.
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

#: Bytes of the integers that may be schemes; negative where unsigned. Those of shapes are INTEGER and BIGINT.
_WIDTHS = {
    TypeId.TINYINT: 1,
    TypeId.SMALLINT: 2,
    TypeId.INTEGER: 4,
    TypeId.BIGINT: 8,
    TypeId.UTINYINT: -1,
    TypeId.USMALLINT: -2,
    TypeId.UINTEGER: -4,
}
_SHAPES: dict[Any, int] = {(TypeId.LIST, (kind,)): _WIDTHS[kind] for kind in (TypeId.INTEGER, TypeId.BIGINT)}
#: The struct that `quantize` gives, field by field.
_TEXT, _INTEGER, _BLOB, _FLOATS = (TypeId.VARCHAR,), (TypeId.BIGINT,), (TypeId.BLOB,), (TypeId.LIST, (TypeId.FLOAT,))
_QUANTIZED = (
    TypeId.STRUCT,
    (
        ("scheme", _TEXT),
        ("length", _INTEGER),
        ("row_length", _INTEGER),
        ("quantized_data", _BLOB),
        ("scales", _FLOATS),
        ("zero_points", _FLOATS),
    ),
)
#: The kernel that a function needs of a scheme, and where its address stands.
_KERNELS = {
    "quantize": ("encode", tables.S_ENCODE),
    "dequantize": ("decode", tables.S_DECODE),
    "quantization_error": ("error", tables.S_ERROR),
}
_FIELDS = tuple(_KERNELS)
_SIZED = (tables.R_LENGTH, tables.R_DATA, tables.R_SCALES, tables.R_ZEROS)


def _pointer(callback: Any) -> int:
    return int(ctypes.cast(callback, ctypes.c_void_p).value or 0)


class Plans:
    """The tables of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.schemes = np.zeros((tables.MOST_SCHEMES, tables.N_SCHEME), np.int64)
        self.names = np.zeros((tables.MOST_NAMES, tables.N_NAME), np.int64)
        self.sizes = np.zeros((tables.MOST_SIZES, tables.N_SIZE_ROW), np.int64)
        self.widths = np.full(tables.MOST_WIDTHS, tables.UNKNOWN, np.int64)
        self.state = np.zeros(tables.N_STATE, np.int64)
        self.known: list[Scheme] = []
        self.numbers: dict[Scheme, int] = {}
        self.kept: list[Any] = []
        self.calls: dict[tuple[Any, ...], Ints] = {}
        resolve, settle = CALLBACK(self._resolve), CALLBACK(self._settle)
        self.kept += [resolve, settle]
        self.finish = CALLBACK(_finish_errors)
        self.state[tables.SCHEMES] = self.schemes.ctypes.data
        self.state[tables.NAMES] = self.names.ctypes.data
        self.state[tables.SIZES] = self.sizes.ctypes.data
        self.state[tables.WIDTHS] = self.widths.ctypes.data
        self.state[tables.RESOLVE] = _pointer(resolve)
        self.state[tables.SETTLE] = _pointer(settle)
        schemes.on_change(self._forget)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        """Take a lock that nobody holds: a thread that is not in this child may have held the other."""
        self.lock = threading.Lock()

    def _forget(self) -> None:
        """Take the numbers of schemes back, because names may mean something else now."""
        with self.lock:
            self.numbers = {}
            self.widths[:] = tables.UNKNOWN
            self.state[tables.EPOCH] += 1

    def number(self, scheme: Scheme, function: str) -> int:
        """Return the number of a scheme, with the kernel that a function needs; -1 where the table is full."""
        kernel, field = _KERNELS[function]
        compiled = getattr(scheme.codec, kernel)  # outside of the lock: it takes a while
        with self.lock:
            found = self.numbers.get(scheme, -1)
            if found < 0 and len(self.known) < tables.MOST_SCHEMES:
                found = self._add(scheme)
            if found >= 0 and self.schemes[found, field] == 0:
                self.kept.append(compiled)
                self.schemes[found, field] = _address(compiled)
            return found

    @staticmethod
    def is_fast(call: int) -> bool:
        """Whether a call was bound to what the fast body reads."""
        return bool(numbers(call, np.int64, tables.N_BOUND)[tables.B_FAST])

    def _add(self, scheme: Scheme) -> int:
        name, params = scheme.name.encode(), np.array(scheme.params, np.int64)
        text = np.frombuffer(name, np.uint8)
        self.kept += [name, params, text]
        found = len(self.known)
        row = self.schemes[found]
        row[tables.S_EPOCH] = self.state[tables.EPOCH]
        row[tables.S_PARAMS], row[tables.S_N_PARAMS] = params.ctypes.data, params.size
        row[tables.S_NAME], row[tables.S_NAME_SIZE] = text.ctypes.data, text.size
        row[tables.S_GROUP], row[tables.S_TOP] = scheme.group, 2 ** min(scheme.bit_width, 53) - 1
        row[tables.S_LISTS] = scheme.input_dtype is None
        row[tables.S_BLOBS] = scheme.input_dtype in (None, "f32")
        self.known.append(scheme)
        self.numbers[scheme] = found
        return found

    def _resolve(self, address: int, size: int, function: int) -> int:
        """Return the number of the scheme of a name, or of a width where the address is 0; -1 for none."""
        try:
            wanted: Any = ctypes.string_at(address, size).decode() if address else size
            scheme = schemes.parse(wanted)
            found = self.number(scheme, _FIELDS[function])
            if found < 0:
                return -1
            if address:
                self._remember_name(wanted.encode(), found, stored=scheme.name == wanted)
            else:
                self.widths[size] = found
        except BaseException:  # noqa: BLE001 - the general body meets it again, and tells it
            return -1
        return found

    def _remember_name(self, text: bytes, scheme: int, *, stored: bool) -> None:
        from aq2_pipeline.udfs.duckdb_native.bodies import insert_name  # noqa: PLC0415 - it loads Numba

        kept = np.frombuffer(text, np.uint8)
        with self.lock:
            insert_name(self.names.reshape(-1), kept, kept.ctypes.data, scheme, int(stored))
            self.kept.append(kept)

    def _settle(self, address: int, n: int, _function: int) -> int:
        """Fill in the sizes of a chunk's rows, and remember them; 0 is good."""
        from aq2_pipeline.udfs.duckdb_native.bodies import insert_sizes  # noqa: PLC0415 - it loads Numba

        try:
            rows = numbers(address, np.int64, tables.N_ROW * n).reshape(tables.N_ROW, n)
            for number in np.unique(rows[tables.R_SCHEME]):
                if number == tables.NULL_ROW:
                    continue
                mine = rows[tables.R_SCHEME] == number
                scheme = self.known[number]
                found = scheme.codec.sizes(rows[tables.R_LENGTH, mine], rows[tables.R_ROW_LENGTH, mine], scheme.params)
                for field, column in zip((tables.R_DATA, tables.R_SCALES, tables.R_ZEROS), found, strict=True):
                    rows[field, mine] = column
                    if (column < 0).any():  # a row that the format does not take
                        return -1
            with self.lock:
                insert_sizes(self.sizes.reshape(-1), rows.reshape(-1))
        except BaseException:  # noqa: BLE001 - the general body meets it again, and tells it
            return -1
        return 0

    def bound(self, function: Function, kinds: tuple[Any, ...], scheme: str | None) -> int:
        """Return the address of the record of a call as it was bound; equal calls share one."""
        key = (function.name, kinds, scheme, int(self.state[tables.EPOCH]))
        if key not in self.calls:
            record = np.zeros(tables.N_BOUND, np.int64)
            try:
                self._describe(record, function.name, kinds, scheme)
            except Exception:  # noqa: BLE001 - a scheme that is gone, a codec that does not compile:
                record[tables.B_FAST] = 0  # the general body tells it
            self.calls.setdefault(key, record)
        return int(self.calls[key].ctypes.data)

    def record_of(self, general: Any) -> Ints:
        """Return a record for a function that has its general body only, so far."""
        record = np.zeros(tables.N_RECORD, np.int64)
        record[tables.FINISH] = _pointer(self.finish)
        record[tables.GENERAL] = _pointer(general)
        record[tables.STATE] = self.state.ctypes.data
        return record

    def speed_up(self, function: Function, record: Ints, call: int) -> None:
        """Compile the fast body of a function at the first call that has use for it."""
        if record[tables.FAST] == 0 and self.is_fast(call):
            from aq2_pipeline.udfs.duckdb_native import fast  # noqa: PLC0415 - it loads Numba

            body = getattr(fast, function.name, None)
            if body is not None:
                with contextlib.suppress(Exception):  # what does not compile is not needed: there is the general body
                    record[tables.FAST] = body.address()
                self.kept.append(body)

    def _describe(self, record: Ints, function: str, kinds: tuple[Any, ...], scheme: str | None) -> None:
        """Fill in what a fast body has to know of a call; it stays out of the others."""
        if function == "dequantize":
            record[tables.B_FAST] = kinds[0] == _QUANTIZED
            return
        if function not in (*_KERNELS, "weight_stats"):
            return
        record[tables.B_WEIGHTS], record[tables.B_WIDTH] = _weights(kinds[0])
        if function == "weight_stats":
            record[tables.B_FAST] = record[tables.B_WEIGHTS] != 0
            return
        if kinds[1] == _TEXT:  # a constant, too: the API cuts it at a NUL character, the column does not
            record[tables.B_SCHEME] = tables.TEXTS
        elif scheme is not None:
            record[tables.B_SCHEME] = tables.CONSTANT
            record[tables.B_SCHEME_ID] = self.number(schemes.parse(scheme), function)
        else:
            record[tables.B_SCHEME] = _WIDTHS.get(kinds[1][0], 0)
        shape = kinds[2] if len(kinds) > 2 else (TypeId.SQLNULL,)  # noqa: PLR2004 - the third argument
        no_shape = shape == (TypeId.SQLNULL,)
        record[tables.B_SHAPE] = tables.NO_SHAPE if no_shape else _SHAPES.get(shape, 0)
        plain = no_shape or shape in _SHAPES
        plain &= all(kind == (TypeId.SQLNULL,) for kind in kinds[3:])
        plain &= record[tables.B_WEIGHTS] != 0 and record[tables.B_SCHEME] != 0 and record[tables.B_SCHEME_ID] >= 0
        record[tables.B_FAST] = plain


def _address(compiled: Any) -> int:
    """Return where a codec's compiled kernel is."""
    (found,) = compiled.overloads.values()
    return int(found.library.get_pointer_to_function(found.fndesc.llvm_func_name))


def _weights(kind: tuple[Any, ...]) -> tuple[int, int]:
    """Return the kind of weights that a fast body reads, and the width of arrays; 0 for others."""
    if kind == _FLOATS:
        return tables.LISTS, 0
    if kind == _BLOB:
        return tables.BLOBS, 0
    if kind[0] == TypeId.ARRAY and kind[1] == (TypeId.FLOAT,):
        return tables.ARRAYS, kind[2]
    return 0, 0


def _finish_errors(result: int, address: int, n: int) -> int:
    """Make the figures of `quantization_error` from the sums of a chunk, by the code of every engine; 0 is good."""
    from aq2_pipeline.kernels.moments import N_ERROR_SUMS  # noqa: PLC0415 - it loads Numba

    try:
        rows = numbers(address, np.int64, tables.N_ROW * n).reshape(tables.N_ROW, n)
        at = address + 8 * (tables.N_ROW * n + tables.MOST_AXES)
        sums = numbers(at, np.float64, N_ERROR_SUMS * n).reshape(n, N_ERROR_SUMS)
        valid = rows[tables.R_SCHEME] != tables.NULL_ROW
        lengths, *sizes = (np.where(valid, rows[field], 0) for field in _SIZED)
        write(result, error_figures(sums, lengths, Sizes(*sizes).n_bytes, valid))
    except BaseException:  # noqa: BLE001 - the general body meets it again, and tells it
        return -1
    return 0
