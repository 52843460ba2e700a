"""How fast bodies read a chunk: where each row's weights lie, which scheme they want, what they take.

Nothing that DuckDB hands over is believed where a wrong number could lead out of
a vector: spans of lists are checked against the child's size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import part
from aq2_pipeline.schemes import matrix_row
from aq2_pipeline.udfs.duckdb_native import tables
from aq2_pipeline.udfs.duckdb_native.memory import (
    address_of,
    array_child,
    bytes_at,
    call_c,
    chunk_vector,
    integer_at,
    ints_at,
    list_child,
    list_size,
    vector_data,
    vector_validity,
)
from aq2_pipeline.udfs.duckdb_native.tables import (
    ARRAYS,
    B_SCHEME,
    B_SCHEME_ID,
    B_SHAPE,
    B_WEIGHTS,
    B_WIDTH,
    BLOBS,
    CONSTANT,
    LISTS,
    NULL_ROW,
    R_ADDRESS,
    R_DATA,
    R_LENGTH,
    R_ROW_LENGTH,
    R_SCALES,
    R_SCHEME,
    R_ZEROS,
    S_BLOBS,
    S_EPOCH,
    S_GROUP,
    S_LISTS,
    TEXTS,
    UNKNOWN,
    find_name,
    find_sizes,
    of_scheme,
)

#: `string_t`: 16 bytes; a text of up to 12 is held in it, a longer one's address begins at byte 8.
STRING_SIZE, _INLINE = 16, 12

_LARGEST = 0x7FFFFFFF

_row_length = part(matrix_row)


@part
def is_valid(mask: Any, i: Any) -> Any:
    """Whether a row is not NULL; a mask of 0 has no NULLs."""
    return mask == 0 or (ints_at(mask, (i >> 6) + 1)[i >> 6] >> (i & 63)) & 1 != 0


@part
def all_valid(mask: Any, start: Any, stop: Any) -> Any:
    """Whether none of a range of rows is NULL; 64 at a time."""
    if mask == 0 or start >= stop:
        return True
    first, last = start >> 6, (stop - 1) >> 6
    words = ints_at(mask, last + 1)
    for k in range(first, last + 1):
        nulls = ~words[k]
        if k == first:
            nulls &= np.int64(-1) << (start & 63)
        if k == last and stop & 63 != 0:
            nulls &= (np.int64(1) << (stop & 63)) - 1
        if nulls != 0:
            return False
    return True


@part
def text_size(data: Any, i: Any) -> Any:
    """Return the size of a string or blob."""
    return integer_at(data + STRING_SIZE * i, 4) & 0xFFFFFFFF


@part
def text_address(data: Any, i: Any) -> Any:
    """Return where the bytes of a string or blob are."""
    at = data + STRING_SIZE * i
    return at + 4 if text_size(data, i) <= _INLINE else integer_at(at + 8, 8)


@part
def read_lists(vector: Any, n: Any, rows: Any) -> Any:
    """Fill in where the rows of a FLOAT[] vector lie; 0, or 1 to decline."""
    mask, entries = vector_validity(vector), ints_at(vector_data(vector), 2 * n)
    child, size = list_child(vector), list_size(vector)
    data, nulls = vector_data(child), vector_validity(child)
    for i in range(n):
        if not is_valid(mask, i):  # its entry is garbage
            rows[R_SCHEME * n + i] = NULL_ROW
            continue
        start, length = entries[2 * i], entries[2 * i + 1]
        if start < 0 or length < 0 or length > size or start > size - length:
            return 1
        if not all_valid(nulls, start, start + length):
            return 1
        rows[R_SCHEME * n + i] = 0
        rows[R_ADDRESS * n + i], rows[R_LENGTH * n + i] = data + 4 * start, length
    return data & 3


@part
def read_arrays(vector: Any, width: Any, n: Any, rows: Any) -> Any:
    """Fill in where the rows of a FLOAT[width] vector lie."""
    mask, child = vector_validity(vector), array_child(vector)
    data, nulls = vector_data(child), vector_validity(child)
    for i in range(n):
        if not is_valid(mask, i):
            rows[R_SCHEME * n + i] = NULL_ROW
            continue
        if not all_valid(nulls, i * width, (i + 1) * width):
            return 1
        rows[R_SCHEME * n + i] = 0
        rows[R_ADDRESS * n + i], rows[R_LENGTH * n + i] = data + 4 * i * width, width
    return data & 3


@part
def read_blobs(vector: Any, n: Any, rows: Any) -> Any:
    """Fill in where the rows of a BLOB vector of float32 lie."""
    mask, data = vector_validity(vector), vector_data(vector)
    for i in range(n):
        if not is_valid(mask, i):
            rows[R_SCHEME * n + i] = NULL_ROW
            continue
        size, address = text_size(data, i), text_address(data, i)
        if (size | address) & 3 != 0:
            return 1
        rows[R_SCHEME * n + i] = 0
        rows[R_ADDRESS * n + i], rows[R_LENGTH * n + i] = address, size >> 2
    return 0


@part
def read_weights(bound: Any, vector: Any, n: Any, rows: Any) -> Any:
    """Fill in where the rows lie; 0, or something else to decline."""
    if bound[B_WEIGHTS] == LISTS:
        return read_lists(vector, n, rows)
    if bound[B_WEIGHTS] == ARRAYS:
        return read_arrays(vector, bound[B_WIDTH], n, rows)
    return read_blobs(vector, n, rows)


@part
def scheme_of_text(state: Any, text: Any, kernel: Any, function: Any) -> Any:
    """Return the number of the scheme of a name; -1 where there is none."""
    found = find_name(state, text)
    if found != 0:
        scheme = ints_at(found, tables.N_NAME)[tables.N_ID]
        if of_scheme(state, scheme, kernel) != 0:
            return scheme
    return call_c(state[tables.RESOLVE], address_of(text), text.size, function)


@part
def scheme_of_bits(state: Any, bits: Any, kernel: Any, function: Any) -> Any:
    """Return the number of the scheme of a width; -1 where there is none."""
    if bits < 0 or bits >= tables.MOST_WIDTHS:
        return -1
    scheme = ints_at(state[tables.WIDTHS], tables.MOST_WIDTHS)[bits]
    if scheme >= 0 and of_scheme(state, scheme, kernel) != 0:
        return scheme
    return call_c(state[tables.RESOLVE], 0, bits, function)


@part
def read_schemes(state: Any, bound: Any, vector: Any, n: Any, rows: Any, kernel: Any, function: Any) -> Any:
    """Fill in the scheme of each row; 0, or 1 to decline."""
    mask, data = vector_validity(vector), vector_data(vector)
    kind, blobs = bound[B_SCHEME], bound[B_WEIGHTS] == BLOBS
    scheme, last, last_rest = bound[B_SCHEME_ID], np.int64(-1), np.int64(-1)
    known = kind == CONSTANT
    for i in range(n):
        if rows[R_SCHEME * n + i] == NULL_ROW:
            continue
        if kind != CONSTANT:
            if not is_valid(mask, i):
                return 1
            if kind == TEXTS:
                first, rest = integer_at(data + STRING_SIZE * i, 8), integer_at(data + STRING_SIZE * i + 8, 8)
                if not known or first != last or rest != last_rest:  # equal 16 bytes are an equal text
                    text = bytes_at(text_address(data, i), text_size(data, i))
                    scheme = scheme_of_text(state, text, kernel, function)
                last, last_rest = first, rest
            else:
                size = abs(kind)
                bits = integer_at(data + size * i, size)
                if not known or bits != last:
                    scheme = scheme_of_bits(state, bits, kernel, function)
                last = bits
            known = True
        if scheme < 0:
            return 1
        taken = of_scheme(state, scheme, S_BLOBS if blobs else S_LISTS)
        if taken == 0 or of_scheme(state, scheme, S_EPOCH) != state[tables.EPOCH]:
            return 1
        rows[R_SCHEME * n + i] = scheme
    return 0


@part
def shape_of(address: Any, size: Any, rank: Any, length: Any, shape: Any) -> Any:
    """Read a shape; 0 where its product is the row's length, else 1."""
    product = np.int64(1)
    for k in range(rank):
        axis = integer_at(address + size * k, size)
        if axis < 0 or axis > _LARGEST or product > _LARGEST:  # no product overflows
            return 1
        shape[k] = axis
        product *= axis
    return 0 if product == length else 1


