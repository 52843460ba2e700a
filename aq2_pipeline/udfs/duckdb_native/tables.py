"""Where the fields of the tables are that Python fills and bodies read; all are int64.

A table is written by Python only, under a lock, and a row of it never changes
once it is published; so bodies read without one.
"""

from __future__ import annotations

from typing import Any

from aq2_pipeline.kernels._jit import part
from aq2_pipeline.udfs.duckdb_native.memory import bytes_at, ints_at, load_published

#: The record of a function: its two bodies, the state below, and its own callback for a chunk's results.
FAST, GENERAL, STATE, FINISH = range(4)
N_RECORD = 4

#: The state: the families' epoch, tables, and callbacks.
EPOCH, SCHEMES, NAMES, SIZES, WIDTHS, RESOLVE, SETTLE = range(7)
N_STATE = 7

#: A scheme.
S_EPOCH, S_ENCODE, S_DECODE, S_ERROR, S_PARAMS, S_N_PARAMS, S_NAME, S_NAME_SIZE, S_GROUP, S_TOP, S_LISTS, S_BLOBS = (
    range(12)
)
N_SCHEME = 12
MOST_SCHEMES = 4096

#: A name that was resolved: whether it is published, its hash, bytes, scheme, and whether it is the canonical one.
N_PUBLISHED, N_HASH, N_TEXT, N_SIZE, N_ID, N_STORED = range(6)
N_NAME = 6
MOST_NAMES = 4096

#: What rows of a length take.
Z_PUBLISHED, Z_SCHEME, Z_LENGTH, Z_ROW_LENGTH, Z_DATA, Z_SCALES, Z_ZEROS = range(7)
N_SIZE_ROW = 8
MOST_SIZES = 4096

#: Widths that may stand for schemes.
MOST_WIDTHS = 16

#: Slots that a look-up tries.
PROBES = 8

#: What a call was bound to.
B_FAST, B_WEIGHTS, B_WIDTH, B_SCHEME, B_SCHEME_ID, B_SHAPE = range(6)
N_BOUND = 6
#: Kinds of weights, schemes and shapes there; integers are 1, 2, 4 or 8, their bytes, negative where unsigned.
LISTS, ARRAYS, BLOBS = range(1, 4)
CONSTANT, TEXTS, NO_SHAPE = 100, 101, 0

#: The rows of a chunk, one int64 array of n each, one after the other.
R_ADDRESS, R_LENGTH, R_SCHEME, R_ROW_LENGTH, R_DATA, R_SCALES, R_ZEROS = range(7)
N_ROW = 7
#: Behind them: room for a shape, of at most so many axes; then a row's sums, of an error's body.
MOST_AXES = 16
#: In place of a scheme: the row is NULL. In place of a size: it is not known yet.
NULL_ROW, UNKNOWN = -1, -1


@part
def hash_of(text: Any) -> Any:
    """Return FNV-1a over bytes, made non-negative."""
    found = -3750763034362895579
    for byte in text:
        found = (found ^ byte) * 1099511628211
    return found & 0x7FFFFFFFFFFFFFFF


@part
def hash_of_sizes(scheme: Any, length: Any, row_length: Any) -> Any:
    """Return a hash of what sizes depend on, made non-negative."""
    found = (scheme * 31 + length) * -7046029254386353131 + row_length
    found = (found ^ (found >> 29)) * -4658895280553007687
    return (found ^ (found >> 32)) & 0x7FFFFFFFFFFFFFFF


@part
def of_scheme(state: Any, scheme: Any, field: Any) -> Any:
    """Return a field of a scheme."""
    return ints_at(state[SCHEMES] + 8 * N_SCHEME * scheme, N_SCHEME)[field]


@part
def find_name(state: Any, text: Any) -> Any:
    """Return the address of the row of a name, or 0."""
    table, code = state[NAMES], hash_of(text)
    for probe in range(PROBES):
        address = table + 8 * N_NAME * ((code + probe) & (MOST_NAMES - 1))
        if load_published(address) == 0:
            return 0
        row = ints_at(address, N_NAME)
        if row[N_HASH] == code and row[N_SIZE] == text.size:
            known, same = bytes_at(row[N_TEXT], text.size), True
            for k in range(text.size):
                same = same and known[k] == text[k]
            if same and of_scheme(state, row[N_ID], S_EPOCH) == state[EPOCH]:  # else the families have changed since
                return address
    return 0


@part
def find_sizes(state: Any, scheme: Any, length: Any, row_length: Any) -> Any:
    """Return the address of the row of sizes, or 0."""
    table, code = state[SIZES], hash_of_sizes(scheme, length, row_length)
    for probe in range(PROBES):
        address = table + 8 * N_SIZE_ROW * ((code + probe) & (MOST_SIZES - 1))
        if load_published(address) == 0:
            return 0
        row = ints_at(address, N_SIZE_ROW)
        if row[Z_SCHEME] == scheme and row[Z_LENGTH] == length and row[Z_ROW_LENGTH] == row_length:
            return address
    return 0
