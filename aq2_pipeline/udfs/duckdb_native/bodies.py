"""Numba bodies."""
from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from numba import types

from aq2_pipeline.kernels._jit import bytes_in, ints_in, kernel
from aq2_pipeline.udfs.duckdb_native.capi import library_path

llvm.load_library_permanently(library_path())
_handle, _n = types.uintp, types.uint64
assign_string = types.ExternalFunction("duckdb_vector_assign_string_element_len", types.void(_handle, _n, _handle, _n))


@kernel(types.void(_handle, ints_in, _handle, bytes_in))
def write_strings(vector: Any, offsets: Any, data: Any, valid: Any) -> None:
    """Write the strings or blobs of a column."""
    for i in range(valid.size):
        if valid[i]:
            start, stop = types.uint64(offsets[i]), types.uint64(offsets[i + 1])
            assign_string(vector, types.uint64(i), data + start, stop - start)
