"""Loops over the rows of a column, for every codec: a codec is handed in as a function.

Spans are pairs of arrays, `starts` and `stops`, one entry a row, in elements of
the buffer that they cut: of `values`, or where `kind` says that weights are of
another type, of the bytes `raw`. These are widened into `scratch` block by block:
a block of 1,024 stays in a core's first cache, and takes 0.22 ms per million
float16 that come from memory, where one of 8,192 takes 0.36 and float32 0.23.
A codec that reads aligned float16 itself is called by `encode_half_rows`: no block,
no plan, and int4 in groups of 64 takes 0.21 instead of 0.26 ms per million.
Where a row is cut into blocks is its plan, `N_PLAN` numbers. A row that fails
leaves its status (the position of the bad value) in `status` and does not stop
the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from aq2_pipeline.kernels._jit import (
    bytes_in,
    bytes_out,
    decode_function,
    doubles_out,
    encode_function,
    encode_halves_function,
    error_function,
    floats_in,
    floats_out,
    helper,
    inlined,
    ints_in,
    ints_out,
    kernel,
    measure_function,
)
from aq2_pipeline.kernels.bits import keep_subnormals, restore_subnormals
from aq2_pipeline.kernels.differences import add_differences
from aq2_pipeline.kernels.moments import (
    BLOCK_SIZE,
    N_COUNTS,
    N_ERROR_SUMS,
    N_MOMENTS,
    add_moments,
    count_outliers,
    flush_lanes,
)
from aq2_pipeline.kernels.widening import DIRECT, size_of, weights_of, widen

_span = (ints_in, ints_in)
_range = (types.int64, types.int64)
_weights = (types.int64, floats_in, bytes_in, *_span)

#: A row's plan. Blocks begin anew at each stride, which is a matrix row or the whole row; `INSIDE` says which.
(
    BLOCK,
    STRIDE,
    INSIDE,
    DATA_OF_BLOCK,
    SCALES_OF_BLOCK,
    ZEROS_OF_BLOCK,
    DATA_OF_STRIDE,
    SCALES_OF_STRIDE,
    ZEROS_OF_STRIDE,
) = range(9)
N_PLAN = 9

ENCODE_ROWS = types.void(
    encode_function, ints_in, *_range, *_weights, ints_in, floats_in, *_span,
    bytes_out, *_span, floats_out, *_span, floats_out, *_span, ints_out, ints_in, floats_out,
)  # fmt: skip
ENCODE_HALF_ROWS = types.void(encode_halves_function, *ENCODE_ROWS.args[1:])
DECODE_ROWS = types.void(
    decode_function, ints_in, *_range, bytes_in, *_span, floats_in, *_span, floats_in, *_span, ints_in,
    floats_out, *_span, ints_out,
)  # fmt: skip
DIFFERENCE_ROWS = types.void(*DECODE_ROWS.args[:14], floats_in, *_span, floats_out, doubles_out, doubles_out, ints_out)
ERROR_ROWS = types.void(
    error_function, ints_in, *_range, ints_in, ints_in, *_weights, ints_in, floats_in, *_span,
    doubles_out, doubles_out, ints_out, ints_in, floats_out,
)  # fmt: skip
MEASURE_ROWS = types.void(measure_function, *_range, *_weights, ints_out, floats_out)
MOMENTS_ROWS = types.void(*_range, ints_in, *_weights, ints_out, doubles_out, floats_out)
OUTLIER_ROWS = types.void(*_range, ints_in, *_weights, doubles_out, doubles_out, ints_out, floats_out)


@inlined
def importance_of(importance: Any, length: Any, at: Any, low: Any, n: Any, inside: Any) -> Any:
    """Return a block's importance, of that of a piece: see `encoding` for what a piece has."""
    first, last = 0, importance.size
    if last == length:  # one a weight, or a piece within a matrix row
        first, last = at + low, at + low + n
    elif last > 0 and inside != 0:
        first, last = low, low + n
    return importance[first:last]


