"""Dequantizing a chunk of the struct that `quantize` gives. Like `aq2_pipeline.decoding`, it believes nothing.

Where a row contradicts itself it declines, and that module says what is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import part
from aq2_pipeline.udfs.duckdb_native import tables
from aq2_pipeline.udfs.duckdb_native.memory import (
    bytes_at,
    decoder_at,
    floats_at,
    floats_out_at,
    integer_at,
    ints_at,
    ints_out_at,
    list_child,
    list_size,
    struct_child,
    vector_data,
    vector_validity,
)
from aq2_pipeline.udfs.duckdb_native.reading import (
    STRING_SIZE,
    all_valid,
    is_valid,
    read_sizes,
    scheme_of_text,
    text_address,
    text_size,
)
from aq2_pipeline.udfs.duckdb_native.tables import (
    N_SCHEME,
    NULL_ROW,
    R_ADDRESS,
    R_DATA,
    R_LENGTH,
    R_ROW_LENGTH,
    R_SCALES,
    R_SCHEME,
    R_ZEROS,
    S_DECODE,
    S_EPOCH,
    S_N_PARAMS,
    S_NAME,
    S_NAME_SIZE,
    S_PARAMS,
    S_TOP,
    of_scheme,
)
from aq2_pipeline.udfs.duckdb_native.writing import room, set_null

_DEQUANTIZE = 1
_N_FIELDS = 6
_LARGEST = 1 << 48


@part
def stored_scheme(state: Any, data: Any, i: Any) -> Any:
    """Return the number of the scheme that a row names by its stored name; -1 for any other text."""
    address, size = text_address(data, i), text_size(data, i)
    scheme = scheme_of_text(state, bytes_at(address, size), S_DECODE, _DEQUANTIZE)
    if scheme < 0 or of_scheme(state, scheme, S_NAME_SIZE) != size:
        return -1
    if of_scheme(state, scheme, S_EPOCH) != state[tables.EPOCH]:
        return -1
    text, name = bytes_at(address, size), bytes_at(of_scheme(state, scheme, S_NAME), size)
    for k in range(size):
        if text[k] != name[k]:
            return -1
    return scheme


@part
def read_row(vector: Any, n: Any, i: Any, rows: Any) -> Any:
    """Fill in the lengths and the data of a row; 0, or 1 to decline."""
    for k in range(_N_FIELDS):
        if not is_valid(vector_validity(struct_child(vector, k)), i):
            return 1
    length = integer_at(vector_data(struct_child(vector, 1)) + 8 * i, 8)
    row_length = integer_at(vector_data(struct_child(vector, 2)) + 8 * i, 8)
    data = vector_data(struct_child(vector, 3))
    if length < 0 or row_length < 0 or length > _LARGEST or length > 8 * text_size(data, i):
        return 1
    if row_length == 0 and length > 0:
        return 1
    if length % max(row_length, 1) != 0:
        return 1
    rows[R_LENGTH * n + i], rows[R_ROW_LENGTH * n + i] = length, row_length
    rows[R_ADDRESS * n + i] = text_address(data, i)
    return 0


@part
def read_quantized(state: Any, vector: Any, n: Any, rows: Any) -> Any:
    """Fill in what decoding needs to know of each row; 0, or something else to decline."""
    mask, names = vector_validity(vector), vector_data(struct_child(vector, 0))
    scheme, last, last_rest = np.int64(-1), np.int64(0), np.int64(0)
    for i in range(n):
        if not is_valid(mask, i):
            rows[R_SCHEME * n + i] = NULL_ROW
            continue
        if read_row(vector, n, i, rows) != 0:
            return 1
        first, rest = integer_at(names + STRING_SIZE * i, 8), integer_at(names + STRING_SIZE * i + 8, 8)
        if scheme < 0 or first != last or rest != last_rest:  # equal 16 bytes are an equal text
            scheme = stored_scheme(state, names, i)
            if scheme < 0:
                return 1
        last, last_rest = first, rest
        rows[R_SCHEME * n + i] = scheme
    return read_sizes(state, n, rows)


@part
def list_of(vector: Any, i: Any, expected: Any, low: Any, high: Any) -> Any:
    """Return where the floats of a row begin, if they are as many as expected and in a range; else -1."""
    entries, size = ints_at(vector_data(vector), 2 * (i + 1)), list_size(vector)
    start, length = entries[2 * i], entries[2 * i + 1]
    if length != expected or start < 0 or start > size - length:
        return -1
    child = list_child(vector)
    address = vector_data(child)
    if address & 3 != 0 or not all_valid(vector_validity(child), start, start + length):
        return -1
    found = floats_at(address + 4 * start, length)
    for k in range(length):
        if not low <= found[k] <= high:
            return -1
    return address + 4 * start


@part
def decode_row(state: Any, vector: Any, n: Any, i: Any, rows: Any, target: Any) -> Any:
    """Decode a row; 0, or 1 to decline."""
    scheme = ints_at(state[tables.SCHEMES] + 8 * N_SCHEME * rows[R_SCHEME * n + i], N_SCHEME)
    n_scales, n_zeros, size = rows[R_SCALES * n + i], rows[R_ZEROS * n + i], rows[R_DATA * n + i]
    if text_size(vector_data(struct_child(vector, 3)), i) != size:
        return 1
    largest = np.float64(3.4028234663852886e38)
    scales = list_of(struct_child(vector, 4), i, n_scales, -largest, largest)
    zeros = list_of(struct_child(vector, 5), i, n_zeros, 0.0, np.float64(scheme[S_TOP]))
    if scales < 0 or zeros < 0:
        return 1
    decode = decoder_at(scheme[S_DECODE])
    status = decode(
        bytes_at(rows[R_ADDRESS * n + i], size),
        floats_at(scales, n_scales),
        floats_at(zeros, n_zeros),
        rows[R_ROW_LENGTH * n + i],
        ints_at(scheme[S_PARAMS], scheme[S_N_PARAMS]),
        floats_out_at(target, rows[R_LENGTH * n + i]),
    )
    return 1 if status >= 0 else 0


@part
def decode_chunk(state: Any, vector: Any, result: Any, n: Any, rows: Any) -> Any:
    """Decode a chunk into a FLOAT[] vector, where the values belong; 0, or something else to decline."""
    if read_quantized(state, vector, n, rows) != 0:
        return 1
    total = np.int64(0)
    for i in range(n):
        if rows[R_SCHEME * n + i] != NULL_ROW:
            if text_size(vector_data(struct_child(vector, 3)), i) != rows[R_DATA * n + i]:
                return 1  # before a forged length asks for memory
            total += rows[R_LENGTH * n + i]
    if room(result, total) != 0:
        return 1
    entries, values, at = ints_out_at(vector_data(result), 2 * n), vector_data(list_child(result)), np.int64(0)
    for i in range(n):
        entries[2 * i], entries[2 * i + 1] = at, 0
        if rows[R_SCHEME * n + i] == NULL_ROW:
            set_null(result, i)
            continue
        if decode_row(state, vector, n, i, rows, values + 4 * at) != 0:
            return 1
        entries[2 * i + 1] = rows[R_LENGTH * n + i]
        at += rows[R_LENGTH * n + i]
    return 0
