"""Integer kernels: numbers worked out by hand, and the interpreter's bits."""

from __future__ import annotations

import numpy as np
import pytest
from support.interpreted import decode, encode, error, interpreted, readonly
from support.samples import bell

from aq2_pipeline.codecs import INTEGERS
from aq2_pipeline.kernels import integer

#: The second parameter of the codec, between the bits and the group size.
KINDS = {"symmetric": 0, "asymmetric": 1}

SIZES = INTEGERS[4, False].sizes


def encoder(bits: int, kind: str = "symmetric"):
    """Return the encoding kernel of a width."""
    return getattr(integer, f"encode{bits}" + ("_asym" if kind == "asymmetric" else ""))


def decoder(bits: int):
    """Return the decoding kernel of a width."""
    return getattr(integer, f"decode{bits}")


#: bits -> weights whose scale is 1, their codes, and these codes' bytes, written out bit by bit from the right.
SYMMETRIC_BY_HAND = {
    2: ([1, -1, 0, 1, -1], [3, 1, 2, 3, 1], [0b11_10_01_11, 0b000000_01]),
    3: ([3, -3, 0, 1, 2, -1, -2, 3, 1], [7, 1, 4, 5, 6, 3, 2, 7, 5],
        [0b00_001_111, 0b1_110_101_1, 0b111_010_01, 0b00000_101]),
    4: ([7, -7, 0], [15, 1, 8], [0b0001_1111, 0b0000_1000]),
    5: ([15, -15, 0, 7, -1], [31, 1, 16, 23, 15], [0b001_11111, 0b1_10000_00, 0b1111_1011, 0b0000000_0]),
    6: ([31, -31, 0, 5, -31], [63, 1, 32, 37, 1], [0b01_111111, 0b0000_0000, 0b100101_10, 0b00_000001]),
    7: ([63, -63, 0], [127, 1, 64], [0b1_1111111, 0b00_000000, 0b000_10000]),
    8: ([127, -127, 0, 1], [255, 1, 128, 129], [255, 1, 128, 129]),
}  # fmt: skip


@pytest.mark.parametrize("bits", SYMMETRIC_BY_HAND)
def test_symmetric_codes_are_packed_bit_by_bit(bits):
    """Value i starts at bit i * bits, least significant bit first; the padding is 0; the code 0 does not occur."""
    weights, codes, packed = SYMMETRIC_BY_HAND[bits]
    whole = sum(code << (k * bits) for k, code in enumerate(codes))
    assert list(whole.to_bytes(len(packed), "little")) == packed
    w = np.array(weights, np.float32)
    status, data, scales, _ = encode(encoder(bits), w, w.size, (bits, 0, 128), (len(packed), 1, 0))
    assert (status, data.tolist(), scales.tolist()) == (-1, packed, [1.0])
    status, values = decode(decoder(bits), data, scales, [], w.size, (bits, 0, 128), w.size)
    assert (status, values.tolist()) == (-1, weights)


@pytest.mark.parametrize("bits", range(2, 9))
def test_asymmetric_codes_span_the_range(bits):
    """The least weight gets code 0, the greatest the last one, 0 the zero point; a positive range is widened to 0."""
    top = 2**bits - 1
    w = np.array([-1.0, top - 1.0, 0.0, 1.0], np.float32)
    n_bytes = (4 * bits + 7) // 8
    _, data, scales, zeros = encode(encoder(bits, "asymmetric"), w, 4, (bits, 1, 128), (n_bytes, 1, 1))
    assert (scales.tolist(), zeros.tolist()) == ([1.0], [1.0])
    codes = [0, top, 1, 2]
    assert int.from_bytes(data.tobytes(), "little") == sum(code << (k * bits) for k, code in enumerate(codes))
    _, _, scales, zeros = encode(encoder(bits, "asymmetric"), w[[1]], 1, (bits, 1, 128), (1, 1, 1))
    assert (scales.tolist(), zeros.tolist()) == ([np.float32((top - 1) / top)], [0.0])
    _, _, _, zeros = encode(encoder(bits, "asymmetric"), -w[[1]], 1, (bits, 1, 128), (1, 1, 1))
    assert zeros.tolist() == [top]


def test_rounding_is_half_to_even():
    """At scale 1, halves go to the even neighbour on both sides of zero."""
    w = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5], np.float32)
    _, data, _, _ = encode(encoder(8), w, w.size, (8, 0, 128), (9, 1, 0))
    assert (data.astype(int) - 128).tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -126]


