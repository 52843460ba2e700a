"""The fast bodies: a chunk through a codec's kernels, without Python and without a copy of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import callback, part
from aq2_pipeline.kernels.bits import keep_subnormals, restore_subnormals
from aq2_pipeline.kernels.moments import N_ERROR_SUMS, N_LANES, flush_lanes
from aq2_pipeline.udfs.duckdb_native import tables
from aq2_pipeline.udfs.duckdb_native.bodies import BODY
from aq2_pipeline.udfs.duckdb_native.decoding import decode_chunk
from aq2_pipeline.udfs.duckdb_native.memory import (
    allocate,
    assign_string,
    bind_data,
    bytes_out_at,
    call_c,
    chunk_size,
    chunk_vector,
    doubles_out_at,
    encoder_at,
    error_at,
    extra_info,
    floats_at,
    floats_out_at,
    free,
    ints_at,
    ints_out_at,
    list_child,
    struct_child,
    vector_data,
)
from aq2_pipeline.udfs.duckdb_native.reading import read_chunk, read_weights
from aq2_pipeline.udfs.duckdb_native.summing import N_SUMS, stats_rows
from aq2_pipeline.udfs.duckdb_native.tables import (
    MOST_AXES,
    N_ROW,
    NULL_ROW,
    R_ADDRESS,
    R_DATA,
    R_LENGTH,
    R_ROW_LENGTH,
    R_SCALES,
    R_SCHEME,
    R_ZEROS,
    S_ENCODE,
    S_ERROR,
    S_N_PARAMS,
    S_NAME,
    S_NAME_SIZE,
    S_PARAMS,
)
from aq2_pipeline.udfs.duckdb_native.writing import has_room, room, set_null

_QUANTIZE, _ERROR = 0, 2


@part
def set_null_quantized(result: Any, i: Any) -> None:
    """Make a struct row NULL, and every child: DuckDB copies the children of a NULL row, too."""
    set_null(result, i)
    for k in range(6):
        set_null(struct_child(result, k), i)


@part
def totals(n: Any, rows: Any) -> Any:
    """Return the scales, zero points and bytes of data of all rows, and the most data of one."""
    n_scales, n_zeros, n_bytes, most = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for i in range(n):
        if rows[R_SCHEME * n + i] != NULL_ROW:
            n_scales += rows[R_SCALES * n + i]
            n_zeros += rows[R_ZEROS * n + i]
            n_bytes += rows[R_DATA * n + i]
            most = max(most, rows[R_DATA * n + i])
    return n_scales, n_zeros, n_bytes, most


@part
def write_name(vector: Any, i: Any, scheme: Any, before: Any) -> None:
    """Write a scheme's name; where a row before has the same, its 16 bytes are that string."""
    if before >= 0:
        strings = ints_out_at(vector_data(vector), 2 * (i + 1))
        strings[2 * i], strings[2 * i + 1] = strings[2 * before], strings[2 * before + 1]
    else:
        assign_string(vector, i, scheme[S_NAME], scheme[S_NAME_SIZE])


@part
def encode_rows(state: Any, n: Any, rows: Any, result: Any, scratch: Any) -> Any:
    """Encode the rows into the result; 0, or 1 to decline."""
    names, data_vector = struct_child(result, 0), struct_child(result, 3)
    scales, zeros = struct_child(result, 4), struct_child(result, 5)
    lengths = ints_out_at(vector_data(struct_child(result, 1)), n)
    row_lengths = ints_out_at(vector_data(struct_child(result, 2)), n)
    scale_entries, zero_entries = ints_out_at(vector_data(scales), 2 * n), ints_out_at(vector_data(zeros), 2 * n)
    scale_values, zero_values = vector_data(list_child(scales)), vector_data(list_child(zeros))
    nothing = floats_at(0, 0)
    scale_at, zero_at, before = np.int64(0), np.int64(0), np.int64(-1)
    for i in range(n):
        n_scales, n_zeros = rows[R_SCALES * n + i], rows[R_ZEROS * n + i]
        number, length = rows[R_SCHEME * n + i], rows[R_LENGTH * n + i]
        scale_entries[2 * i], zero_entries[2 * i] = scale_at, zero_at
        if number == NULL_ROW:
            scale_entries[2 * i + 1], zero_entries[2 * i + 1] = 0, 0
            set_null_quantized(result, i)
            continue
        scheme = ints_at(state[tables.SCHEMES] + 8 * tables.N_SCHEME * number, tables.N_SCHEME)
        size = rows[R_DATA * n + i]
        encode = encoder_at(scheme[S_ENCODE])
        status = encode(
            floats_at(rows[R_ADDRESS * n + i], length),
            rows[R_ROW_LENGTH * n + i],
            ints_at(scheme[S_PARAMS], scheme[S_N_PARAMS]),
            nothing,
            bytes_out_at(scratch, size),
            floats_out_at(scale_values + 4 * scale_at, n_scales),
            floats_out_at(zero_values + 4 * zero_at, n_zeros),
        )
        if status >= 0:
            return 1
        scale_entries[2 * i + 1], zero_entries[2 * i + 1] = n_scales, n_zeros
        scale_at += n_scales
        zero_at += n_zeros
        lengths[i], row_lengths[i] = length, rows[R_ROW_LENGTH * n + i]
        assign_string(data_vector, i, scratch, size)
        write_name(names, i, scheme, before if before >= 0 and rows[R_SCHEME * n + before] == number else -1)
        before = i
    return 0


