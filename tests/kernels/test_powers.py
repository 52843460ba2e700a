"""Logarithms and powers by polynomials: how near they are to NumPy's, and that they are the same interpreted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit
from support.interpreted import interpreted

from aq2_pipeline.kernels import lanes, powers
from aq2_pipeline.kernels._jit import OPTIONS

SMALLEST, LARGEST = np.finfo(np.float32).smallest_normal, np.finfo(np.float32).max


@njit(**OPTIONS)
def each(values: Any, exponents: Any, logarithms: Any, twos: Any, powered: Any) -> None:
    """Apply each function to vectors of an array."""
    for at in range(0, values.size, 16):
        x = lanes.load(values, at)
        lanes.store(logarithms, at, powers.log2(x))
        lanes.store(twos, at, powers.exp2(lanes.load(exponents, at)))
        lanes.store(powered, at, powers.power(x, np.float32(0.7 - 1)))


def applied(function: Any, values: np.ndarray, exponents: np.ndarray) -> list[np.ndarray]:
    """Return the logarithms, the powers of two, and the values to the power of -0.3."""
    found = [np.empty_like(values) for _ in range(3)]
    function(values, exponents, *found)
    return found


@pytest.fixture(scope="module")
def values() -> tuple[np.ndarray, np.ndarray]:
    """Return normal floats of every size, with the edges of mantissas, and exponents."""
    rng = np.random.default_rng(1)
    sizes = np.exp2(rng.uniform(-126, 127, 4000)).astype(np.float32)
    edges = np.nextafter(np.float32(2**0.5), np.float32([0, 2])) * np.float32([[1], [0.5], [2], [2**100]])
    fixed = np.float32([SMALLEST, LARGEST, 1, 0.5, 2, 4, 1 + 2**-23, 1 - 2**-24])
    x = np.concatenate([sizes, edges.reshape(-1), fixed]).astype(np.float32)
    y = np.concatenate([rng.uniform(-126, 127, x.size - 6), [-126, 127, 0, 0.5, -0.5, 1.5]]).astype(np.float32)
    return x, y


def test_accuracy(values):
    """Logarithms are within rounding of NumPy's, powers of two within 2e-7 and others within 2.5e-6 of them."""
    x, y = values
    logarithms, twos, powered = applied(each, x, y)
    exact = np.log2(x.astype(np.float64))
    assert (np.abs(logarithms - exact) <= 1e-7 * np.abs(exact) + 6e-8).all()
    np.testing.assert_allclose(twos, np.exp2(y.astype(np.float64)), rtol=2e-7)
    np.testing.assert_allclose(powered, x.astype(np.float64) ** np.float64(np.float32(0.7 - 1)), rtol=2.5e-6)


def test_compiled_equals_interpreted(values):
    """The bits are those of NumPy's float32 additions and multiplications."""
    compiled = applied(each, *values)
    with interpreted(powers):
        plain = applied(each.py_func, *values)
    for one, other in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(one.view(np.int32), other.view(np.int32))
