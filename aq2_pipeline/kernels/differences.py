"""What two arrays differ by, whatever made the second."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from aq2_pipeline.kernels._jit import kernel
from aq2_pipeline.kernels.lanes import LANES, load
from aq2_pipeline.kernels.moments import (
    BLOCK_SIZE,
    add_value,
    flush_lanes,
    flushed,
    keep_wide_lanes,
    wide_lanes_of,
    with_exact_errors,
)

_READ = types.Array(types.float32, 1, "C", readonly=True)
_SUMS = types.Array(types.float64, 1, "C")


@kernel(types.int64(_READ, _READ, _SUMS, _SUMS))
def difference(values: Any, others: Any, lanes: Any, sums: Any) -> Any:
    """Add the squares of what two arrays differ by to the sums of an error kernel; both begin at a block."""
    n = values.size - values.size % LANES
    totals = wide_lanes_of(lanes)
    for at in range(0, n, LANES):
        totals = with_exact_errors(totals, load(values, at), load(others, at), None)
        if (at + LANES) % BLOCK_SIZE == 0:
            totals = flushed(totals, lanes, sums)
    keep_wide_lanes(totals, lanes)
    for j in range(n, values.size):
        add_value(values[j], others[j], j, lanes, sums)
    flush_lanes(lanes, sums)
    return np.int64(-1)