@part
def read_shapes(state: Any, bound: Any, vector: Any, n: Any, rows: Any, shape: Any) -> Any:
    """Fill in the length of each row's matrix rows; 0, or 1 to decline."""
    mask, entries = vector_validity(vector), ints_at(vector_data(vector), 2 * n)
    child, size = list_child(vector), list_size(vector)
    data, nulls, width = vector_data(child), vector_validity(child), bound[B_SHAPE]
    for i in range(n):
        if rows[R_SCHEME * n + i] == NULL_ROW or not is_valid(mask, i):
            continue
        start, rank = entries[2 * i], entries[2 * i + 1]
        if start < 0 or rank < 0 or rank > shape.size or start > size - rank:
            return 1
        if not all_valid(nulls, start, start + rank):
            return 1
        if shape_of(data + width * start, width, rank, rows[R_LENGTH * n + i], shape) != 0:
            return 1
        group = of_scheme(state, rows[R_SCHEME * n + i], S_GROUP)
        rows[R_ROW_LENGTH * n + i] = _row_length(shape[:rank], group)
    return 0


@part
def read_sizes(state: Any, n: Any, rows: Any) -> Any:
    """Fill in what each row takes: from the row before, the table, or a callback for the chunk; 0, or 1 to decline."""
    missing = False
    before = np.int64(-1)
    for i in range(n):
        scheme, length, row_length = rows[R_SCHEME * n + i], rows[R_LENGTH * n + i], rows[R_ROW_LENGTH * n + i]
        if scheme == NULL_ROW:
            continue
        same = before >= 0 and scheme == rows[R_SCHEME * n + before] and length == rows[R_LENGTH * n + before]
        if same and row_length == rows[R_ROW_LENGTH * n + before]:
            for field in (R_DATA, R_SCALES, R_ZEROS):
                rows[field * n + i] = rows[field * n + before]
        else:
            found = find_sizes(state, scheme, length, row_length)
            if found == 0:
                missing = True
                rows[R_DATA * n + i] = UNKNOWN
                continue
            known = ints_at(found, tables.N_SIZE_ROW)
            rows[R_DATA * n + i], rows[R_SCALES * n + i] = known[tables.Z_DATA], known[tables.Z_SCALES]
            rows[R_ZEROS * n + i] = known[tables.Z_ZEROS]
        before = i
    if missing:
        return call_c(state[tables.SETTLE], address_of(rows), n, 0)
    return 0


@part
def read_chunk(state: Any, bound: Any, chunk: Any, n: Any, rows: Any, shape: Any, kernel: Any, function: Any) -> Any:
    """Fill in all that encoding a chunk needs; 0, or something else to decline."""
    if read_weights(bound, chunk_vector(chunk, 0), n, rows) != 0:
        return 1
    if read_schemes(state, bound, chunk_vector(chunk, 1), n, rows, kernel, function) != 0:
        return 1
    for i in range(n):
        rows[R_ROW_LENGTH * n + i] = rows[R_LENGTH * n + i]
    if bound[B_SHAPE] != tables.NO_SHAPE and read_shapes(state, bound, chunk_vector(chunk, 2), n, rows, shape) != 0:
        return 1
    return read_sizes(state, n, rows)
