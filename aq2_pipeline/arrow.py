"""Columns to flat arrays with spans: with `build`, which goes back, the only file that touches Arrow's buffers.

Facts that decide the code here. `ListArray.flatten()` drops what null rows own
while the offsets still count it, so values, offsets and validity are read by
themselves. `validate()` misses wild offsets, so every span is checked against
the values before a kernel sees it. Counts of nulls may be stale, so bitmaps are
read. What a null row owns is garbage.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline import build, views
from aq2_pipeline.errors import InputTypeError, InputValueError
from aq2_pipeline.shapes import nested_shape
from aq2_pipeline.weights import NUMPY_OF_DTYPE, Weights, frozen_view

if TYPE_CHECKING:
    from aq2_pipeline.weights import Array

_TAKEN = "a list, large_list, fixed_size_list or list view of float16, float32, float64 or decimal, or binary"


def validity(array: pa.Array) -> Array:
    """Return which rows are not null, read from the bitmap itself."""
    n = len(array)
    if pt.is_null(array.type):
        return np.zeros(n, bool)
    bitmap = array.buffers()[0]
    if bitmap is None or n == 0:
        return np.ones(n, bool)
    first = array.offset
    if bitmap.size * 8 < first + n:
        msg = "the validity bitmap is shorter than the column"
        raise InputValueError(msg)
    bits = np.frombuffer(bitmap, np.uint8)[first // 8 : (first + n + 7) // 8]
    return np.unpackbits(bits, bitorder="little")[first % 8 : first % 8 + n].view(bool)


def _elements(buffer: pa.Buffer | None, dtype: Any, first: int, n: int) -> Array:
    """Return `n` elements of a buffer from element `first`; an error where it is too short."""
    kind = np.dtype(dtype)
    if n == 0:
        return np.empty(0, kind)
    if buffer is None or first < 0 or buffer.size < (first + n) * kind.itemsize:
        msg = "a buffer is shorter than the column that it belongs to"
        raise InputValueError(msg)
    return np.frombuffer(buffer, kind, n, first * kind.itemsize)


def integers(array: pa.Array) -> Array:
    """Return the values of an int64 column; what null rows own is garbage."""
    return _elements(array.buffers()[1], np.int64, array.offset, len(array))


def indices(array: pa.Array) -> tuple[list[Any], Array]:
    """Return the distinct values of a column, and which of them each row is; -1 where it is null."""
    encoded = array.dictionary_encode()
    index = encoded.indices
    values = _elements(index.buffers()[1], np.int32, index.offset, len(index))
    return encoded.dictionary.to_pylist(), np.where(validity(index), values, -1)


def _spans(array: pa.Array) -> tuple[Array, Array]:
    """Return (starts, stops) of a list or binary column in its values, unchecked; int64."""
    kind, n, first, buffers = array.type, len(array), array.offset, array.buffers()
    if pt.is_fixed_size_list(kind) or pt.is_fixed_size_binary(kind):
        width = kind.list_size if pt.is_fixed_size_list(kind) else kind.byte_width
        starts = np.arange(first * width, (first + n) * width, width) if width else np.zeros(n, np.int64)
        return starts, starts + width
    if pt.is_list_view(kind) or pt.is_large_list_view(kind):
        wide = np.int64 if pt.is_large_list_view(kind) else np.int32
        starts = _elements(buffers[1], wide, first, n).astype(np.int64)
        return starts, starts + _elements(buffers[2], wide, first, n)
    wide = np.int64 if pt.is_large_list(kind) or pt.is_large_binary(kind) or pt.is_large_string(kind) else np.int32
    offsets = _elements(buffers[1], wide, first, n + 1 if n else 0)
    return build.copied(offsets[:-1]), build.copied(offsets[1:])


def _checked(weights: Weights, size: int) -> None:
    """Empty the spans of null rows; set aside rows whose span is not in the values."""
    if not weights.valid.all():
        weights.starts[~weights.valid] = 0
        weights.stops[~weights.valid] = 0
    bad = (weights.starts < 0) | (weights.stops < weights.starts) | (weights.stops > size)
    for row in bad.nonzero()[0].tolist():
        weights.fail(row, InputValueError("the row's offsets do not address the column's values"))


_LISTS = {pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST, pa.lib.Type_FIXED_SIZE_LIST}
_LISTS |= {pa.lib.Type_LIST_VIEW, pa.lib.Type_LARGE_LIST_VIEW}
_BINARIES = {pa.lib.Type_BINARY, pa.lib.Type_LARGE_BINARY, pa.lib.Type_FIXED_SIZE_BINARY, pa.lib.Type_BINARY_VIEW}


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's five kinds of list."""
    return kind.id in _LISTS


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's four kinds of binary."""
    return kind.id in _BINARIES


