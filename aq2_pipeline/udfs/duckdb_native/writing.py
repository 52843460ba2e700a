"""What fast bodies write into results, whatever the function."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import part
from aq2_pipeline.udfs.duckdb_native.memory import (
    allocate,
    free,
    ints_out_at,
    reserve_list,
    resize_list,
    vector_validity,
    writable_validity,
)

#: DuckDB refuses vectors of more than 128 GiB, with an exception. Bytes to spare beside a vector.
_MOST_FLOATS, _SPARE = 1 << 33, 1 << 16


@part
def set_null(vector: Any, i: Any) -> None:
    """Make a row NULL."""
    writable_validity(vector)
    mask = ints_out_at(vector_validity(vector), (i >> 6) + 1)
    mask[i >> 6] &= ~(np.int64(1) << (i & 63))


@part
def has_room(n_bytes: Any) -> Any:
    """Whether so much memory can be had: DuckDB would answer a lack of it with a C++ exception in our midst."""
    trial = allocate(n_bytes + _SPARE)
    if trial != 0:
        free(trial)
    return trial != 0


@part
def room(vector: Any, n: Any) -> Any:
    """Make room for n floats in a list's child, which takes the next power of two; 0 is good."""
    if n > _MOST_FLOATS or not has_room(8 * n):
        return 1
    return reserve_list(vector, n) | resize_list(vector, n)
