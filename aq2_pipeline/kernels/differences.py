"""What two arrays differ by, whatever made the second; or one, and what codes decode to."""

from __future__ import annotations

from typing import Any

from numba import types

from aq2_pipeline.kernels._jit import (
    bytes_in,
    decode_function,
    doubles_out,
    floats_in,
    floats_out,
    helper,
    ints_in,
    ints_out,
    kernel,
)
from aq2_pipeline.kernels.bits import keep_subnormals, restore_subnormals
from aq2_pipeline.kernels.lanes import LANES, load
from aq2_pipeline.kernels.moments import (
    BLOCK_SIZE,
    N_ERROR_SUMS,
    add_value,
    flush_lanes,
    flushed,
    keep_wide_lanes,
    wide_lanes_of,
    with_exact_errors,
)

_SPAN = (ints_in, ints_in)
_CODES = (bytes_in, *_SPAN, floats_in, *_SPAN, floats_in, *_SPAN, ints_in)


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


@kernel(
    types.void(
        decode_function,
        ints_in,
        types.int64,
        types.int64,
        *_CODES,
        floats_in,
        *_SPAN,
        floats_out,
        doubles_out,
        doubles_out,
        ints_out,
    )
)
def difference_rows(
    decode: Any, params: Any, first: Any, last: Any, data: Any, data_starts: Any, data_stops: Any,
    scales: Any, scale_starts: Any, scale_stops: Any, zero_points: Any, zero_starts: Any, zero_stops: Any,
    row_lengths: Any, values: Any, starts: Any, stops: Any, scratch: Any, lanes: Any, sums: Any, status: Any,
) -> None:  # fmt: skip
    """Decode the pieces `first` to `last` one after the other into scratch, and compare each with its weights."""
    state = keep_subnormals()
    for i in range(first, last):
        others = scratch[: stops[i] - starts[i]]
        status[i] = decode(
            data[data_starts[i] : data_stops[i]],
            scales[scale_starts[i] : scale_stops[i]],
            zero_points[zero_starts[i] : zero_stops[i]],
            row_lengths[i],
            params,
            others,
        )
        own = sums[i * N_ERROR_SUMS : (i + 1) * N_ERROR_SUMS]
        add_differences(values[starts[i] : stops[i]], others, lanes, own)
    restore_subnormals(state)
