"""The statistics of a chunk's rows, each read where it lies: outliers are counted while the row is still in cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import part
from aq2_pipeline.kernels.moments import (
    M2,
    MAX,
    MEAN,
    MIN,
    N_COUNTS,
    N_FINITE,
    N_MOMENTS,
    OUTLIER_STDS,
    add_moments,
    count_outliers,
    deviation,
    is_far,
)
from aq2_pipeline.udfs.duckdb_native.memory import doubles_out_at, floats_at, ints_out_at
from aq2_pipeline.udfs.duckdb_native.tables import N_ROW, NULL_ROW, R_ADDRESS, R_LENGTH, R_SCHEME

#: Words a row: what is read of it, and what `finishing` takes, its outliers, counts and moments.
N_STATS = N_ROW + 1 + N_COUNTS + N_MOMENTS

_deviation, _is_far = part(deviation), part(is_far)


@part
def outliers_of(values: Any, moments: Any) -> Any:
    """Count the outliers of a row; most rows have none, and are not read again."""
    mean, reach = moments[MEAN], OUTLIER_STDS * _deviation(moments[N_FINITE], moments[M2])
    if _is_far(mean, reach, moments[MIN], moments[MAX]):
        return np.int64(count_outliers(values, mean, reach))
    return np.int64(0)


@part
def sum_rows(n: Any, rows: Any, space: Any) -> None:
    """Fill in the outliers, counts and moments of each row."""
    at = space + 8 * N_ROW * n
    n_outliers, counts = ints_out_at(at, n), ints_out_at(at + 8 * n, N_COUNTS * n)
    moments = doubles_out_at(at + 8 * (1 + N_COUNTS) * n, N_MOMENTS * n)
    n_outliers[:], counts[:], moments[:] = 0, 0, 0.0
    for i in range(n):
        own = moments[i * N_MOMENTS : (i + 1) * N_MOMENTS]
        own[MIN], own[MAX] = np.inf, -np.inf
        if rows[R_SCHEME * n + i] != NULL_ROW:
            values = floats_at(rows[R_ADDRESS * n + i], rows[R_LENGTH * n + i])
            add_moments(values, counts[i * N_COUNTS : (i + 1) * N_COUNTS], own)
            n_outliers[i] = outliers_of(values, own)
