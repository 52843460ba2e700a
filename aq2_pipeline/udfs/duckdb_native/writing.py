"""What fast bodies write into results, whatever the function."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import part
from aq2_pipeline.udfs.duckdb_native.memory import (
    ints_out_at,
    reserve_list,
    resize_list,
    vector_validity,
    writable_validity,
)


@part
def set_null(vector: Any, i: Any) -> None:
    """Make a row NULL."""
    writable_validity(vector)
    mask = ints_out_at(vector_validity(vector), (i >> 6) + 1)
    mask[i >> 6] &= ~(np.int64(1) << (i & 63))


@part
def room(vector: Any, n: Any) -> Any:
    """Make room for n elements in a list's child; 0 is good."""
    return reserve_list(vector, n) | resize_list(vector, n)
