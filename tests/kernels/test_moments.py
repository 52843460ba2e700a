"""Sums in fixed blocks and lanes: hand-made statistics, the order of addition, and the interpreter's bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.interpreted import interpreted, readonly
from support.samples import bell

from aq2_pipeline.kernels import moments


def stats(w):
    """Run the kernel on one row: (finite values, counts, figures)."""
    lanes = np.full(3 * moments.N_LANES, np.nan)
    counts, figures = np.zeros(moments.N_COUNTS, np.int64), np.full(moments.N_FIGURES, np.nan)
    n = moments.weight_stats(readonly(w, np.float32), lanes, counts, figures)
    return n, counts, figures


def test_four_weights_by_hand():
    """1, 2, 3, 4 and a zero: mean 2, variance 2, fourth moment 6.8."""
    n, counts, figures = stats([1, 2, 3, 4, 0])
    assert (n, counts.tolist()) == (5, [1, 0])
    assert figures.tolist() == pytest.approx([0, 4, 2, math.sqrt(2), 4, 6.8 / 4 - 3, 0])


def test_values_that_are_not_finite_are_counted_apart():
    """NaN and infinities count, and leave the figures to the others."""
    n, counts, figures = stats([np.nan, 3, -np.inf, -0.0, np.inf, -3])
    assert (n, counts.tolist()) == (3, [1, 3])
    assert figures[[moments.MIN, moments.MAX, moments.MEAN, moments.ABS_MAX]].tolist() == [-3, 3, 0, 3]


def test_a_row_without_finite_values_has_no_figures():
    """Nothing is written where there is nothing to say."""
    n, counts, figures = stats([np.nan, np.inf])
    assert (n, counts.tolist(), np.isnan(figures).all()) == (0, [0, 2], True)


def test_a_constant_row_has_no_kurtosis():
    """The standard deviation is exactly 0, the kurtosis NaN, and nothing is an outlier."""
    _, _, figures = stats(np.full(10_000, 0.1, np.float32))
    assert figures[moments.STD] == 0
    assert np.isnan(figures[moments.KURTOSIS])
    assert figures[moments.OUTLIER_RATIO] == 0


def test_outliers_lie_beyond_six_standard_deviations():
    """One weight among 99 zeros lies 9.95 deviations off; one of 36 lies 5.9 off, and is none."""
    assert stats([1.0] + [0.0] * 99)[2][moments.OUTLIER_RATIO] == 0.01
    assert stats([1.0] + [0.0] * 35)[2][moments.OUTLIER_RATIO] == 0


def test_errors_are_added_lane_by_lane():
    """Sums are those of 64 lanes, each added in order, then the lanes in order."""
    w, decoded = bell(moments.BLOCK_SIZE, 3), bell(moments.BLOCK_SIZE, 4)
    lanes, sums = np.zeros(moments.N_ERROR_SUMS * moments.N_LANES), np.zeros(moments.N_ERROR_SUMS)
    for j in range(w.size):
        moments.add_error(w[j], decoded[j], j % moments.N_LANES, lanes)
    moments.flush_lanes(lanes, sums)
    assert not lanes.any()
    squares = (w.astype(np.float64) - decoded.astype(np.float64)) ** 2
    total = 0.0
    for lane in squares.reshape(-1, moments.N_LANES).T:
        in_lane = 0.0
        for value in lane.tolist():
            in_lane += value
        total += in_lane
    assert sums[moments.SQUARED_ERROR] == total
    assert sums[moments.MAX_ERROR] == math.sqrt(squares.max())


def test_moments_survive_a_large_mean():
    """A mean a million times the deviation costs no more than float32's own rounding."""
    w = (np.arange(20_000) % 2).astype(np.float32) + np.float32(2**20)
    _, _, figures = stats(w)
    assert figures[moments.STD] == pytest.approx(0.5, rel=1e-12)
    assert figures[moments.KURTOSIS] == pytest.approx(-2, rel=1e-9)


@pytest.mark.parametrize("n", [0, 1, 64, 65, 4096, 4097, 9000])
def test_compiled_is_the_python_function(n):
    """Counts and figures are the interpreter's, bit for bit, bad values included."""
    w = bell(n, n)
    w[5::700] = np.nan
    w[7::900] = np.inf
    compiled = stats(w)
    with interpreted(), np.errstate(invalid="ignore"):
        assert not hasattr(moments.weight_stats, "py_func")
        plain = stats(w)
    assert plain[0] == compiled[0]
    assert plain[1].tolist() == compiled[1].tolist()
    assert plain[2].tobytes() == compiled[2].tobytes()
