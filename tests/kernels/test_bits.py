"""Tricks on bits: each compiled overload does what its Python function does."""

from __future__ import annotations

import numpy as np
from numba import njit
from support.interpreted import readonly
from support.samples import integers

from aq2_pipeline.kernels import bits

PATTERNS = np.concatenate(
    [
        integers(2000, 3).astype(np.uint32).view(np.int32),
        np.array([0, 1, -1, 0x7F800000, -0x800000, 0x7FC00000, -(2**31), 2**31 - 1, 0x00800000], np.int32),
    ]
)


@njit
def there_and_back(pattern):
    """Reach both overloads; a NaN that passes through Python would lose its payload."""
    value = bits.float_of(pattern)
    return bits.bits_of(value), value


def test_bits_and_floats_are_each_others_inverse():
    """Compiled and interpreted, every pattern goes to the float that it spells and back, NaN's payload too."""
    for pattern in PATTERNS:
        found, value = there_and_back(pattern)
        assert found == bits.bits_of(pattern.view(np.float32)) == pattern
        expected = pattern.view(np.float32)
        assert bits.float_of(pattern).view(np.int32) == pattern
        assert np.isnan(value) if np.isnan(expected) else value == expected


def test_the_extent_is_two_integer_maxima():
    """It is the range of the floats, widened to hold 0, and shows what is not finite."""
    finite = PATTERNS[np.isfinite(PATTERNS.view(np.float32))].view(np.float32)
    for w in (finite, np.abs(finite), -np.abs(finite), finite[:0]):
        found = np.array(bits.extent(readonly(w.view(np.int32))), np.int32)
        assert found.view(np.float32).tolist() == [min(w.min(initial=0), 0), max(w.max(initial=0), 0)]
        assert bits.extent.py_func(readonly(w.view(np.int32))) == tuple(found)
    for bad in (np.nan, np.inf, -np.nan, -np.inf):
        pair = bits.extent(readonly(np.array([1, bad, -1], np.float32).view(np.int32)))
        assert max(pair[1], pair[0] & bits.MAGNITUDE) >= bits.INFINITY_BITS


def test_ordered_integers_sort_as_floats():
    """The map keeps the order of the floats, puts -0.0 before 0.0, and is its own inverse."""
    w = np.unique(PATTERNS[np.isfinite(PATTERNS.view(np.float32))].view(np.float32))
    keys = [int(bits.ordered(x.view(np.int32))) for x in w]
    assert keys == sorted(keys)
    assert int(bits.ordered(np.float32(-0.0).view(np.int32))) == -1
    assert all(bits.ordered(bits.ordered(pattern)) == pattern for pattern in PATTERNS)
    assert all(bits.ordered.py_func(pattern) == bits.ordered(pattern) for pattern in PATTERNS)


def test_the_rounding_constant_rounds_half_to_even():
    """Adding it leaves the nearest even integer in the low bits, quarters and beside two million."""
    large = [2.0**21 - 0.5, -(2.0**21) + 0.5, 2.0**21 - 1.5]
    x = np.concatenate([np.arange(-4000, 4001) / 4, large]).astype(np.float32)
    found = (x + bits.ROUND).view(np.int32) - bits.ROUND_BITS
    np.testing.assert_array_equal(found, np.rint(x).astype(np.int32))