def read_weights(
    array: pa.Array, dtype: str | None = None, active: Array | None = None, *, name: str = "weights"
) -> Weights:
    """Read a column of weights.

    Parameters
    ----------
    array : pyarrow.Array
        Any type that the contract takes.
    dtype : {"f32", "f16", "bf16", "f64"}, optional
        What Binary or UInt16 weights hold; float32 where nothing is said.
    active : bool array, optional
        Rows to read; the others come back as null.
    name : str
        What messages call the column.

    Raises
    ------
    InputTypeError
        For a type that is not taken.
    """
    valid = validity(array) if active is None else validity(array) & active
    if pt.is_null(array.type):
        none = np.zeros(len(array), np.int64)
        return Weights(frozen_view(np.empty(0, np.float32)), none, none.copy(), valid)
    if isinstance(array.type, pa.FixedShapeTensorType):
        return _read_tensors(array, dtype, active, name)
    if is_binary(array.type):
        return _read_binary(array, dtype or "f32", valid)
    if not is_list(array.type) or isinstance(array.type, pa.BaseExtensionType):
        msg = f"{name} are {array.type}"
        raise InputTypeError(msg, f"expected {_TAKEN}")
    return _read_lists(array, dtype, valid, name)


def _read_tensors(array: pa.Array, dtype: str | None, active: Array | None, name: str) -> Weights:
    order = array.type.permutation
    if order is not None and list(order) != sorted(order):
        msg = f"{name} are a tensor column with the permutation {list(order)}"
        raise InputTypeError(msg, "store them in row-major order")
    weights = read_weights(array.storage, dtype, active, name=name)
    weights.shape = nested_shape(array.type)
    return weights


def _read_lists(array: pa.Array, dtype: str | None, valid: Array, name: str) -> Weights:
    starts, stops = _spans(array)
    weights = Weights(np.empty(0, np.float32), starts, stops, valid)
    child = _used(weights, array.values)
    nulls = _null_positions(child)
    while pt.is_fixed_size_list(array.type) and pt.is_fixed_size_list(child.type):
        width, first, n = child.type.list_size, child.offset, len(child)
        weights.starts *= width
        weights.stops *= width
        child = child.values.slice(first * width, n * width)
        inside = (nulls[:, None] * width + np.arange(width)).ravel()
        nulls = np.union1d(inside, _null_positions(child))
    if pt.is_null(child.type):  # `[]` and `[NULL]` as SQL literals and `pa.array` give them
        child = pa.nulls(len(child), pa.float32())
    _refuse_element_type(child.type, dtype, array.type, name)
    weights.shape = nested_shape(array.type)
    weights.nulls = nulls
    _place(weights, child, dtype)
    return weights


def _used(weights: Weights, child: pa.Array) -> pa.Array:
    """Check the spans, and return the part of the values between the first and the last that a row addresses."""
    n = len(child)
    some: Any = weights.stops > weights.starts
    if some.size and some.all() and weights.valid.all() and weights.starts.min() >= 0 and weights.stops.max() <= n:
        some = slice(None)  # as columns mostly are: views instead of copies, and no row to look for
    else:
        _checked(weights, n)
        some = weights.stops > weights.starts
        if not some.any():
            return child.slice(0, 0)
    low = int(weights.starts[some].min())
    if low:
        weights.starts[some] -= low
        weights.stops[some] -= low
    return child.slice(low, int(weights.stops.max()))


def _null_positions(child: pa.Array) -> Array:
    if pt.is_null(child.type):
        return np.arange(len(child))
    return np.flatnonzero(~validity(child)) if child.buffers()[0] is not None else np.empty(0, np.int64)


def _refuse_element_type(kind: pa.DataType, dtype: str | None, whole: pa.DataType, name: str) -> None:
    if pt.is_uint16(kind) and dtype in ("f16", "bf16"):
        return
    if pt.is_uint16(kind):
        msg = f"{name} are {whole}"
        raise InputTypeError(msg, "say what the 16 bits hold in the scheme, e.g. 'int4_g128@bf16' or '@f16'")
    if pt.is_integer(kind):
        msg = f"{name} are {whole}"
        raise InputTypeError(msg, "cast them to a list of float32, e.g. FLOAT[] or pl.List(pl.Float32)")
    if not (pt.is_floating(kind) or pt.is_decimal(kind)):
        msg = f"{name} are {whole}"
        raise InputTypeError(msg, f"expected {_TAKEN}")
    if dtype is not None:
        msg = f"{name} are {whole}, and the scheme says @{dtype}"
        raise InputTypeError(msg, "an input dtype is for binary and uint16 weights; leave it out")


