"""Arrow columns over NumPy buffers, without a copy: what results are made of."""

from __future__ import annotations

import functools
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aq2_pipeline.layout import FLOATS, INTS, TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aq2_pipeline.weights import Array

#: Bytes from which memory comes from Arrow's pool. Its allocator (mimalloc) keeps smaller blocks for the thread that
#: asked for them, wherever they are freed: the 80 threads of Polars' streaming engine held 370 MB of nothing so.
_POOLED = 1 << 20
#: Rows up to which equal offsets, and a column of equal names, are kept for the next call.
_MOST_KEPT = 1 << 17
_FLOAT, _DOUBLE, _INT, _BYTE, _BYTES = pa.float32(), pa.float64(), pa.int64(), pa.uint8(), pa.large_binary()


def offsets_of(sizes: Array) -> Array:
    """Return n + 1 offsets of n sizes."""
    offsets = empty(sizes.size + 1, np.int64)
    offsets[0] = 0
    sizes.cumsum(out=offsets[1:])
    return offsets


def empty(n: int, dtype: Any) -> Array:
    """Return an array; a large one is of Arrow's memory pool.

    That keeps what results free, so that the next touch no fresh pages. These cost
    more than int4: 150 to 490 ms for 400 MB on a virtual machine, against 2 to 10 from the pool.
    """
    n_bytes = int(n) * np.dtype(dtype).itemsize
    if n_bytes < _POOLED:
        return np.empty(n, dtype)
    return np.frombuffer(pa.allocate_buffer(n_bytes), dtype)


def filled(n: int, value: int) -> Array:
    """Return an int64 array of equal values."""
    array = empty(n, np.int64)
    array.fill(value)
    return array


def copied(array: Array) -> Array:
    """Return a copy as int64."""
    copy = empty(array.size, np.int64)
    copy[:] = array
    return copy


def bitmap(valid: Array) -> pa.Buffer | None:
    """Return which rows are not null as Arrow has it; None where none is."""
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def float_lists(offsets: Array, values: Array, mask: pa.Buffer | None) -> pa.Array:
    """Build a large_list<float32> over a NumPy buffer, without a copy."""
    child = pa.Array.from_buffers(_FLOAT, values.size, [None, pa.py_buffer(values)])
    return pa.Array.from_buffers(FLOATS, offsets.size - 1, [mask, pa.py_buffer(offsets)], children=[child])


def binaries(offsets: Array, data: Array, mask: pa.Buffer | None) -> pa.Array:
    """Build a large_binary over a NumPy buffer, without a copy."""
    return pa.Array.from_buffers(_BYTES, offsets.size - 1, [mask, pa.py_buffer(offsets), pa.py_buffer(data)])


def integers(values: Array, mask: pa.Buffer | None) -> pa.Array:
    """Build an int64 column over a NumPy buffer."""
    return pa.Array.from_buffers(_INT, values.size, [mask, pa.py_buffer(values)])


def doubles(values: Array, mask: pa.Buffer | None) -> pa.Array:
    """Build a float64 column over a NumPy buffer."""
    return pa.Array.from_buffers(_DOUBLE, values.size, [mask, pa.py_buffer(values)])


def strings(values: Sequence[str]) -> pa.Array:
    """Build a large_string column; `pa.array` of Python objects would import pandas where it is installed: 0.3 s."""
    text = "".join(values)
    parts: Sequence[str | bytes] = values if text.isascii() else [value.encode() for value in values]
    offsets = offsets_of(np.fromiter(map(len, parts), np.int64, len(parts)))
    return pa.Array.from_buffers(TEXT, len(parts), [None, pa.py_buffer(offsets), pa.py_buffer(text.encode())])


def integer_lists(rows: Sequence[Sequence[int]]) -> pa.Array:
    """Build a large_list<int64> column."""
    offsets = offsets_of(np.fromiter(map(len, rows), np.int64, len(rows)))
    values = integers(np.fromiter(chain.from_iterable(rows), np.int64, int(offsets[-1])), None)
    return pa.Array.from_buffers(INTS, len(rows), [None, pa.py_buffer(offsets)], children=[values])


def equal_bytes(value: int, column: pa.Array) -> pa.Array:
    """Build a uint8 column of equal values, null where another column is; it shares that one's bitmap."""
    n, first = len(column), column.offset
    values = np.full(first + n, value, np.uint8)
    return pa.Array.from_buffers(_BYTE, n, [column.buffers()[0], pa.py_buffer(values)], offset=first)


def equal_offsets(n: int, size: int) -> Array:
    """Return `offsets_of` n equal sizes, read-only: batches of a stream are as long as the one before."""
    return (_equal_offsets if n <= _MOST_KEPT else _equal_offsets.__wrapped__)(n, size)


def positions(n: int) -> Array:
    """Return the numbers from 0 to n - 1, read-only."""
    return equal_offsets(n, 1)[:-1]


@functools.lru_cache(maxsize=16)
def _equal_offsets(n: int, size: int) -> Array:
    offsets = filled(n + 1, size)
    offsets[0] = 0
    offsets.cumsum(out=offsets)
    offsets.flags.writeable = False
    return offsets


@functools.lru_cache(maxsize=8)
def _repeated(name: str, n: int) -> tuple[pa.Buffer, pa.Buffer]:
    """Return the offsets and the data of n equal names."""
    one = np.array(name.encode())
    data = empty(n * one.itemsize, np.uint8)
    data.view(one.dtype)[:] = one
    return pa.py_buffer(equal_offsets(n, one.itemsize)), pa.py_buffer(data)


def texts(names: Sequence[str], index: Array, valid: Array, mask: pa.Buffer | None) -> pa.Array:
    """Build a large_string column: row i is `names[index[i]]`."""
    if len(names) == 1:
        kept = _repeated if valid.size <= _MOST_KEPT else _repeated.__wrapped__
        return pa.Array.from_buffers(TEXT, valid.size, [mask, *kept(names[0], valid.size)])
    chosen = pa.array(index, mask=~valid)
    return pa.array(list(names) or [""], TEXT).take(chosen)


def structs(kind: pa.StructType, fields: Sequence[pa.Array], mask: pa.Buffer | None) -> pa.StructArray:
    """Build a struct column; the children of a null row are null too."""
    return pa.Array.from_buffers(kind, len(fields[0]), [mask], children=list(fields))
