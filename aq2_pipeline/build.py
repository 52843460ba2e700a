"""Arrow columns over NumPy buffers, without a copy: what results are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from aq2_pipeline.layout import FLOATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aq2_pipeline.weights import Array


def offsets_of(sizes: Array) -> Array:
    """Return n + 1 offsets of n sizes."""
    offsets = np.zeros(sizes.size + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def _bitmap(valid: Array) -> pa.Buffer | None:
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def float_lists(offsets: Array, values: Array, valid: Array) -> pa.Array:
    """Build a large_list<float32> over a NumPy buffer, without a copy."""
    child = pa.Array.from_buffers(pa.float32(), values.size, [None, pa.py_buffer(values)])
    buffers = [_bitmap(valid), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(FLOATS, valid.size, buffers, children=[child])


def binaries(offsets: Array, data: Array, valid: Array) -> pa.Array:
    """Build a large_binary over a NumPy buffer, without a copy."""
    buffers = [_bitmap(valid), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), valid.size, buffers)


def integers(values: Array, valid: Array) -> pa.Array:
    """Build an int64 column over a NumPy buffer."""
    return pa.Array.from_buffers(pa.int64(), valid.size, [_bitmap(valid), pa.py_buffer(values)])


def doubles(values: Array, valid: Array) -> pa.Array:
    """Build a float64 column over a NumPy buffer."""
    return pa.Array.from_buffers(pa.float64(), valid.size, [_bitmap(valid), pa.py_buffer(values)])


def texts(names: Sequence[str], index: Array, valid: Array) -> pa.Array:
    """Build a large_string column: row i is `names[index[i]]`."""
    if len(names) == 1:  # a million equal names in one stroke
        one = np.frombuffer(names[0].encode(), np.uint8)
        offsets = np.arange(valid.size + 1, dtype=np.int64) * one.size
        buffers = [_bitmap(valid), pa.py_buffer(offsets), pa.py_buffer(np.tile(one, valid.size))]
        return pa.Array.from_buffers(pa.large_string(), valid.size, buffers)
    chosen = pa.array(index, mask=~valid)
    return pa.array(list(names) or [""], pa.large_string()).take(chosen)


def structs(kind: pa.StructType, fields: Sequence[pa.Array], valid: Array) -> pa.StructArray:
    """Build a struct column; the children of a null row are null too."""
    buffers = [_bitmap(valid)]
    return pa.Array.from_buffers(kind, valid.size, buffers, children=list(fields))