def test_groups_restart_at_matrix_rows_and_on_bytes():
    """Rows of 5 in groups of 3 are groups of 3, 2, 3, 2, each on a byte of its own."""
    w = np.array([7, 1, 1, 14, 2, 21, 3, 3, 28, 4], np.float32)
    status, data, scales, _ = encode(encoder(4), w, 5, (4, 0, 3), (6, 4, 0))
    assert (status, scales.tolist()) == (-1, [1, 2, 3, 4])
    assert data.tolist() == [0x9F, 0x09, 0x9F, 0x9F, 0x09, 0x9F]
    _, values = decode(decoder(4), data, scales, [], 5, (4, 0, 3), 10)
    assert values.tolist() == w.tolist()


@pytest.mark.parametrize(("group", "n_groups"), [(0, 2), (-1, 1), (100, 2), (1, 8)])
def test_group_sizes_of_channel_and_tensor(group, n_groups):
    """0 is a group a matrix row, -1 one for everything; a group longer than a row is the row."""
    w = np.array([7, 1, 2, 3, 14, 1, 2, 3], np.float32)
    sizes = SIZES(np.array([8]), np.array([4]), (4, 0, group))
    assert sizes.scales.tolist() == [n_groups]
    _, _, scales, _ = encode(encoder(4), w, 4, (4, 0, group), (int(sizes.data[0]), n_groups, 0))
    expected = {0: [1, 2], -1: [2], 100: [1, 2], 1: (w / 7).tolist()}[group]
    assert scales.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_groups(kind):
    """Zeros, negative zeros, and what underflows the scale decode to exact zeros with scale 0."""
    params = (4, KINDS[kind], 128)
    for w in ([0.0, -0.0, 0.0], [1e-45, -1e-45, 1e-40]):
        status, data, scales, zeros = encode(encoder(4, kind), np.array(w, np.float32), 3, params, (2, 1, KINDS[kind]))
        assert (status, scales.tolist(), zeros.tolist()) == (-1, [0.0], [0.0] * zeros.size)
        assert data.tolist() == ([0x88, 0x08] if kind == "symmetric" else [0, 0])
        _, values = decode(decoder(4), data, scales, zeros, 3, params, 3)
        assert values.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 1, 129, 255, 256, 299])
def test_the_status_is_the_first_bad_value(kind, value, position):
    """A NaN or infinity anywhere, a second one after it, gives its position; both kernels agree."""
    w = bell(300)
    w[position] = value
    w[299] = np.nan
    params = (4, KINDS[kind], 128)
    sizes = [int(size[0]) for size in SIZES(np.array([300]), np.array([300]), params)]
    assert encode(encoder(4, kind), w, 300, params, sizes)[0] == position
    assert error(integer.error, w, 300, params)[0] == position


def test_signalling_nans_are_found():
    """A signalling NaN and NaNs with payloads are as bad as any."""
    for pattern in (0x7F800001, 0xFF800001, 0x7FC00123, 0xFFFFFFFF):
        w = np.array([1, 2, pattern, 4], np.uint32).view(np.float32)
        assert encode(encoder(4), w, 4, (4, 0, 128), (2, 1, 0))[0] == 2


