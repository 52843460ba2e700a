"""Kernels that search scales and zero points: compiled as interpreted, and errors of what they write."""

from __future__ import annotations

import numpy as np
import pytest
from support.interpreted import decode, error, interpret_closure, interpreted, readonly
from support.samples import bell, integers

from aq2_pipeline.kernels import grouped, moments, powers, searches, signed, staging, zero_points

MODULES = (staging, powers, searches, grouped, zero_points, signed)
IMPORTANCE = readonly((integers(37, 3) / 2**32) ** 3, np.float32)
KERNELS = [("signed", "mse", 3), ("signed", "hqq", 4), ("asym", "mse", 4), ("asym", "hqq", 3)]
N_ROWS, ROW = 2, 37


def kernels(kind, bits):
    """Return the kernels of symmetric or asymmetric integers of a width."""
    return getattr(signed if kind == "signed" else zero_points, f"{kind}{bits}")


def encoded(kernel, w, params, importance):
    """Return (status, data, scales, zero points) of rows of 37 weights in groups of 21."""
    bits, asymmetric, _ = params
    n_bytes = N_ROWS * ((21 * bits + 7) // 8 + (16 * bits + 7) // 8)
    outputs = np.full(n_bytes, 255, np.uint8), np.zeros(4, np.float32), np.zeros(4 * asymmetric, np.float32)
    return kernel(readonly(w), ROW, readonly(params, np.int64), importance, *outputs), *outputs


@pytest.mark.parametrize(("kind", "method", "bits"), KERNELS)
def test_compiled_equals_interpreted(kind, method, bits):
    """Short groups, a zero group and a wide one, with an importance and without: the bits are the same."""
    w = bell(N_ROWS * ROW, 2) * np.float32(40)
    w[21:37] = 0
    w[70] *= 100
    params = bits, int(kind == "asym"), 21
    for suffix, importance in (("", readonly([], np.float32)), ("_weighted", IMPORTANCE)):
        kernel = getattr(kernels(kind, bits), f"encode_{method}{suffix}")
        compiled = encoded(kernel, w, params, importance)
        with interpreted(*MODULES), pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            interpret_closure(kernel.py_func, patch)
            plain = encoded(kernel.py_func, w, params, importance)
        for one, other in zip(compiled, plain, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("kind", "method", "bits"), KERNELS)
def test_errors_are_those_of_what_is_written(kind, method, bits):
    """The sums of an error kernel are those of the decoded values, padding and short groups aside."""
    w, params = bell(N_ROWS * ROW, 7), (bits, int(kind == "asym"), 21)
    made = kernels(kind, bits)
    status, data, scales, zeros = encoded(getattr(made, f"encode_{method}"), w, params, readonly([], np.float32))
    _, values = decode(made.decode, data, scales, zeros, ROW, params, w.size)
    found, sums = error(getattr(made, f"error_{method}"), w, ROW, params)
    assert status == found == -1
    e = w.astype(np.float64) - values
    np.testing.assert_allclose(sums[moments.SQUARED_ERROR], (e * e).sum(), rtol=1e-12)
    np.testing.assert_allclose(sums[moments.SQUARED_DECODED], (values.astype(np.float64) ** 2).sum(), rtol=1e-12)
    assert sums[moments.MAX_ERROR] == np.abs(e).max()


@pytest.mark.parametrize(("kind", "method", "bits"), KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(kind, method, bits, bad):
    """Encoder and error kernel return the position of the first value that is not finite."""
    w, params = bell(N_ROWS * ROW, 7), (bits, int(kind == "asym"), 21)
    w[[45, 60]] = bad
    made = kernels(kind, bits)
    assert encoded(getattr(made, f"encode_{method}"), w, params, readonly([], np.float32))[0] == 45
    assert error(getattr(made, f"error_{method}"), w, ROW, params)[0] == 45