@part
def quantize_chunk(state: Any, bound: Any, chunk: Any, result: Any, n: Any, space: Any) -> Any:
    """Quantize a chunk; 0, or something else to decline."""
    rows, shape = ints_out_at(space, N_ROW * n), ints_out_at(space + 8 * N_ROW * n, MOST_AXES)
    if read_chunk(state, bound, chunk, n, rows, shape, S_ENCODE, _QUANTIZE) != 0:
        return 1
    n_scales, n_zeros, n_bytes, most = totals(n, rows)
    if (
        not has_room(2 * n_bytes)
        or room(struct_child(result, 4), n_scales) != 0
        or room(struct_child(result, 5), n_zeros) != 0
    ):
        return 1
    scratch = allocate(most + 8)
    if scratch == 0:
        return 1
    status = encode_rows(state, n, rows, result, scratch)
    free(scratch)
    return status


@part
def sum_errors(n: Any, state: Any, rows: Any, lanes: Any, sums: Any) -> Any:
    """Sum the errors of each row; 0, or 1 to decline."""
    nothing = floats_at(0, 0)
    for i in range(n):
        own = sums[i * N_ERROR_SUMS : (i + 1) * N_ERROR_SUMS]
        own[:] = 0.0
        lanes[:] = 0.0
        if rows[R_SCHEME * n + i] == NULL_ROW:
            continue
        scheme = ints_at(state[tables.SCHEMES] + 8 * tables.N_SCHEME * rows[R_SCHEME * n + i], tables.N_SCHEME)
        error = error_at(scheme[S_ERROR])
        status = error(
            floats_at(rows[R_ADDRESS * n + i], rows[R_LENGTH * n + i]),
            np.int64(0),
            rows[R_ROW_LENGTH * n + i],
            ints_at(scheme[S_PARAMS], scheme[S_N_PARAMS]),
            nothing,
            lanes,
            own,
        )
        if status >= 0:
            return 1
        flush_lanes(lanes, own)
    return 0


@part
def error_chunk(record: Any, bound: Any, chunk: Any, result: Any, n: Any, space: Any) -> Any:
    """Sum the errors of a chunk, and let Python make the figures: NumPy's logarithm is not everybody's; 0 is good."""
    state = ints_at(record[tables.STATE], tables.N_STATE)
    rows, shape = ints_out_at(space, N_ROW * n), ints_out_at(space + 8 * N_ROW * n, MOST_AXES)
    sums = doubles_out_at(space + 8 * (N_ROW * n + MOST_AXES), n * N_ERROR_SUMS)
    lanes = doubles_out_at(space + 8 * ((N_ROW + N_ERROR_SUMS) * n + MOST_AXES), N_ERROR_SUMS * N_LANES)
    if read_chunk(state, bound, chunk, n, rows, shape, S_ERROR, _ERROR) != 0:
        return 1
    if sum_errors(n, state, rows, lanes, sums) != 0:
        return 1
    return call_c(record[tables.FINISH], result, space, n)


@part
def runs_fast(given: Any) -> Any:
    """Whether a call was bound to what the fast bodies read."""
    return given != 0 and ints_at(given, tables.N_BOUND)[tables.B_FAST] != 0


@callback(BODY)
def quantize(info: Any, chunk: Any, result: Any) -> Any:
    """`aq2_quantize`."""
    given, n = bind_data(info), chunk_size(chunk)
    space = allocate(8 * (N_ROW * n + MOST_AXES)) if runs_fast(given) else 0
    if space == 0:
        return 1
    state = ints_at(ints_at(extra_info(info), tables.N_RECORD)[tables.STATE], tables.N_STATE)
    before = keep_subnormals()
    status = quantize_chunk(state, ints_at(given, tables.N_BOUND), chunk, result, n, space)
    restore_subnormals(before)
    free(space)
    return status


@callback(BODY)
def quantization_error(info: Any, chunk: Any, result: Any) -> Any:
    """`aq2_quantization_error`."""
    given, n = bind_data(info), chunk_size(chunk)
    n_words = (N_ROW + N_ERROR_SUMS) * n + MOST_AXES + N_ERROR_SUMS * N_LANES
    space = allocate(8 * n_words) if runs_fast(given) else 0
    if space == 0:
        return 1
    record = ints_at(extra_info(info), tables.N_RECORD)
    before = keep_subnormals()
    status = error_chunk(record, ints_at(given, tables.N_BOUND), chunk, result, n, space)
    restore_subnormals(before)
    free(space)
    return status


@callback(BODY)
def dequantize(info: Any, chunk: Any, result: Any) -> Any:
    """`aq2_dequantize`."""
    given, n = bind_data(info), chunk_size(chunk)
    space = allocate(8 * (N_ROW * n + MOST_AXES)) if runs_fast(given) else 0
    if space == 0:
        return 1
    state = ints_at(ints_at(extra_info(info), tables.N_RECORD)[tables.STATE], tables.N_STATE)
    before = keep_subnormals()
    status = decode_chunk(state, chunk_vector(chunk, 0), result, n, ints_out_at(space, N_ROW * n))
    restore_subnormals(before)
    free(space)
    return status


@callback(BODY)
def weight_stats(info: Any, chunk: Any, result: Any) -> Any:
    """`aq2_weight_stats`."""
    given, n = bind_data(info), chunk_size(chunk)
    space = allocate(8 * (N_ROW * n + N_SUMS)) if runs_fast(given) else 0
    if space == 0:
        return 1
    rows = ints_out_at(space, N_ROW * n)
    status = np.int64(read_weights(ints_at(given, tables.N_BOUND), chunk_vector(chunk, 0), n, rows))
    if status == 0:
        before = keep_subnormals()
        stats_rows(n, rows, result, space + 8 * N_ROW * n)
        restore_subnormals(before)
    free(space)
    return status
