"""Sums in fixed blocks and lanes: hand-made statistics, the order of addition, and the interpreter's bits."""

from __future__ import annotations

import numpy as np
import pytest
from support.interpreted import interpreted, readonly
from support.samples import bell

from aq2_pipeline.kernels import moments


def run(w, cut=None):
    """Run the kernel on one row, in one piece or two: (counts, state)."""
    values = readonly(w, np.float32)
    counts, state = np.zeros(moments.N_COUNTS, np.int64), np.zeros(moments.N_MOMENTS)
    state[moments.MIN], state[moments.MAX] = np.inf, -np.inf
    for piece in (values,) if cut is None else (values[:cut], values[cut:]):
        moments.add_moments(piece, counts, state)
    return counts, state


def test_four_weights_by_hand():
    """1, 2, 3, 4 and a zero: mean 2, sums of powers 10, 0 and 34."""
    counts, state = run([1, 2, 3, 4, 0])
    assert counts.tolist() == [1, 0]
    assert state.tolist() == pytest.approx([5, 2, 10, 0, 34, 0, 4])


def test_values_that_are_not_finite_are_counted_apart():
    """NaN and infinities count, and leave the figures to the others."""
    counts, state = run([np.nan, 3, -np.inf, -0.0, np.inf, -3])
    assert counts.tolist() == [1, 3]
    assert state[[moments.N_FINITE, moments.MIN, moments.MAX, moments.MEAN]].tolist() == [3, -3, 3, 0]


def test_a_row_without_finite_values_has_no_moments():
    """Nothing is added where there is nothing to say."""
    counts, state = run([np.nan, np.inf])
    assert counts.tolist() == [0, 2]
    assert state.tolist() == [0, 0, 0, 0, 0, np.inf, -np.inf]


def test_a_constant_row_has_no_variance():
    """The second moment is exactly 0."""
    assert run(np.full(10_000, 0.1, np.float32))[1][moments.M2] == 0


def test_outliers_lie_beyond_the_reach():
    """What lies at the reach is none, and what is not finite is none."""
    w = readonly([1.0, -1.0, 3.0, -3.5, np.nan, np.inf], np.float32)
    assert moments.count_outliers(w, 0.0, 3.0) == 1
    assert moments.count_outliers(w, 0.5, 2.0) == 2


def test_pieces_that_begin_at_a_block_give_the_bits_of_the_whole():
    """A row may be cut at blocks: the state is carried in block order."""
    w = bell(20_000, 1)
    assert run(w)[1].tobytes() == run(w, 3 * moments.BLOCK_SIZE)[1].tobytes()


def test_errors_are_added_lane_by_lane():
    """Sums are those of 16 lanes, each added in order, then the lanes by halves; errors are float32's."""
    w, decoded = bell(moments.BLOCK_SIZE, 3), bell(moments.BLOCK_SIZE, 4)
    lanes, sums = np.zeros(moments.N_ERROR_SUMS * moments.N_LANES), np.zeros(moments.N_ERROR_SUMS)
    for j in range(w.size):
        moments.add_error(w[j], decoded[j], j % moments.N_LANES, lanes)
    moments.flush_lanes(lanes, sums)
    assert not lanes.any()
    errors = (w - decoded).astype(np.float64)
    in_lanes = np.zeros(moments.N_LANES)
    for row in (errors**2).reshape(-1, moments.N_LANES):
        in_lanes += row
    while in_lanes.size > 1:
        in_lanes = in_lanes[: in_lanes.size // 2] + in_lanes[in_lanes.size // 2 :]
    assert sums[moments.SQUARED_ERROR] == in_lanes[0]
    assert sums[moments.MAX_ERROR] == np.abs(errors).max()


def test_moments_survive_a_large_mean():
    """A mean a million times the deviation costs no more than float32's own rounding."""
    w = (np.arange(20_000) % 2).astype(np.float32) + np.float32(2**20)
    _, state = run(w)
    assert state[moments.M2] / w.size == pytest.approx(0.25, rel=1e-12)
    assert state[moments.M4] / w.size == pytest.approx(0.0625, rel=1e-9)


@pytest.mark.parametrize("n", [0, 1, 64, 65, 4096, 4097, 9000])
def test_compiled_is_the_python_function(n):
    """Counts and moments are the interpreter's, bit for bit, bad values included."""
    w = bell(n, n)
    w[5::700] = np.nan
    w[7::900] = np.inf
    compiled = run(w)
    with interpreted(), np.errstate(invalid="ignore"):
        assert not hasattr(moments.add_moments, "py_func")
        plain = run(w)
    assert plain[0].tolist() == compiled[0].tolist()
    assert plain[1].tobytes() == compiled[1].tobytes()
