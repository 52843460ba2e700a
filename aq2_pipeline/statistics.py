"""The statistics of the rows of one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aq2_pipeline import threads
from aq2_pipeline.pieces import cut_anywhere, frozen, in_order, slices, source, step

if TYPE_CHECKING:
    from aq2_pipeline.weights import Array, Weights

__all__ = ["row_stats"]


def row_stats(weights: Weights, n_threads: int | None) -> dict[str, Array]:
    """Return the fields of `layout.STATS` but `count`, a row an entry; figures that are not defined are NaN.

    Null elements count as values that are not finite.
    """
    from aq2_pipeline.kernels import moments, rows  # noqa: PLC0415 - kernels load at their first use

    if weights.nulls.size:
        weights = weights.with_nan()
    n_rows = weights.starts.size
    counts, state = np.zeros((n_rows, moments.N_COUNTS), np.int64), np.zeros((n_rows, moments.N_MOMENTS))
    state[:, moments.MIN], state[:, moments.MAX] = np.inf, -np.inf
    pieces = cut_anywhere(weights.lengths)
    *given, n_scratch = source(weights, pieces)
    found = (counts.reshape(-1), state.reshape(-1))
    read = (frozen(pieces.rows), *given)
    calls = (
        [step(rows.moments_rows, n_scratch, a, b, *read, *found) for a, b in steps]
        for steps in in_order(pieces, slices(pieces.lengths))
    )
    threads.run(calls, n_threads)
    n, mean, m2, _, m4, low, high = (np.ascontiguousarray(column) for column in state.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        std = moments.deviation(n, m2)
        abs_max, kurtosis = moments.shape_figures(n, m2, m4, low, high)
    reach = moments.OUTLIER_STDS * std
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
    some = n > 0
    figures = {"min": low, "max": high, "mean": mean, "std": std, "abs_max": abs_max}
    figures |= {"kurtosis": kurtosis, "outlier_ratio": n_outliers / np.maximum(n, 1)}
    whole = {"zeros": counts[:, moments.ZEROS].copy(), "non_finite": counts[:, moments.NON_FINITE].copy()}
    return whole | {name: np.where(some, column, np.nan) for name, column in figures.items()}
