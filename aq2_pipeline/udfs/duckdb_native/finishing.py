"""What fast bodies leave to Python once a chunk: the figures, from its sums, by the code of every engine.

NumPy's logarithm is not everybody's. Each takes the result's vector, the address
of the body's space, and the number of rows; 0 is good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.codecs import Sizes
from aq2_pipeline.ops import error_figures, stats_figures
from aq2_pipeline.udfs.duckdb_native import tables
from aq2_pipeline.udfs.duckdb_native.vectors import numbers, write

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FINISH"]

_SIZED = (tables.R_LENGTH, tables.R_DATA, tables.R_SCALES, tables.R_ZEROS)


def _rows_at(address: int, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the rows of a chunk, a field each, and which of them are not NULL."""
    rows = numbers(address, np.int64, tables.N_ROW * n).reshape(tables.N_ROW, n)
    return rows, rows[tables.R_SCHEME] != tables.NULL_ROW


def _finish_errors(result: int, address: int, n: int) -> int:
    """Make the figures of `quantization_error`."""
    from aq2_pipeline.kernels.moments import N_ERROR_SUMS  # noqa: PLC0415 - it loads Numba

    try:
        rows, valid = _rows_at(address, n)
        at = address + 8 * (tables.N_ROW * n + tables.MOST_AXES)
        sums = numbers(at, np.float64, N_ERROR_SUMS * n).reshape(n, N_ERROR_SUMS)
        lengths, *sizes = (np.where(valid, rows[field], 0) for field in _SIZED)
        write(result, error_figures(sums, lengths, Sizes(*sizes).n_bytes, valid))
    except BaseException:  # noqa: BLE001 - the general body meets it again, and tells it
        return -1
    return 0


def _finish_stats(result: int, address: int, n: int) -> int:
    """Make the figures of `weight_stats`."""
    from aq2_pipeline.kernels.moments import N_COUNTS, N_MOMENTS  # noqa: PLC0415 - it loads Numba

    try:
        rows, valid = _rows_at(address, n)
        at = address + 8 * tables.N_ROW * n
        n_outliers = numbers(at, np.int64, n)
        counts = numbers(at + 8 * n, np.int64, N_COUNTS * n).reshape(n, N_COUNTS)
        state = numbers(at + 8 * (1 + N_COUNTS) * n, np.float64, N_MOMENTS * n).reshape(n, N_MOMENTS)
        lengths = np.where(valid, rows[tables.R_LENGTH], 0)
        write(result, stats_figures(counts, state, n_outliers, lengths, valid))
    except BaseException:  # noqa: BLE001 - the general body meets it again, and tells it
        return -1
    return 0


#: By the function that they finish.
FINISH = {"quantization_error": _finish_errors, "weight_stats": _finish_stats}
