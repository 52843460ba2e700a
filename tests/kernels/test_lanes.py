"""Vectors: every operation, compiled, gives the bits of NumPy's."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from numba import njit
from support.interpreted import readonly
from support.samples import bell, integers

from aq2_pipeline.kernels import lanes
from aq2_pipeline.kernels._jit import OPTIONS

F32 = (bell(16, 1), bell(16, 2))
I32 = tuple((integers(16, seed) % 1000 - 500).astype(np.int32) for seed in (1, 2))
U64 = tuple(integers(16, seed).astype(np.uint64) for seed in (3, 4))
F64 = tuple(w.astype(np.float64) for w in F32)
BOTH = {"float32": F32, "int32": I32, "uint64": U64, "float64": F64}
INTEGERS = {"int32": I32, "uint64": U64}


def binary(function):
    """Return a compiled function that stores a function of two loaded vectors."""

    @njit(**OPTIONS)
    def run(a, b, out):
        lanes.store(out, 0, function(lanes.load(a, 0), lanes.load(b, 0)))

    return run


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("function", [operator.add, operator.sub, operator.mul, lanes.maximum, lanes.minimum])
def test_arithmetic(function, kind):
    """Sums, differences, products and the larger and smaller of two."""
    a, b = BOTH[kind]
    out = np.zeros_like(a)
    binary(function)(readonly(a), readonly(b), out)
    np.testing.assert_array_equal(out, function(a, b))


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("function", [operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift])
def test_bits(function, kind):
    """Bitwise operations; a shift to the right keeps the sign of signed integers only."""
    a, b = INTEGERS[kind]
    b = b % 20 if function in (operator.lshift, operator.rshift) else b
    out = np.zeros_like(a)
    binary(function)(readonly(a), readonly(b), out)
    np.testing.assert_array_equal(out, function(a, b))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("compare", [operator.lt, operator.gt, operator.eq])
def test_choices(compare, kind):
    """A comparison's mask takes lanes of the one or the other."""
    a, b = BOTH[kind]
    b = np.where(np.arange(16) % 3 == 0, a, b)
    out = np.zeros_like(a)

    def chosen(x, y):
        return lanes.where(compare(x, y), x, y - x)

    @njit(**OPTIONS)
    def run(a, b, out):
        x, y = lanes.load(a, 0), lanes.load(b, 0)
        lanes.store(out, 0, lanes.where(compare(x, y), x, y - x))

    run(readonly(a), readonly(b), out)
    np.testing.assert_array_equal(out, chosen(a, b))


@njit(**OPTIONS)
def conversions(w, data, numbers, out, words):
    """Run every conversion on a vector; `lanes` has their NumPy twins."""
    x = lanes.load(w, 0)
    wide = lanes.to(x, np.float64)
    out[0] = lanes.total(wide)
    out[1] = lanes.largest(x)
    out[2] = lanes.total(lanes.plus_product(wide, wide, wide))
    out[3] = lanes.largest(lanes.magnitude(x))
    out[4] = lanes.total(lanes.to(lanes.to(numbers[0] * lanes.load(numbers, 0), np.uint8), np.float32))
    out[5] = lanes.total(lanes.splat(np.float64(0.5)) + wide)
    out[6] = np.float64(lanes.total(lanes.to(lanes.load_half(data, 3), np.int32)))
    out[7] = lanes.total(lanes.to(lanes.read(data, 1, np.uint16), np.float64))
    out[8] = lanes.total(lanes.to(lanes.to(wide, np.float32), np.float64))
    out[9] = np.float64(lanes.largest(lanes.join(lanes.load(numbers, 0), lanes.load(numbers, 1))))
    words[0] = lanes.total(lanes.ramp() << np.uint64(3))
    words[1] = lanes.lane(lanes.reinterpreted(lanes.reinterpreted(x, np.int32), np.uint64), 2)
    words[2] = lanes.total(lanes.to(lanes.reinterpreted(x, np.int32) & np.int32(255), np.uint64))


def test_conversions():
    """Widening, narrowing, reinterpreting, reducing and loading give what NumPy gives."""
    w, data = bell(16, 5), integers(64, 6).astype(np.uint8)
    numbers = np.arange(-3, 14, dtype=np.int32)
    found, plain = (np.zeros(10), np.zeros(3, np.uint64)), (np.zeros(10), np.zeros(3, np.uint64))
    conversions(readonly(w), readonly(data), readonly(numbers), *found)
    conversions.py_func(w, data, numbers, *plain)
    assert found[0].tobytes() == plain[0].tobytes()
    assert found[1].tolist() == plain[1].tolist()


def test_bytes_are_stored_in_order():
    """A vector of words, and one word, go to bytes in little-endian order and nowhere else."""

    @njit(**OPTIONS)
    def run(words, out):
        lanes.store(out, 1, lanes.load_half(words, 0))
        lanes.store(out, 66, lanes.lane(lanes.load_half(words, 1), 0))

    words, out = integers(9, 1).astype(np.uint64), np.full(80, 7, np.uint8)
    run(readonly(words), out)
    assert out.tobytes() == b"\7" + words[:8].tobytes() + b"\7" + words[1].tobytes() + b"\7" * 6


def test_types_that_do_not_fit_are_refused():
    """A scalar of another kind of number, or two vectors of different types, is an error of Numba's."""

    @njit(**OPTIONS)
    def mixed(a, b):
        return lanes.largest(lanes.load(a, 0) + lanes.load(b, 0))

    with pytest.raises(Exception, match="No implementation of function"):
        mixed(readonly(F32[0]), readonly(I32[0]))


def test_an_array_that_is_only_read():
    """The same memory, of the type that inputs have; in NumPy, nobody writes to it."""

    @njit(**OPTIONS)
    def run(out):
        room = lanes.local(16, np.float32)
        lanes.store(room, 0, lanes.splat(np.float32(3)))
        seen = lanes.only_read(room)
        room[5] = np.float32(7)
        lanes.store(out, 0, lanes.load(seen, 0))

    out = np.zeros(16, np.float32)
    run(out)
    assert out.tolist() == [7 if k == 5 else 3 for k in range(16)]
    seen = lanes.only_read(out)
    assert np.shares_memory(seen, out)
    assert not seen.flags.writeable


def test_masks_as_bits():
    """A mask's lanes are an integer's bits, the first lane lowest, and come back from them."""

    @njit(**OPTIONS)
    def run(a, b, out):
        found = lanes.packed(lanes.load(a, 0) > lanes.load(b, 0))
        out[0] = found
        back = lanes.unpacked(found | 1 << 20)
        lanes.store(out, 1, lanes.where(back, lanes.splat(np.int64(1)), lanes.splat(np.int64(0))))

    found, plain = np.zeros(17, np.int64), np.zeros(17, np.int64)
    run(readonly(I32[0]), readonly(I32[1]), found)
    run.py_func(I32[0], I32[1], plain)
    assert found.tolist() == plain.tolist()
    assert found[0] == sum(1 << k for k in range(16) if I32[0][k] > I32[1][k])


def test_nearest():
    """The nearest integers, ties to even."""

    @njit(**OPTIONS)
    def run(a, out):
        lanes.store(out, 0, lanes.nearest(lanes.load(a, 0)))

    a = np.array([-2.5, -1.5, -0.5, -0.49, 0, 0.5, 1.5, 2.5, 3.4, 4.6, -7.7, 31.5, -32.5, 4e6, -4e6, 1e-40], np.float32)
    out = np.zeros_like(a)
    run(readonly(a), out)
    np.testing.assert_array_equal(out, lanes.nearest(a))
