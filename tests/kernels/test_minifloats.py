"""Floats of eight and four bits: what ml_dtypes makes of them, and ggml's order of E2M1."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numba import njit
from support.interpreted import interpreted, readonly
from support.samples import bell, integers

from aq2_pipeline.kernels import e2m1, lanes, minifloats
from aq2_pipeline.kernels._jit import OPTIONS

FORMS = {
    "e4m3": (minifloats.E4M3, ml_dtypes.float8_e4m3fn, 256),
    "e5m2": (minifloats.E5M2, ml_dtypes.float8_e5m2, 256),
    "e2m1": (minifloats.E2M1, ml_dtypes.float4_e2m1fn, 16),
}
forms = pytest.mark.parametrize("name", FORMS)


def spelled(name):
    """Return every code of a form, and what ml_dtypes says it is."""
    _, dtype, n = FORMS[name]
    codes = np.arange(n, dtype=np.uint8)
    return codes.astype(np.int32), codes.view(dtype).astype(np.float32)


def samples(name):
    """Return values of a form, those half between, their neighbours, and others, of both signs."""
    values = spelled(name)[1]
    values = np.unique(np.abs(values[np.isfinite(values)]))
    middles = (values[1:] + values[:-1]) / 2
    near = [np.nextafter(middles, np.float32(0)), middles, np.nextafter(middles, np.float32(1e9))]
    others = np.concatenate([bell(1000), bell(1000, 2) * values[-1], np.float32([0, 1e-45, 1e-39, 3e38])])
    found = np.concatenate([values, *near, np.abs(others)]).astype(np.float32)
    found = np.concatenate([found, -found])
    return np.resize(found, -(-found.size // 16) * 16)


def mapped(function, kind, values, dtype):
    """Return a function of lanes of all values, compiled, and check that the interpreter agrees."""

    def run(values, out):
        for i in range(0, out.size, 16):
            lanes.store(out, i, function(lanes.load(values, i), kind))

    found, plain = np.zeros(values.size, dtype), np.zeros(values.size, dtype)
    njit(**OPTIONS)(run)(readonly(values), found)
    function = function.py_func
    with interpreted(minifloats, e2m1):
        run(values, plain)
    assert found.tobytes() == plain.tobytes()
    return found


@forms
def test_every_code_is_the_number_it_spells(name):
    """Numbers, signed zeros, infinities and NaNs."""
    codes, expected = spelled(name)
    found = mapped(minifloats.float8_value, FORMS[name][0], codes, np.float32)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    numbers = ~np.isnan(expected)
    assert found[numbers].tobytes() == expected[numbers].tobytes()


@forms
def test_rounding_is_to_the_nearest_even(name):
    """Values and codes are those that ml_dtypes casts to; beyond the largest, the largest."""
    kind, dtype, n = FORMS[name]
    values = samples(name)
    expected = np.clip(values, -kind.largest, kind.largest).astype(dtype)
    found = mapped(minifloats.rounded_to_float8, kind, values, np.float32)
    assert found.tobytes() == expected.astype(np.float32).tobytes()
    codes = mapped(minifloats.float8_code, kind, values, np.int32)
    np.testing.assert_array_equal(codes, expected.view(np.uint8) & (n - 1))


@pytest.mark.parametrize("scale", [1.0, 0.40625, 2.0**-127, 2.0**126, np.inf])
def test_codes_nearest_zero(scale):
    """Of the finite multiples of a scale, the nearest; of two, that nearer to zero; exactly so, and never -0."""
    scale = np.float32(scale)
    unit = scale if np.isfinite(scale) else np.float32(1)
    with np.errstate(over="ignore", invalid="ignore"):
        limit = min(3e38, 1e6 * unit)
        x = np.clip(samples("e2m1").astype(np.float64) * unit, -limit, limit).astype(np.float32)
        multiples = spelled("e2m1")[1][:8].astype(np.float64) * scale
    multiples[~(multiples < 2.0**128)] = np.inf
    multiples[0] = 0
    size = np.abs(x.astype(np.float64))
    expected = np.abs(multiples[:, None] - size).argmin(axis=0)
    expected = np.where((x < 0) & (expected > 0), expected + 8, expected)
    with np.errstate(over="ignore", invalid="ignore"):
        found = mapped(e2m1.code_nearest_zero, scale, x, np.int32)
    np.testing.assert_array_equal(found, expected)


def test_named_forms_of_e2m1():
    """The functions by name are those of the form, and doubled values have no -0."""
    codes, values = spelled("e2m1")
    x = lanes.load(samples("e2m1"), 16 * int(integers(1)[0] % 100))
    with interpreted(minifloats, e2m1):
        np.testing.assert_array_equal(e2m1.e2m1_value(codes), values)
        assert e2m1.doubled_value(codes).tobytes() == (2 * values + np.float32(0)).tobytes()
        rounded = e2m1.rounded_to_e2m1(np.abs(x))
        np.testing.assert_array_equal(rounded, np.abs(e2m1.e2m1_value(e2m1.e2m1_code(x))))
