"""The statistics of the rows of one call."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from aq2_pipeline import threads
from aq2_pipeline.pieces import slices, span

if TYPE_CHECKING:
    from aq2_pipeline.arrow import Array, Weights


def row_stats(weights: Weights, n_threads: int | None) -> tuple[Array, Array]:
    """Return (counts, figures) a row, as `kernels.moments` names their columns; null elements count as NaN."""
    from aq2_pipeline.kernels import moments, rows  # noqa: PLC0415 - kernels load at their first use

    values = weights.values
    if weights.nulls.size:
        values = values.copy()
        values[weights.nulls] = np.nan
        values.flags.writeable = False
    n = weights.starts.size
    counts, figures = np.zeros((n, moments.N_COUNTS), np.int64), np.full((n, moments.N_FIGURES), np.nan)
    source = span(weights.starts, weights.lengths)
    tasks = []
    for a, b in slices(weights.lengths):
        lanes = np.zeros(3 * moments.N_LANES)
        tasks.append(partial(rows.stats_rows, a, b, values, *source, lanes, counts.reshape(-1), figures.reshape(-1)))
    threads.run(tasks, n_threads)
    return counts, figures
