"""Loops over the rows of a column, for every codec: a codec is handed in as a function.

Spans are pairs of arrays, `starts` and `stops`, one entry a row, in elements of
the buffer that they cut: of `values`, or where `kind` says that weights are of
another type, of the bytes `raw`; these are widened into `scratch`. A row that
fails leaves its status (the position of the bad value) in `status` and does not
stop the others.
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
    measure_function,
)
from aq2_pipeline.kernels.bits import keep_subnormals, restore_subnormals
from aq2_pipeline.kernels.moments import (
    N_COUNTS,
    N_ERROR_SUMS,
    N_MOMENTS,
    add_moments,
    count_outliers,
    flush_lanes,
)
from aq2_pipeline.kernels.widening import weights_of

_span = (ints_in, ints_in)
_range = (types.int64, types.int64)
_weights = (types.int64, floats_in, bytes_in, *_span)

ENCODE_ROWS = types.void(
    encode_function, ints_in, *_range, *_weights, ints_in, floats_in, *_span,
    bytes_out, *_span, floats_out, *_span, floats_out, *_span, ints_out, floats_out,
)  # fmt: skip
DECODE_ROWS = types.void(
    decode_function, ints_in, *_range, bytes_in, *_span, floats_in, *_span, floats_in, *_span, ints_in,
    floats_out, *_span, ints_out,
)  # fmt: skip
ERROR_ROWS = types.void(
    error_function, ints_in, *_range, ints_in, ints_in, *_weights, ints_in, floats_in, *_span,
    doubles_out, doubles_out, ints_out, floats_out,
)  # fmt: skip
MEASURE_ROWS = types.void(measure_function, *_range, *_weights, ints_out, floats_out)
MOMENTS_ROWS = types.void(*_range, ints_in, *_weights, ints_out, doubles_out, floats_out)
OUTLIER_ROWS = types.void(*_range, ints_in, *_weights, doubles_out, doubles_out, ints_out, floats_out)


@kernel(ENCODE_ROWS)
def encode_rows(
    encode: Any, params: Any, first: Any, last: Any, kind: Any, values: Any, raw: Any, starts: Any, stops: Any,
    row_lengths: Any, importance: Any, importance_starts: Any, importance_stops: Any,
    data: Any, data_starts: Any, data_stops: Any, scales: Any, scale_starts: Any, scale_stops: Any,
    zero_points: Any, zero_starts: Any, zero_stops: Any, status: Any, scratch: Any,
) -> None:  # fmt: skip
    """Encode the rows `first` to `last`."""
    state = keep_subnormals()
    for i in range(first, last):
        status[i] = encode(
            weights_of(kind, values, raw, starts[i], stops[i], scratch),
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
    error: Any, params: Any, first: Any, last: Any, rows: Any, positions: Any,
    kind: Any, values: Any, raw: Any, starts: Any, stops: Any, row_lengths: Any,
    importance: Any, importance_starts: Any, importance_stops: Any, lanes: Any, sums: Any, status: Any, scratch: Any,
) -> None:  # fmt: skip
    """Sum the errors of the pieces `first` to `last`; a row's pieces share the lanes, in order."""
    state = keep_subnormals()
    for i in range(first, last):
        if positions[i] == 0:
            lanes[:] = 0.0
        own = sums[rows[i] * N_ERROR_SUMS : (rows[i] + 1) * N_ERROR_SUMS]
        status[i] = error(
            weights_of(kind, values, raw, starts[i], stops[i], scratch),
            positions[i],
            row_lengths[i],
            params,
            importance[importance_starts[i] : importance_stops[i]],
            lanes,
            own,
        )
        if i + 1 == rows.size or rows[i + 1] != rows[i]:
            flush_lanes(lanes, own)
    restore_subnormals(state)


@kernel(MEASURE_ROWS)
def measure_rows(
    measure: Any, first: Any, last: Any, kind: Any, values: Any, raw: Any, starts: Any, stops: Any,
    bounds: Any, scratch: Any,
) -> None:  # fmt: skip
    """Measure the pieces `first` to `last`: two bounds a piece."""
    state = keep_subnormals()
    for i in range(first, last):
        measure(weights_of(kind, values, raw, starts[i], stops[i], scratch), bounds[2 * i : 2 * i + 2])
    restore_subnormals(state)


@kernel(MOMENTS_ROWS)
def moments_rows(
    first: Any, last: Any, rows: Any, kind: Any, values: Any, raw: Any, starts: Any, stops: Any,
    counts: Any, moments: Any, scratch: Any,
) -> None:  # fmt: skip
    """Add the pieces `first` to `last` to the counts and moments of their rows."""
    state = keep_subnormals()
    for i in range(first, last):
        row = rows[i]
        add_moments(
            weights_of(kind, values, raw, starts[i], stops[i], scratch),
            counts[row * N_COUNTS : (row + 1) * N_COUNTS],
            moments[row * N_MOMENTS : (row + 1) * N_MOMENTS],
        )
    restore_subnormals(state)


@kernel(OUTLIER_ROWS)
def outlier_rows(
    first: Any, last: Any, rows: Any, kind: Any, values: Any, raw: Any, starts: Any, stops: Any,
    means: Any, reaches: Any, n_outliers: Any, scratch: Any,
) -> None:  # fmt: skip
    """Count, in the pieces `first` to `last`, the values further than their row's reach from its mean."""
    state = keep_subnormals()
    for i in range(first, last):
        row = rows[i]
        weights = weights_of(kind, values, raw, starts[i], stops[i], scratch)
        n_outliers[row] += count_outliers(weights, means[row], reaches[row])
    restore_subnormals(state)
