"""What two arrays differ by: compiled as interpreted, as float64 says, whatever the threads."""

import math

import numpy as np
import pytest
from support.interpreted import interpreted

from aq2_pipeline import differences
from aq2_pipeline.differences import Difference, difference
from aq2_pipeline.kernels import differences as kernels
from aq2_pipeline.kernels import moments

RNG = np.random.default_rng(3)


def sums_of(function, first, second):
    """Return the sums that a kernel adds."""
    lanes, sums = np.zeros(moments.N_ERROR_SUMS * moments.N_LANES), np.zeros(moments.N_ERROR_SUMS)
    for array in (first, second):
        array.flags.writeable = False
    function(first, second, lanes, sums)
    return sums


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64, 1000, 5000])
def test_sums_are_those_of_float64(n):
    """The squares of errors, of both arrays, and the largest error are those that float64 gives."""
    first, second = RNG.normal(size=(2, n)).astype(np.float32)
    found = sums_of(kernels.difference, first, second)
    with interpreted(kernels):
        np.testing.assert_array_equal(sums_of(kernels.difference, first, second), found)
    error = first.astype(float) - second
    expected = [error @ error, first.astype(float) @ first, second.astype(float) @ second, np.abs(error).max(initial=0)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)


def test_numbers_made_by_hand():
    """Two numbers that differ by 3 and 4: 25, and what follows from it."""
    found = difference(np.array([3, 0, 1], np.float32), np.array([0, 4, 1], np.float32))
    assert found == Difference(3, 25.0, 10.0, 17.0, 4.0)
    assert found.mse == 25 / 3
    assert found.sqnr_db == 10 * math.log10(10 / 25)
    assert found.cosine == pytest.approx(1 / math.sqrt(170))


def test_threads_and_slices_change_nothing(monkeypatch):
    """The sums are the same to the last bit for any number of threads; those of slices add up."""
    first, second = RNG.normal(size=(2, 100_003)).astype(np.float32)
    whole = difference(first, second, 1)
    monkeypatch.setattr(differences, "_SLICE", 1 << 14)
    found = {difference(first, second, n) for n in (1, 2, 5)}
    assert len(found) == 1
    [found] = found
    assert (found.size, found.max_abs) == (whole.size, whole.max_abs)
    assert found.error == pytest.approx(whole.error, rel=1e-12)


def test_edges_have_figures():
    """Nothing, zeros, equal arrays and opposite ones have the figures that their words say, and never an exception."""
    zeros, ones = np.zeros(9, np.float32), np.ones(9, np.float32)
    assert (Difference().mse, Difference().sqnr_db, Difference().cosine) == (None, None, None)
    same = difference(ones, ones)
    assert (same.mse, same.sqnr_db, same.cosine) == (0, math.inf, 1)
    assert (difference(zeros, zeros).cosine, difference(zeros, ones).cosine) == (1, None)
    assert difference(zeros, ones).sqnr_db == -math.inf
    assert difference(ones, -ones).cosine == -1
    assert difference(ones, ones * np.float32(1e-6)).cosine == pytest.approx(1, abs=1e-6)
    assert difference(ones * np.float32(1e-19), ones).cosine is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("at", [0, 6, 8])
def test_values_that_are_not_finite(value, side, at):
    """A NaN or infinity on either side makes figures NaN or infinite, and never an exception."""
    pair = np.ones((2, 9), np.float32)
    pair[side, at] = value
    found = difference(pair[0], pair[1]) + difference(pair[0, :0], pair[1, :0])
    assert not math.isfinite(found.mse)
    assert not math.isfinite(found.sqnr_db)
    assert not math.isfinite(found.max_abs)
    assert found.cosine is None or math.isnan(found.cosine) or abs(found.cosine) <= 1
