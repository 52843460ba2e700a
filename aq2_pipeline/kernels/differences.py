"""What two arrays differ by, whatever made the second."""

from __future__ import annotations

from typing import Any

from numba import types

from aq2_pipeline.kernels._jit import doubles_out, floats_in, helper, kernel
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


@helper
def add_differences(values: Any, others: Any, lanes: Any, sums: Any) -> None:
    """Add the squares of what two arrays differ by to sums; the lanes are empty before and after."""
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


@kernel(types.void(floats_in, floats_in, doubles_out, doubles_out))
def difference(values: Any, others: Any, lanes: Any, sums: Any) -> None:
    """Add the squares of what two arrays differ by to the sums of an error kernel."""
    add_differences(values, others, lanes, sums)