@helper
def encode_row(
    encode: Any, params: Any, kind: Any, values: Any, raw: Any, start: Any, stop: Any, row_length: Any,
    importance: Any, data: Any, scales: Any, zero_points: Any, plan: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Encode one row, block by block if it must be widened."""
    if kind == DIRECT:
        return encode(values[start:stop], row_length, params, importance, data, scales, zero_points)
    size = size_of(kind)
    block, stride = plan[BLOCK], plan[STRIDE]
    for at in range(0, (stop - start) // size, stride):
        k = at // stride
        for low in range(0, stride, block):
            j, n = low // block, min(block, stride - low)
            first = start + size * (at + low)
            widen(raw[first : first + size * n], kind, scratch)
            d = k * plan[DATA_OF_STRIDE] + j * plan[DATA_OF_BLOCK]
            s = k * plan[SCALES_OF_STRIDE] + j * plan[SCALES_OF_BLOCK]
            z = k * plan[ZEROS_OF_STRIDE] + j * plan[ZEROS_OF_BLOCK]
            status = encode(
                scratch[:n],
                n if plan[INSIDE] != 0 else row_length,
                params,
                importance_of(importance, (stop - start) // size, at, low, n, plan[INSIDE]),
                data[d : min(d + plan[DATA_OF_BLOCK], (k + 1) * plan[DATA_OF_STRIDE])],
                scales[s : min(s + plan[SCALES_OF_BLOCK], (k + 1) * plan[SCALES_OF_STRIDE])],
                zero_points[z : min(z + plan[ZEROS_OF_BLOCK], (k + 1) * plan[ZEROS_OF_STRIDE])],
            )
            if status >= 0:
                return at + low + status
    return -1


@helper
def error_row(
    error: Any, params: Any, kind: Any, values: Any, raw: Any, start: Any, stop: Any, position: Any, row_length: Any,
    importance: Any, lanes: Any, sums: Any, plan: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Sum the errors of one row, block by block if it must be widened."""
    if kind == DIRECT:
        return error(values[start:stop], position, row_length, params, importance, lanes, sums)
    size = size_of(kind)
    block, stride = plan[BLOCK], plan[STRIDE]
    for at in range(0, (stop - start) // size, stride):
        for low in range(0, stride, block):
            n = min(block, stride - low)
            first = start + size * (at + low)
            widen(raw[first : first + size * n], kind, scratch)
            own = n if plan[INSIDE] != 0 else row_length
            given = importance_of(importance, (stop - start) // size, at, low, n, plan[INSIDE])
            status = error(scratch[:n], position + at + low, own, params, given, lanes, sums)
            if status >= 0:
                return at + low + status
    return -1


@kernel(ENCODE_ROWS)
def encode_rows(
    encode: Any, params: Any, first: Any, last: Any, kind: Any, values: Any, raw: Any, starts: Any, stops: Any,
    row_lengths: Any, importance: Any, importance_starts: Any, importance_stops: Any,
    data: Any, data_starts: Any, data_stops: Any, scales: Any, scale_starts: Any, scale_stops: Any,
    zero_points: Any, zero_starts: Any, zero_stops: Any, status: Any, plans: Any, scratch: Any,
) -> None:  # fmt: skip
    """Encode the rows `first` to `last`."""
    state = keep_subnormals()
    for i in range(first, last):
        status[i] = encode_row(
            encode,
            params,
            kind,
            values,
            raw,
            starts[i],
            stops[i],
            row_lengths[i],
            importance[importance_starts[i] : importance_stops[i]],
            data[data_starts[i] : data_stops[i]],
            scales[scale_starts[i] : scale_stops[i]],
            zero_points[zero_starts[i] : zero_stops[i]],
            plans[N_PLAN * i : N_PLAN * (i + 1)],
            scratch,
        )
    restore_subnormals(state)


@kernel(ENCODE_HALF_ROWS)
def encode_half_rows(
    encode: Any, params: Any, first: Any, last: Any, kind: Any, values: Any, raw: Any, starts: Any, stops: Any,
    row_lengths: Any, importance: Any, importance_starts: Any, importance_stops: Any,
    data: Any, data_starts: Any, data_stops: Any, scales: Any, scale_starts: Any, scale_stops: Any,
    zero_points: Any, zero_starts: Any, zero_stops: Any, status: Any, plans: Any, scratch: Any,
) -> None:  # fmt: skip
    """Do as `encode_rows`, but for aligned float16 and a codec that reads them: nothing is widened in memory."""
    state = keep_subnormals()
    for i in range(first, last):
        status[i] = encode(
            raw[starts[i] : stops[i]].view(np.uint16),
            row_lengths[i],
            params,
            importance[importance_starts[i] : importance_stops[i]],
            data[data_starts[i] : data_stops[i]],
            scales[scale_starts[i] : scale_stops[i]],
            zero_points[zero_starts[i] : zero_stops[i]],
        )
    restore_subnormals(state)


@helper
def decode_row(
    decode: Any, params: Any, i: Any, data: Any, data_starts: Any, data_stops: Any,
    scales: Any, scale_starts: Any, scale_stops: Any, zero_points: Any, zero_starts: Any, zero_stops: Any,
    row_lengths: Any, values: Any,
) -> Any:  # fmt: skip
    """Decode one row."""
    return decode(
        data[data_starts[i] : data_stops[i]],
        scales[scale_starts[i] : scale_stops[i]],
        zero_points[zero_starts[i] : zero_stops[i]],
        row_lengths[i],
        params,
        values,
    )


@kernel(DECODE_ROWS)
def decode_rows(
    decode: Any, params: Any, first: Any, last: Any, data: Any, data_starts: Any, data_stops: Any,
    scales: Any, scale_starts: Any, scale_stops: Any, zero_points: Any, zero_starts: Any, zero_stops: Any,
    row_lengths: Any, values: Any, starts: Any, stops: Any, status: Any,
) -> None:  # fmt: skip
    """Decode the rows `first` to `last`."""
    state = keep_subnormals()
    for i in range(first, last):
        status[i] = decode_row(
            decode, params, i, data, data_starts, data_stops, scales, scale_starts, scale_stops,
            zero_points, zero_starts, zero_stops, row_lengths, values[starts[i] : stops[i]],
        )  # fmt: skip
    restore_subnormals(state)


@kernel(DIFFERENCE_ROWS)
def difference_rows(
    decode: Any, params: Any, first: Any, last: Any, data: Any, data_starts: Any, data_stops: Any,
    scales: Any, scale_starts: Any, scale_stops: Any, zero_points: Any, zero_starts: Any, zero_stops: Any,
    row_lengths: Any, values: Any, starts: Any, stops: Any, scratch: Any, lanes: Any, sums: Any, status: Any,
) -> None:  # fmt: skip
    """Decode the rows `first` to `last` one after the other into scratch, and compare each with its weights."""
    state = keep_subnormals()
    for i in range(first, last):
        others = scratch[: stops[i] - starts[i]]
        status[i] = decode_row(
            decode, params, i, data, data_starts, data_stops, scales, scale_starts, scale_stops,
            zero_points, zero_starts, zero_stops, row_lengths, others,
        )  # fmt: skip
        own = sums[i * N_ERROR_SUMS : (i + 1) * N_ERROR_SUMS]
        add_differences(values[starts[i] : stops[i]], others, lanes, own)
    restore_subnormals(state)


@kernel(ERROR_ROWS)
def error_rows(
    error: Any, params: Any, first: Any, last: Any, rows: Any, positions: Any,
    kind: Any, values: Any, raw: Any, starts: Any, stops: Any, row_lengths: Any,
    importance: Any, importance_starts: Any, importance_stops: Any, lanes: Any, sums: Any, status: Any, plans: Any,
    scratch: Any,
) -> None:  # fmt: skip
    """Sum the errors of the pieces `first` to `last`; a row's pieces share the lanes, in order."""
    state = keep_subnormals()
    for i in range(first, last):
        if positions[i] == 0:
            lanes[:] = 0.0
        own = sums[rows[i] * N_ERROR_SUMS : (rows[i] + 1) * N_ERROR_SUMS]
        status[i] = error_row(
            error,
            params,
            kind,
            values,
            raw,
            starts[i],
            stops[i],
            positions[i],
            row_lengths[i],
            importance[importance_starts[i] : importance_stops[i]],
            lanes,
            own,
            plans[N_PLAN * i : N_PLAN * (i + 1)],
            scratch,
        )
        if i + 1 == rows.size or rows[i + 1] != rows[i]:
            flush_lanes(lanes, own)
    restore_subnormals(state)


@helper
def block_bytes(kind: Any, start: Any, stop: Any) -> Any:
    """Return how much of a span is summed at once: all, or a block of sums of what must be widened."""
    return max(stop - start, 1) if kind == DIRECT else BLOCK_SIZE * size_of(kind)


@kernel(MEASURE_ROWS)
def measure_rows(
    measure: Any, first: Any, last: Any, kind: Any, values: Any, raw: Any, starts: Any, stops: Any,
    bounds: Any, scratch: Any,
) -> None:  # fmt: skip
    """Measure the pieces `first` to `last`: two bounds a piece."""
    state = keep_subnormals()
    for i in range(first, last):
        length = block_bytes(kind, starts[i], stops[i])
        for start in range(starts[i], stops[i], length):
            stop = min(start + length, stops[i])
            measure(weights_of(kind, values, raw, start, stop, scratch), bounds[2 * i : 2 * i + 2])
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
        length = block_bytes(kind, starts[i], stops[i])
        for start in range(starts[i], stops[i], length):
            add_moments(
                weights_of(kind, values, raw, start, min(start + length, stops[i]), scratch),
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
        length = block_bytes(kind, starts[i], stops[i])
        for start in range(starts[i], stops[i], length):
            weights = weights_of(kind, values, raw, start, min(start + length, stops[i]), scratch)
            n_outliers[row] += count_outliers(weights, means[row], reaches[row])
    restore_subnormals(state)
