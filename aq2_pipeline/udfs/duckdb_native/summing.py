"""The statistics of a chunk's rows, each read where it lies: outliers are counted while the row is still in cache.

Figures are by the functions that NumPy runs on columns elsewhere: roots and
quotients are the same everywhere, and not defined, not a number, is NULL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import part
from aq2_pipeline.kernels.moments import (
    M2,
    M4,
    MAX,
    MEAN,
    MIN,
    N_COUNTS,
    N_FINITE,
    N_MOMENTS,
    NON_FINITE,
    OUTLIER_STDS,
    ZEROS,
    add_moments,
    count_outliers,
    deviation,
    is_far,
    shape_figures,
)
from aq2_pipeline.udfs.duckdb_native.memory import doubles_out_at, floats_at, ints_out_at, struct_child, vector_data
from aq2_pipeline.udfs.duckdb_native.tables import NULL_ROW, R_ADDRESS, R_LENGTH, R_SCHEME
from aq2_pipeline.udfs.duckdb_native.writing import set_null

#: Words behind those of the rows: the counts and moments of one.
N_SUMS = N_COUNTS + N_MOMENTS

_deviation, _is_far, _shape_figures = part(deviation), part(is_far), part(shape_figures)


@part
def write_count(vector: Any, i: Any, count: Any, some: Any) -> None:
    """Write a count, or NULL."""
    ints_out_at(vector_data(vector), i + 1)[i] = count
    if not some:
        set_null(vector, i)


@part
def write_figure(vector: Any, i: Any, figure: Any, some: Any) -> None:
    """Write a figure, or NULL where it is none."""
    doubles_out_at(vector_data(vector), i + 1)[i] = figure
    if not some or np.isnan(figure):
        set_null(vector, i)


@part
def write_stats(values: Any, counts: Any, moments: Any, result: Any, i: Any, valid: Any) -> None:
    """Write the fields of `layout.STATS` of a row from its counts and moments."""
    n, mean, low, high = moments[N_FINITE], moments[MEAN], moments[MIN], moments[MAX]
    some, std = n > 0, _deviation(n, moments[M2])
    reach, n_outliers = OUTLIER_STDS * std, np.int64(0)
    if _is_far(mean, reach, low, high):  # most rows have no outlier, and are not read again
        n_outliers += count_outliers(values, mean, reach)
    abs_max, kurtosis = _shape_figures(n, moments[M2], moments[M4], low, high)
    write_count(struct_child(result, 0), i, values.size, valid)
    write_count(struct_child(result, 1), i, counts[ZEROS], values.size > 0)
    write_count(struct_child(result, 2), i, counts[NON_FINITE], values.size > 0)
    write_figure(struct_child(result, 3), i, low, some)
    write_figure(struct_child(result, 4), i, high, some)
    write_figure(struct_child(result, 5), i, mean, some)
    write_figure(struct_child(result, 6), i, std, some)
    write_figure(struct_child(result, 7), i, abs_max, some)
    write_figure(struct_child(result, 8), i, kurtosis, some)
    write_figure(struct_child(result, 9), i, n_outliers / max(n, 1.0), some)


@part
def stats_rows(n: Any, rows: Any, result: Any, space: Any) -> None:
    """Write the statistics of each row; `space` is for the sums of one."""
    counts, moments = ints_out_at(space, N_COUNTS), doubles_out_at(space + 8 * N_COUNTS, N_MOMENTS)
    for i in range(n):
        valid = rows[R_SCHEME * n + i] != NULL_ROW
        values = floats_at(rows[R_ADDRESS * n + i], rows[R_LENGTH * n + i]) if valid else floats_at(0, 0)
        counts[:], moments[:] = 0, 0.0
        moments[MIN], moments[MAX] = np.inf, -np.inf
        add_moments(values, counts, moments)
        write_stats(values, counts, moments, result, i, valid)
        if not valid:
            set_null(result, i)
