"""Identity kernels: all 65,536 patterns, both ways, against NumPy and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from support.interpreted import decode, encode, error, interpreted
from support.samples import integers

from aq2_pipeline.kernels import identity

KINDS = {
    "f32": (identity.F32, np.float32),
    "f16": (identity.F16, np.float16),
    "bf16": (identity.BF16, ml_dtypes.bfloat16),
}
NARROW = ("f16", "bf16")


def patterns(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all 16-bit patterns that are finite, and their values as float32."""
    stored = np.arange(65536, dtype=np.uint16)
    values = stored.view(KINDS[kind][1]).astype(np.float32)
    finite = np.isfinite(values)
    return stored[finite], values[finite]


@pytest.mark.parametrize("kind", NARROW)
def test_every_pattern_widens_exactly(kind):
    """All finite patterns decode to the value that they spell, the sign of zero included."""
    stored, values = patterns(kind)
    status, found = decode(identity.decode, stored.view(np.uint8), [], [], stored.size, (KINDS[kind][0],), stored.size)
    assert status == -1
    np.testing.assert_array_equal(found.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("kind", NARROW)
def test_every_value_narrows_exactly(kind):
    """All finite values encode to the pattern that spells them."""
    stored, values = patterns(kind)
    status, data, _, _ = encode(identity.encode, values, values.size, (KINDS[kind][0],), (2 * values.size, 0, 0))
    assert status == -1
    np.testing.assert_array_equal(data.view(np.uint16), stored)


@pytest.mark.parametrize("kind", NARROW)
def test_narrowing_rounds_half_to_even(kind):
    """Midpoints between all neighbours, and the floats beside them, round as NumPy and ml_dtypes do."""
    number, dtype = KINDS[kind]
    _, values = patterns(kind)
    low = np.sort(values[values >= 0])
    middle = ((low[:-1].astype(np.float64) + low[1:].astype(np.float64)) / 2).astype(np.float32)
    near = np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))])
    near = np.concatenate([near, -near])
    _, data, _, _ = encode(identity.encode, near, near.size, (number,), (2 * near.size, 0, 0))
    np.testing.assert_array_equal(data.view(np.uint16), near.astype(dtype).view(np.uint16))


@pytest.mark.parametrize("kind", NARROW)
def test_other_floats_narrow_as_the_reference(kind):
    """A hundred thousand patterns of float32 round, or are found not to fit, as NumPy and ml_dtypes say."""
    number, dtype = KINDS[kind]
    values = integers(100_000, 5).astype(np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        expected = values.astype(dtype)
    fits = np.isfinite(expected.astype(np.float32))
    assert 0 < (~fits).sum() < values.size or kind == "bf16"
    good = values[fits]
    status, data, _, _ = encode(identity.encode, good, good.size, (number,), (2 * good.size, 0, 0))
    assert status == -1
    np.testing.assert_array_equal(data.view(np.uint16), expected[fits].view(np.uint16))
    for value in values[~fits][:50]:
        w = np.array([1.0, value], np.float32)
        assert encode(identity.encode, w, 2, (number,), (4, 0, 0))[0] == 1


@pytest.mark.parametrize(("kind", "last"), [("f16", 0x477FEFFF), ("bf16", 0x7F7F7FFF)])
def test_the_last_value_that_fits(kind, last):
    """What rounds to the largest value is stored; the next float is refused at its position, in both kernels."""
    number, dtype = KINDS[kind]
    w = np.array([0, last, last | 1 << 31, last + 1], np.uint32).view(np.float32)
    largest = float(ml_dtypes.finfo(dtype).max)
    status, data, _, _ = encode(identity.encode, w[:3], 3, (number,), (6, 0, 0))
    assert status == -1
    assert decode(identity.decode, data, [], [], 3, (number,), 3)[1].tolist() == [0, largest, -largest]
    assert encode(identity.encode, w, 4, (number,), (8, 0, 0))[0] == 3
    assert error(identity.error, w, 4, (number,))[0] == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(kind, value):
    """Encoder, error sums and decoder stop at the first NaN or infinity."""
    number, dtype = KINDS[kind]
    w = np.array([1, 2, value, np.nan], np.float32)
    assert encode(identity.encode, w, 4, (number,), (16, 0, 0))[0] == 2
    assert error(identity.error, w, 4, (number,))[0] == 2
    stored = w.astype(dtype).view(np.uint8)
    assert decode(identity.decode, stored, [], [], 4, (number,), 4)[0] == 2


def test_float32_is_kept_bit_for_bit():
    """Every bit of a float32 comes back, little-endian, subnormals and negative zero included."""
    w = integers(5000, 7).astype(np.uint32).view(np.float32)
    w = np.concatenate([w[np.isfinite(w)], np.array([-0.0, 1e-45, -1e-40], np.float32)])
    _, data, _, _ = encode(identity.encode, w, w.size, (identity.F32,), (4 * w.size, 0, 0))
    assert data.tobytes() == w.astype("<f4").tobytes()
    assert decode(identity.decode, data, [], [], w.size, (identity.F32,), w.size)[1].tobytes() == w.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_is_the_python_function(kind):
    """Encoder, decoder and error sums give the interpreter's bits."""
    number, dtype = KINDS[kind]
    w = integers(3000, 11).astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        w = w[np.isfinite(w.astype(dtype).astype(np.float32))]
    size = (w.size * np.dtype(dtype).itemsize, 0, 0)
    compiled = encode(identity.encode, w, w.size, (number,), size)[1]
    values, sums = (
        decode(identity.decode, compiled, [], [], w.size, (number,), w.size)[1],
        error(identity.error, w, w.size, (number,))[1],
    )
    with interpreted(), np.errstate(over="ignore", invalid="ignore"):
        assert encode(identity.encode.py_func, w, w.size, (number,), size)[1].tobytes() == compiled.tobytes()
        again = decode(identity.decode.py_func, compiled, [], [], w.size, (number,), w.size)[1]
        assert again.tobytes() == values.tobytes()
        assert error(identity.error.py_func, w, w.size, (number,))[1].tobytes() == sums.tobytes()