def test_decoded_values_stay_finite():
    """A code times a scale beyond the largest float is the largest float."""
    largest = np.finfo(np.float32).max
    _, values = decode(decoder(4), [0xFF, 0x10], [largest], [], 4, (4, 0, 128), 4)
    assert values.tolist() == [largest, largest, -largest, -largest]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_compiled_is_the_python_function(kind, bits):
    """Encoder, decoder and error sums give the interpreter's bits, also for short groups and short rows."""
    w = bell(154, bits)
    for row_length, group in ((154, 32), (77, 13), (22, 0), (77, -1)):
        params = (bits, KINDS[kind], group)
        sizes = [int(s[0]) for s in SIZES(np.array([w.size]), np.array([row_length]), params)]
        compiled = encode(encoder(bits, kind), w, row_length, params, sizes)
        sums = error(integer.error, w, row_length, params)
        back = decode(decoder(bits), *compiled[1:], row_length, params, w.size)
        with interpreted():
            plain = encode(encoder(bits, kind).py_func, w, row_length, params, sizes)
            assert error(integer.error.py_func, w, row_length, params)[1].tobytes() == sums[1].tobytes()
            again = decode(decoder(bits).py_func, *compiled[1:], row_length, params, w.size)
        assert [part.tobytes() for part in plain[1:]] == [part.tobytes() for part in compiled[1:]]
        assert again[1].tobytes() == back[1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_halves_encode_as_their_floats(kind, bits):
    """The encoder of float16 writes the bytes of the float32 that they are, compiled or not; both find a bad value."""
    halves = bell(154, bits).astype(np.float16)
    halves[:20] = np.arange(-10, 10) * 2.0**-24  # subnormal
    of_halves = getattr(integer, INTEGERS[bits, kind == "asymmetric"].encode_halves_name)
    for row_length, group in ((154, 32), (77, 13), (22, 0), (77, -1)):
        params = (bits, KINDS[kind], group)
        sizes = [int(s[0]) for s in SIZES(np.array([halves.size]), np.array([row_length]), params)]
        expected = encode(encoder(bits, kind), halves.astype(np.float32), row_length, params, sizes)
        found = encode(of_halves, halves.view(np.uint16), row_length, params, sizes)
        with interpreted():
            plain = encode(of_halves.py_func, halves.view(np.uint16), row_length, params, sizes)
        for given in (found, plain):
            assert given[0] == expected[0] == -1
            assert [part.tobytes() for part in given[1:]] == [part.tobytes() for part in expected[1:]]
        for pattern in (0x7C00, 0xFC00, 0x7C01, 0xFFFF):
            bad = halves.view(np.uint16).copy()
            bad[[101, 140]] = pattern
            assert encode(of_halves, bad, row_length, params, sizes)[0] == 101
            with interpreted():
                assert encode(of_halves.py_func, bad, row_length, params, sizes)[0] == 101


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_kernel_sums_what_decoding_would(kind):
    """Its sums are those of encode, then decode, added in the same order."""
    params, w = (3, KINDS[kind], 50), bell(10_000, 3)
    sizes = [int(s[0]) for s in SIZES(np.array([w.size]), np.array([w.size]), params)]
    _, data, scales, zeros = encode(encoder(3, kind), w, w.size, params, sizes)
    _, values = decode(decoder(3), data, scales, zeros, w.size, params, w.size)
    _, (squared, power, decoded, largest) = error(integer.error, w, w.size, params)
    x, y = w.astype(np.float64), values.astype(np.float64)
    assert largest == np.abs(x - y).max()
    assert [squared, power] == pytest.approx([((x - y) ** 2).sum(), (x**2).sum()], rel=1e-12)
    assert decoded == pytest.approx((y**2).sum(), rel=1e-7)  # of decoded values that are not rounded to float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_measured_group_encodes_as_the_whole(kind, bits):
    """Slices of one group, given the bounds of all of them, give its bytes, its scale and its error sums."""
    w, params = bell(1000, bits) + np.float32(0.01), (bits, KINDS[kind], -1)
    sizes = [int(s[0]) for s in SIZES(np.array([w.size]), np.array([w.size]), params)]
    whole = encode(encoder(bits, kind), w, w.size, params, sizes)
    bounds = np.zeros(2, np.int64)
    for part in (w[:384], w[384:]):
        integer.measure(readonly(part), bounds)
    data = b""
    for part in (w[:384], w[384:]):
        size = (part.size * bits + 7) // 8
        found = encode(encoder(bits, kind), part, part.size, (*params, *bounds.tolist()), (size, *sizes[1:]))
        data += found[1].tobytes()
        assert [column.tobytes() for column in found[2:]] == [column.tobytes() for column in whole[2:]]
    assert data == whole[1].tobytes()
    with interpreted():
        plain = np.zeros(2, np.int64)
        for part in (w[:384], w[384:]):
            integer.measure.py_func(readonly(part), plain)
    assert plain.tolist() == bounds.tolist()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 33, 48, 64, 100, 130])
def test_no_byte_beyond_a_group_is_written(n, bits):
    """Vectors are stored whole, and never past the group's last byte."""
    w, size = bell(n, n), (n * bits + 7) // 8
    room = np.full(size + 64, 77, np.uint8)
    scales, zeros, none = np.zeros(1, np.float32), np.zeros(0, np.float32), readonly([], np.float32)
    encoder(bits)(readonly(w), n, readonly([bits, 0, -1], np.int64), none, room[:size], scales, zeros)
    assert (room[size:] == 77).all()
    values = np.full(n + 32, 77, np.float32)
    decoder(bits)(readonly(room[:size]), readonly(scales), none, n, readonly([bits, 0, -1], np.int64), values[:n])
    assert (values[n:] == 77).all()
