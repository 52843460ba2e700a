"""The statistics of the rows of one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aq2_pipeline import threads
from aq2_pipeline.pieces import cut_anywhere, frozen, in_order, most_at_once, slices, source, step

if TYPE_CHECKING:
    from aq2_pipeline.weights import Array, Weights

__all__ = ["figures", "row_sums"]


def row_sums(weights: Weights, n_threads: int | None) -> tuple[Array, Array, Array]:
    """Return the counts, the moments and the outliers of each row, as `figures` takes them.

    Null elements count as values that are not finite.
    """
    from aq2_pipeline.kernels import moments, rows  # noqa: PLC0415 - kernels load at their first use

    if weights.nulls.size:
        weights = weights.with_nan()
    n_rows = weights.starts.size
    counts, state = np.zeros((n_rows, moments.N_COUNTS), np.int64), np.zeros((n_rows, moments.N_MOMENTS))
    state[:, moments.MIN], state[:, moments.MAX] = np.inf, -np.inf
    pieces = cut_anywhere(weights.lengths, most_at_once(weights)[0])
    *given, n_scratch = source(weights, pieces)
    found = (counts.reshape(-1), state.reshape(-1))
    read = (frozen(pieces.rows), *given)
    calls = (
        [step(rows.moments_rows, n_scratch, a, b, *read, *found) for a, b in steps]
        for steps in in_order(pieces, slices(pieces.lengths))
    )
    threads.run(calls, n_threads)
    n, mean, m2, _, _, low, high = (np.ascontiguousarray(column) for column in state.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = moments.OUTLIER_STDS * moments.deviation(n, m2)
    n_outliers = np.zeros(n_rows, np.int64)
    far = moments.is_far(mean, reach, low, high)
    steps_of_far = (
        steps
        for steps in in_order(pieces, slices(pieces.lengths))
        if far[pieces.rows[steps[0][0] : steps[-1][1]]].any()
    )
    bounds = (mean, reach, n_outliers)
    calls = ([step(rows.outlier_rows, n_scratch, a, b, *read, *bounds) for a, b in steps] for steps in steps_of_far)
    threads.run(calls, n_threads)
    return counts, state, n_outliers


def figures(counts: Array, state: Array, n_outliers: Array) -> dict[str, Array]:
    """Return the fields of `layout.STATS` but `count`, a row an entry; figures that are not defined are NaN.

    Parameters
    ----------
    counts : int64 array, [n_rows, n_counts]
        As `kernels.moments` names them.
    state : float64 array, [n_rows, n_moments]
    n_outliers : int64 array
    """
    from aq2_pipeline.kernels import moments  # noqa: PLC0415 - as above

    n, mean, m2, _, m4, low, high = (np.ascontiguousarray(column) for column in state.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        std = moments.deviation(n, m2)
        kurtosis = n * m4 / (m2 * m2) - 3.0
    some = n > 0
    found = {"min": low, "max": high, "mean": mean, "std": std, "abs_max": np.maximum(np.abs(low), np.abs(high))}
    found |= {"kurtosis": kurtosis, "outlier_ratio": n_outliers / np.maximum(n, 1)}
    whole = {"zeros": counts[:, moments.ZEROS].copy(), "non_finite": counts[:, moments.NON_FINITE].copy()}
    return whole | {name: np.where(some, column, np.nan) for name, column in found.items()}
