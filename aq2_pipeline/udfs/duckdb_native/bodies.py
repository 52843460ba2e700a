"""The bodies that DuckDB calls: one that chooses, and the fast ones, which are compiled and hold no lock of Python's.

A fast body returns 0, or declines: whatever it does not know, or a row that
fails. Then the general body does the whole chunk, and tells what is wrong.
"""

from __future__ import annotations

from typing import Any

from numba import types

from aq2_pipeline.kernels._jit import bytes_in, callback, ints_in, ints_out, kernel
from aq2_pipeline.udfs.duckdb_native import tables
from aq2_pipeline.udfs.duckdb_native.memory import address_of, assign_string, call_c, extra_info, ints_at, publish
from aq2_pipeline.udfs.duckdb_native.tables import MOST_NAMES, MOST_SIZES, N_NAME, N_ROW, N_SIZE_ROW, PROBES

_I = types.int64
BODY = types.int64(_I, _I, _I)


@callback(types.void(_I, _I, _I))
def choose(info: Any, chunk: Any, result: Any) -> None:
    """Run the fast body where there is one and it does not decline, else the general one."""
    record = ints_at(extra_info(info), tables.N_RECORD)
    fast = record[tables.FAST]
    if fast == 0 or call_c(fast, info, chunk, result) != 0:
        call_c(record[tables.GENERAL], info, chunk, result)


@kernel(types.void(_I, ints_in, _I, bytes_in))
def write_strings(vector: Any, offsets: Any, data: Any, valid: Any) -> None:
    """Write the strings or blobs of a column."""
    for i in range(valid.size):
        if valid[i]:
            assign_string(vector, i, data + offsets[i], offsets[i + 1] - offsets[i])


@kernel(types.void(ints_out, bytes_in, _I, _I, _I))
def insert_name(names: Any, text: Any, address: Any, scheme: Any, stored: Any) -> None:
    """Remember a name, if there is room."""
    code = tables.hash_of(text)
    for probe in range(PROBES):
        at = N_NAME * ((code + probe) & (MOST_NAMES - 1))
        if names[at + tables.N_HASH] == code and names[at + tables.N_ID] == scheme and names[at] != 0:
            return
        if names[at] == 0:
            names[at + tables.N_HASH], names[at + tables.N_TEXT] = code, address
            names[at + tables.N_SIZE], names[at + tables.N_ID] = text.size, scheme
            names[at + tables.N_STORED] = stored
            publish(address_of(names[at:]), 1)
            return


@kernel(types.void(ints_out, ints_out))
def insert_sizes(sizes: Any, rows: Any) -> None:
    """Remember the sizes of a chunk's rows, while there is room."""
    n = rows.size // N_ROW
    for i in range(n):
        scheme, length, row_length = rows[2 * n + i], rows[n + i], rows[3 * n + i]
        if scheme == tables.NULL_ROW:
            continue
        code = tables.hash_of_sizes(scheme, length, row_length)
        for probe in range(PROBES):
            at = N_SIZE_ROW * ((code + probe) & (MOST_SIZES - 1))
            row = sizes[at : at + N_SIZE_ROW]
            if row[0] != 0 and row[1] == scheme and row[2] == length and row[3] == row_length:
                break
            if row[0] == 0:
                row[1], row[2], row[3] = scheme, length, row_length
                row[4], row[5], row[6] = rows[4 * n + i], rows[5 * n + i], rows[6 * n + i]
                publish(address_of(row), 1)
                break
