"""Loops over the rows of a column, for every codec: a codec is handed in as a function.

Spans are pairs of arrays, `starts` and `stops`, one entry a row, in elements of
the buffer that they cut. A row that fails leaves its status (the position of
the bad value) in `status` and does not stop the others.
"""

from __future__ import annotations

from typing import Any

from numba import types

from aq2_pipeline.kernels._jit import (
    bytes_in,
    bytes_out,
    decode_function,
    doubles_out,
    encode_function,
    error_function,
    floats_in,
    floats_out,
    ints_in,
    ints_out,
    kernel,
)
from aq2_pipeline.kernels.bits import keep_subnormals, restore_subnormals
from aq2_pipeline.kernels.moments import N_COUNTS, N_ERROR_SUMS, N_FIGURES, weight_stats

_span = (ints_in, ints_in)
_range = (types.int64, types.int64)

ENCODE_ROWS = types.void(
    encode_function, ints_in, *_range, floats_in, *_span, ints_in, floats_in, *_span,
    bytes_out, *_span, floats_out, *_span, floats_out, *_span, ints_out,
)  # fmt: skip
DECODE_ROWS = types.void(
    decode_function, ints_in, *_range, bytes_in, *_span, floats_in, *_span, floats_in, *_span, ints_in,
    floats_out, *_span, ints_out,
)  # fmt: skip
ERROR_ROWS = types.void(
    error_function, ints_in, *_range, floats_in, *_span, ints_in, floats_in, *_span,
    doubles_out, doubles_out, ints_out,
)  # fmt: skip
STATS_ROWS = types.void(*_range, floats_in, *_span, doubles_out, ints_out, doubles_out)


@kernel(ENCODE_ROWS)
def encode_rows(
    encode: Any, params: Any, first: Any, last: Any, values: Any, starts: Any, stops: Any, row_lengths: Any,
    importance: Any, importance_starts: Any, importance_stops: Any,
    data: Any, data_starts: Any, data_stops: Any, scales: Any, scale_starts: Any, scale_stops: Any,
    zero_points: Any, zero_starts: Any, zero_stops: Any, status: Any,
) -> None:  # fmt: skip
    """Encode the rows `first` to `last`."""
    state = keep_subnormals()
    for i in range(first, last):
        status[i] = encode(
            values[starts[i] : stops[i]],
            row_lengths[i],
            params,
            importance[importance_starts[i] : importance_stops[i]],
            data[data_starts[i] : data_stops[i]],
            scales[scale_starts[i] : scale_stops[i]],
            zero_points[zero_starts[i] : zero_stops[i]],
        )
    restore_subnormals(state)


@kernel(DECODE_ROWS)
def decode_rows(
    decode: Any, params: Any, first: Any, last: Any, data: Any, data_starts: Any, data_stops: Any,
    scales: Any, scale_starts: Any, scale_stops: Any, zero_points: Any, zero_starts: Any, zero_stops: Any,
    row_lengths: Any, values: Any, starts: Any, stops: Any, status: Any,
) -> None:  # fmt: skip
    """Decode the rows `first` to `last`."""
    state = keep_subnormals()
    for i in range(first, last):
        status[i] = decode(
            data[data_starts[i] : data_stops[i]],
            scales[scale_starts[i] : scale_stops[i]],
            zero_points[zero_starts[i] : zero_stops[i]],
            row_lengths[i],
            params,
            values[starts[i] : stops[i]],
        )
    restore_subnormals(state)


@kernel(ERROR_ROWS)
def error_rows(
    error: Any, params: Any, first: Any, last: Any, values: Any, starts: Any, stops: Any, row_lengths: Any,
    importance: Any, importance_starts: Any, importance_stops: Any, lanes: Any, sums: Any, status: Any,
) -> None:  # fmt: skip
    """Sum the errors of the rows `first` to `last`."""
    state = keep_subnormals()
    for i in range(first, last):
        lanes[:] = 0.0
        status[i] = error(
            values[starts[i] : stops[i]],
            row_lengths[i],
            params,
            importance[importance_starts[i] : importance_stops[i]],
            lanes,
            sums[i * N_ERROR_SUMS : (i + 1) * N_ERROR_SUMS],
        )
    restore_subnormals(state)


@kernel(STATS_ROWS)
def stats_rows(
    first: Any, last: Any, values: Any, starts: Any, stops: Any, lanes: Any, counts: Any, figures: Any
) -> None:
    """Write the statistics of the rows `first` to `last`."""
    state = keep_subnormals()
    for i in range(first, last):
        weight_stats(
            values[starts[i] : stops[i]],
            lanes,
            counts[i * N_COUNTS : (i + 1) * N_COUNTS],
            figures[i * N_FIGURES : (i + 1) * N_FIGURES],
        )
    restore_subnormals(state)