def _place(weights: Weights, child: pa.Array, dtype: str | None) -> None:
    """Say where the weights are: in the caller's buffer, but for decimals, which become float64."""
    kind, n = child.type, len(child)
    if pt.is_decimal(kind):
        child, kind = child.cast(pa.float64()), pa.float64()
    # Not kind.to_pandas_dtype(): in pyarrow 23.0.1 it fails where pandas is missing.
    spelled = np.float32 if pt.is_float32(kind) else np.dtype(f"u{kind.bit_width // 8}")
    held = _elements(child.buffers()[1], spelled, child.offset, n)
    if pt.is_float32(kind) and held.flags.aligned:
        weights.values = frozen_view(held)
        return
    weights.kind = dtype or {4: "f32", 2: "f16", 8: "f64"}[held.itemsize]
    weights.raw = frozen_view(held.view(np.uint8))
    weights.skew = np.zeros(weights.starts.size, np.int64)


def _read_binary(array: pa.Array, dtype: str, valid: Array) -> Weights:
    size = np.dtype(NUMPY_OF_DTYPE[dtype]).itemsize
    weights = read_bytes(array, valid)
    for row in np.flatnonzero(weights.lengths % size):
        n_bytes = int(weights.lengths[row])
        hint = "say what the bytes hold in the scheme, e.g. 'int4_g128@bf16'"
        weights.fail(int(row), InputValueError(f"{n_bytes} bytes are no whole number of {dtype} weights", hint))
    weights.raw, weights.values = weights.values, frozen_view(np.empty(0, np.float32))
    n = weights.lengths // size
    first = -weights.raw.ctypes.data % size
    begins = (weights.starts - first)[n > 0]
    if dtype == "f32" and not np.any(begins % size):
        whole = weights.raw[first : first + max(weights.raw.size - first, 0) // size * size]
        weights.values = frozen_view(whole.view(np.float32))
        weights.starts = np.where(n > 0, (weights.starts - first) // size, 0)
    else:
        weights.kind = dtype
        weights.skew = weights.starts % size
        weights.starts = weights.starts // size
    weights.stops = weights.starts + n
    return weights


def read_floats(array: pa.Array, active: Array, *, name: str) -> Weights:
    """Read a column of lists of few floats as float32.

    Raises
    ------
    InputTypeError
        As `read_weights`.
    """
    weights = read_weights(array, None, active, name=name)
    if is_binary(array.type):
        msg = f"{name} are {array.type}"
        raise InputTypeError(msg, "expected a list of float32")
    if weights.kind is None:
        return weights
    return replace(weights, values=frozen_view(weights.as_float32()), kind=None)


def read_bytes(array: pa.Array, valid: Array) -> Weights:
    """Read a binary column as uint8 values with spans.

    Raises
    ------
    InputTypeError
        If it is not binary.
    """
    if pt.is_null(array.type):
        array = pa.nulls(len(array), pa.large_binary())
    if not is_binary(array.type):
        msg = f"quantized_data is {array.type}"
        raise InputTypeError(msg, "expected binary")
    if pt.is_binary_view(array.type):
        _, told, *buffers = array.buffers()
        told = _elements(told, np.uint8, 16 * array.offset, 16 * len(array))
        data, starts, stops = views.spans(told, [_bytes_of(buffer) for buffer in buffers])
    else:
        starts, stops = _spans(array)
        data = _bytes_of(array.buffers()[-1])
    weights = Weights(frozen_view(data), starts, stops, validity(array) & valid)
    _checked(weights, data.size)
    return weights


def _bytes_of(buffer: pa.Buffer | None) -> Array:
    return np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else np.empty(0, np.uint8)


def read_lists(array: pa.Array, name: str) -> list[list[Any] | None]:
    """Read a column of short lists of integers as Python lists; None where the row is null.

    Raises
    ------
    InputTypeError
        If it is no list of integers.
    """
    if pt.is_null(array.type):
        return [None] * len(array)
    kind = array.type
    if not is_list(kind) or not (pt.is_integer(kind.value_type) or pt.is_null(kind.value_type)):
        msg = f"{name} is {kind}"
        raise InputTypeError(msg, "expected a list of integers")
    spans = Weights(np.empty(0, np.float32), *_spans(array), validity(array))
    _checked(spans, len(array.values))
    flat = array.values.to_pylist() if len(array) else []
    rows = zip(spans.starts.tolist(), spans.stops.tolist(), spans.valid.tolist(), strict=True)
    return [flat[a:b] if ok else None for a, b, ok in rows]


def decoded(array: pa.Array) -> pa.Array:
    """Return a column without its dictionary."""
    if not pt.is_dictionary(array.type):
        return array
    values = array.dictionary
    if pt.is_string_view(values.type) or pt.is_binary_view(values.type):  # views have no kernel for `take`
        values = values.cast(pa.large_string() if pt.is_string_view(values.type) else pa.large_binary())
    return values.take(array.indices)
