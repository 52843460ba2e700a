"""Weights of other types as float32: every pattern of 16 bits, every length, any alignment."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numba import njit
from support.interpreted import interpreted, readonly

from aq2_pipeline.kernels import bits, lanes, widening
from aq2_pipeline.kernels._jit import OPTIONS

DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f64": np.float64}


def widened(raw, kind):
    """Return the float32 of bytes, from scratch memory that was full of something else."""
    size = len(raw) // np.dtype(DTYPES[kind]).itemsize
    scratch = np.full(size + widening.STAGING, 7, np.float32)
    n = widening.widen(readonly(np.frombuffer(raw, np.uint8)), widening.KINDS[kind], scratch)
    assert n == size
    return scratch[:n]


def same(found, expected):
    """Compare bits; NaNs are compared as NaNs."""
    nans = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nans)
    np.testing.assert_array_equal(found[~nans].view(np.uint32), expected[~nans].view(np.uint32))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_all_patterns_of_sixteen_bits(kind):
    """All 65,536 give the value that they spell, infinities, NaNs, subnormals and signs of zero included."""
    stored = np.arange(65536, dtype=np.uint16).view(DTYPES[kind])
    with np.errstate(invalid="ignore"):
        expected = stored.astype(np.float32)
    same(widened(stored.tobytes(), kind), expected)
    if kind == "f16":
        same(np.array([widening.float_from_half(int(h)) for h in range(65536)], np.float32), expected)


def test_halves_without_f16c(monkeypatch):
    """Where the target has no instruction for it, all 65,536 patterns are converted by integers, to the same floats."""
    monkeypatch.setattr(widening, "has_f16c", lambda _context: False)

    @njit(**OPTIONS)
    def convert(raw, out):
        for at in range(0, out.size, 16):
            lanes.store(out, at, widening.floats_from_halves(lanes.read(raw, 2 * at, np.uint16)))

    stored, found = np.arange(65536, dtype=np.uint16), np.zeros(65536, np.float32)
    convert(readonly(stored.view(np.uint8)), found)
    same(found, stored.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 64, 100])
def test_the_extent_of_halves_is_that_of_their_floats(n):
    """Integer maxima of 16 bits, widened, are those of 32 bits; what is not finite shows in them."""
    halves = np.random.default_rng(n).normal(0, 1e-4, n).astype(np.float16)
    for w in (halves, np.abs(halves), -np.abs(halves)):
        expected = tuple(bits.extent(readonly(w.astype(np.float32).view(np.int32))))
        assert tuple(extent_of(readonly(w.view(np.uint16)))) == expected
        with interpreted():
            assert tuple(widening.extent_of(readonly(w.view(np.uint16)))) == expected
    for bad in (np.nan, -np.nan, np.inf, -np.inf) if n else ():
        halves[n // 2] = bad
        low, high = extent_of(readonly(halves.view(np.uint16)))
        assert max(high, low & bits.MAGNITUDE) >= bits.INFINITY_BITS


@njit(**OPTIONS)
def extent_of(weights):
    """Call it compiled."""
    return widening.extent_of(weights)


def test_float64_is_rounded():
    """Half to even, subnormals included; what does not fit is infinite, and is found later."""
    w = np.array([0.1, -1e300, 1e-300, 2.0**-149, 1.5 * 2.0**-149, 1 + 2.0**-24, np.nan, -0.0, np.inf] * 3)
    with np.errstate(over="ignore"):
        same(widened(w.tobytes(), "f64"), w.astype(np.float32))


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_every_length_and_alignment(kind, n):
    """Short pieces are staged, the last vector overlaps: the values are those of the bytes, wherever they begin."""
    values = (np.arange(n) - 7.5).astype(DTYPES[kind])
    raw = np.frombuffer(b"\xff" + values.tobytes(), np.uint8)[1:]
    same(widened(raw, kind), values.astype(np.float32))
    scratch = np.zeros(n + widening.STAGING, np.float32)
    with interpreted():
        widening.widen(readonly(raw), widening.KINDS[kind], scratch)
    same(scratch[:n], values.astype(np.float32))
