"""Rotated codecs: the transform against NumPy's matrices, what is stored, and what rows are refused."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from support import oracle
from support.interpreted import NONE, decode, encode, error, interpret_closure, interpreted, readonly
from support.models import minilm_outputs
from support.samples import bell, column, shapes

import aq2_pipeline
from aq2_pipeline import InputValueError, SchemeError, codecs, families, rotations, schemes
from aq2_pipeline.kernels import rotation

INTEGER = "aq2_pipeline.kernels.integer"
SIZES = [2, 4, 8, 16, 32, 64, 128, 512, 8192]
#: Of three encoders, each behind a rotation with its own kernels: codes that fill bytes, and those that do not.
NAMES = [
    "int4_g64_rot64", "int3_g32_asym_rot128", "int5_g96_rot32", "int5_g7_rot16", "int3_g5_asym_rot4",
    "int4_channel_rot64", "int3_tensor_asym_rot8", "int4_g1_rot2", "int5_g8192_rot128",
]  # fmt: skip


def matrix(k):
    """Return H D / sqrt(k) in float64, from the formulas of the documentation, in Python's integers."""
    minus = []
    for i in range(k):
        z = (i + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        minus.append((z ^ z >> 31) >> 63)
    signs = 1 - 2 * np.array(minus)
    entries = [[(-1) ** (i & j).bit_count() for j in range(k)] for i in range(k)]
    return np.array(entries, np.float64) * signs / math.sqrt(k)


def turned(w, k):
    """Return the rotated blocks, in Python."""
    room = np.zeros(rotation.MOST, np.float32)
    with interpreted():
        assert rotation.rotate(readonly(w), k, room) == -1
    return room[: w.size].copy()


def back(y, k):
    """Return blocks rotated back, in Python."""
    room = np.zeros(rotation.MOST, np.float32)
    room[: y.size] = y
    values = np.empty(y.size, np.float32)
    with interpreted():
        assert rotation.rotate_back(room, k, values)
    return values


def test_the_first_number_of_splitmix64_is_known():
    """Seed 0 gives 0xE220A8397B1DCDAF first, so the first element changes its sign; the kernels' bound is parse's."""
    assert rotation.signs(5).tolist() == [True, False, False, True, False]
    assert 0.45 < rotation.signs(rotation.MOST).mean() < 0.55
    assert rotation.MOST == rotations.MOST


@pytest.mark.parametrize("k", SIZES[:-1])
def test_the_transform_is_the_matrix(k):
    """Rotated blocks are those of the matrix product in float64, within 1e-6 of their length."""
    w = bell(4 * k, k) + np.float32(0.01)
    expected = (w.astype(np.float64).reshape(-1, k) @ matrix(k).T).ravel()
    assert np.abs(turned(w, k) - expected).max() <= 1e-6 * np.linalg.norm(w)


@pytest.mark.parametrize("k", SIZES)
def test_the_inverse_gives_the_weights_back(k):
    """It is orthonormal: lengths stay, and the inverse of the transform is within float32's rounding."""
    w = bell(rotation.MOST // 2 if k < rotation.MOST else k, k)
    there = turned(w, k)
    assert np.linalg.norm(there.astype(np.float64)) == pytest.approx(np.linalg.norm(w.astype(np.float64)), rel=1e-6)
    assert np.abs(back(there, k) - w).max() <= 1e-6 * np.abs(w).max()


def unpacked(name, row):
    """Return what a row decodes to before it is rotated back, by the oracle of the plain scheme."""
    plain, _, digits = name.rpartition("_rot")
    told = row | {"scheme": plain}
    scales, zeros = (np.array(row[field], np.float32) for field in ("scales", "zero_points"))
    return oracle.dequantize(oracle.Quantized(**told | {"scales": scales, "zero_points": zeros})), int(digits)


def rows_of(name):
    """Return (weights, shape) whose matrix rows the blocks divide: short groups, several units, a long group."""
    row = {"int5_g7_rot16": 1040, "int3_g5_asym_rot4": 36, "int4_g1_rot2": 34, "int5_g96_rot32": 2080}.get(name, 640)
    return bell(3 * row, 5) + np.float32(0.003), (3, row)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_plain_schemes_of_rotated_weights(name):
    """What is stored is what the plain scheme stores of the rotated weights; decoded, it is what rotates back."""
    w, shape = rows_of(name)
    k = int(name.rpartition("_rot")[2])
    found = aq2_pipeline.quantize(column(w), name, shapes(shape))
    row, there = found[0].as_py(), turned(w, k)
    plain = oracle.quantize(there, name.rpartition("_rot")[0], shape).as_dict()
    assert row == plain | {"scheme": name}
    coded, _ = unpacked(name, row)
    assert np.array_equal(aq2_pipeline.dequantize(found)[0].values.to_numpy(), back(coded, k))


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_of_the_round_trip(name):
    """Every figure is that of the decoded weights, in the weights' own coordinates."""
    w, shape = rows_of(name)
    found = aq2_pipeline.quantize(column(w), name, shapes(shape))
    decoded = aq2_pipeline.dequantize(found)[0].values.to_numpy()
    row = found[0].as_py()
    n_bytes = len(row["quantized_data"]) + 4 * (len(row["scales"]) + len(row["zero_points"]))
    lost = aq2_pipeline.quantization_error(column(w), name, shapes(shape))[0].as_py()
    assert oracle.close(lost, oracle.figures(w, decoded, n_bytes), rel=1e-9)
    assert lost["max_abs"] == np.abs(w.astype(np.float64) - decoded).max()


@pytest.mark.parametrize("name", ["int4_channel_rot64", "int3_tensor_asym_rot128", "int3_channel_asym_rot8192"])
def test_groups_longer_than_a_unit(name):
    """A group that does not fit the stack is rotated twice, and is stored as the whole."""
    w = bell(3 * rotation.MOST, 9) * np.linspace(0.1, 1, 3 * rotation.MOST, dtype=np.float32)
    k = int(name.rpartition("_rot")[2])
    there = np.concatenate([turned(part, k) for part in w.reshape(3, -1)])
    row = aq2_pipeline.quantize(column(w), name)[0].as_py()
    assert row == oracle.quantize(there, name.rpartition("_rot")[0]).as_dict() | {"scheme": name}


@pytest.mark.parametrize("name", NAMES)
def test_other_types_and_cuts_give_the_same(name, monkeypatch):
    """float64 that is widened piece by piece, and long rows that are cut, give the bytes and errors of the whole."""
    w, shape = rows_of(name)
    told = shapes(shape)
    expected = aq2_pipeline.quantize(column(w), name, told)
    lost = aq2_pipeline.quantization_error(column(w), name, told)
    wide = pa.array([w.astype(np.float64)], pa.large_list(pa.float64()))
    assert aq2_pipeline.quantize(wide, name, told).equals(expected)
    assert aq2_pipeline.quantization_error(wide, name, told).equals(lost)
    decoded = aq2_pipeline.dequantize(expected)
    monkeypatch.setattr("aq2_pipeline.pieces.SLICE_SIZE", 100)
    assert aq2_pipeline.quantize(column(w), name, told).equals(expected)
    assert aq2_pipeline.quantization_error(column(w), name, told).equals(lost)
    assert aq2_pipeline.dequantize(expected).equals(decoded)


@pytest.mark.parametrize("name", ["int4_g32_rot64", "int4_channel_rot64", "int3_tensor_asym_rot64"])
def test_rows_that_blocks_do_not_divide_are_refused(name):
    """A matrix row that is no whole blocks is a SchemeError that names k and what divides it; stored ones, too."""
    for w, shape in ((bell(96), (96,)), (bell(320), (2, 160))):
        with pytest.raises(SchemeError, match=r"blocks of 64 .* rows of \d+.*_rot32"):
            aq2_pipeline.quantize(column(w), name, shapes(shape))
    with pytest.raises(SchemeError, match="take 'int"):
        aq2_pipeline.quantize(column(bell(65)), name)
    row = aq2_pipeline.quantize(column(bell(128)), name)[0].as_py() | {"row_length": 32}
    with pytest.raises(InputValueError, match="multiple of 64"):
        aq2_pipeline.dequantize(pa.array([row], aq2_pipeline.layout.QUANTIZED))


def test_importance_is_refused():
    """A rotation mixes what importance tells apart."""
    with pytest.raises(SchemeError, match="mixes"):
        aq2_pipeline.quantize(column(bell(64)), "int4_g32_rot64", None, column(np.ones(64)))


@pytest.mark.parametrize("name", ["int4_g32_rot64", "int3_channel_asym_rot64"])
@pytest.mark.parametrize("factor", [0, 1, 1e-40, 1e-38, 1e29])
def test_constants_and_extremes_stay_finite(name, factor):
    """Zeros decode to +0, constants and the tiniest and largest values to something finite and near."""
    spread = bell(512) / np.abs(bell(512)).max() * np.float32(factor)
    for w in (np.full(512, factor, np.float32), spread):
        decoded = aq2_pipeline.dequantize(aq2_pipeline.quantize(column(w), name))[0].values.to_numpy()
        assert np.isfinite(decoded).all()
        assert np.abs(decoded - w).max() <= np.abs(w).max() * 0.6 + 2e-37
        if factor == 0:
            assert decoded.tobytes() == bytes(decoded.nbytes)


@pytest.mark.parametrize("name", ["int4_g32_rot64", "int3_channel_asym_rot64"])
@pytest.mark.parametrize("bad", [1e38, -1e38, math.nan, math.inf])
def test_what_might_overflow_is_refused_by_place(name, bad):
    """Values whose sums might be infinite are told like those that are not finite: by row and position."""
    for n in (256, 3 * rotation.MOST):
        rows = [bell(n), bell(n)]
        rows[1][n - 7] = bad
        for function in (aq2_pipeline.quantize, aq2_pipeline.quantization_error):
            with pytest.raises(InputValueError) as caught:
                function(column(*rows), name)
            assert (caught.value.row, caught.value.position) == (1, n - 7)


def test_forged_scales_that_overflow_are_refused():
    """No stored row decodes to an infinity or NaN."""
    row = aq2_pipeline.quantize(column(bell(64)), "int4_g32_rot64")[0].as_py() | {"scales": [3e38, 3e38]}
    with pytest.raises(InputValueError, match="not finite"):
        aq2_pipeline.dequantize(pa.array([row], aq2_pipeline.layout.QUANTIZED))


@pytest.mark.parametrize(("group", "k", "n"), [(8, 16, 96), (0, 8, 72), (12, 64, 1280)])
def test_compiled_is_interpreted(group, k, n):
    """Compiled kernels do what Python does, bit for bit."""
    w, params = bell(n, 3), (k, 4, 4, 0, group)
    sizes = rotations.rotated(codecs.INTEGERS[4, False]).sizes(np.array([n]), np.array([n]), params)
    room = [int(size[0]) for size in sizes]
    made = (
        rotation.encoder(INTEGER, "encode4"),
        rotation.decoder(INTEGER, "decode4"),
        rotation.error(INTEGER, "encode4", "decode4"),
    )

    def run(*kernels):
        status, *stored = encode(kernels[0], w, n, params, room)
        _, values = decode(kernels[1], *stored, n, params, n)
        _, sums = error(kernels[2], w, n, params)
        return [status, *(part.tobytes() for part in (*stored, values, sums))]

    compiled = run(*made)
    with interpreted(), pytest.MonkeyPatch.context() as patch:
        for one in made:
            interpret_closure(one.py_func, patch)
        assert run(*(one.py_func for one in made)) == compiled


def test_no_byte_beyond_a_row_is_written():
    """The last unit of a row ends with the row."""
    n, params = 36, readonly([4, 3, 3, 0, 5], np.int64)
    data, scales, values = np.full(80, 77, np.uint8), np.full(40, 77, np.float32), np.full(80, 77, np.float32)
    size = 7 * 2 + 1
    assert (
        rotation.encoder(INTEGER, "encode3")(
            readonly(bell(n)), n, params, NONE, data[:size], scales[:8], np.zeros(0, np.float32)
        )
        == -1
    )
    assert (data[size:] == 77).all()
    given = readonly(data[:size]), readonly(scales[:8]), NONE
    assert rotation.decoder(INTEGER, "decode3")(*given, n, params, values[:n]) == -1
    assert (values[n:] == 77).all()


def test_codebooks_and_searches_rotate_too():
    """Any codec of groups gets its rotated twin: NF4 with a search, better rotated on weights with outliers."""
    module = "aq2_pipeline.kernels.codebooks"
    names = ("nf4.encode_search", "nf4.decode", "nf4.error_search")
    plain = codecs.INTEGERS[4, False]

    def sizes(lengths, row_lengths, params):
        return plain.sizes(lengths, row_lengths, (4, 0, params[-1]))

    codec = codecs.Codec("nf4 test", module, *names, sizes, lambda n, params: min(params[-1], n))
    family = families.Family("nf4test_{group}", codec, (), 4, ("search",), rotates=True)
    w = bell(64 * 128, 4)
    w[::97] *= 8
    schemes.add_family(family)
    try:
        lost = [
            aq2_pipeline.quantization_error(column(w), name)[0]["sqnr_db"].as_py()
            for name in ("nf4test_g64", "nf4test_g64_rot64")
        ]
        found = aq2_pipeline.quantize(column(w), "nf4test_g64_rot64:search")
        decoded = aq2_pipeline.dequantize(found)[0].values.to_numpy()
        with pytest.raises(SchemeError, match="channel"):
            schemes.parse("nf4test_channel_rot64")
    finally:
        schemes.remove_family(family)
    assert lost[1] > lost[0] + 1
    assert oracle.figures(w, decoded, 1)["sqnr_db"] == pytest.approx(lost[1], rel=1e-9)


@pytest.mark.parametrize(("group", "gain"), [(32, 0.98), (64, 1.38), (128, 1.83)])
def test_gains_on_minilm(group, gain):
    """On the output matrices of MiniLM a rotation in blocks of 128 gains the decibels that the documentation states."""
    w = np.concatenate([m.ravel() for m in minilm_outputs()])
    told = shapes((w.size // 1536, 1536))
    plain, found = (
        aq2_pipeline.quantization_error(column(w), f"int4_g{group}{suffix}", told)[0]["sqnr_db"].as_py()
        for suffix in ("", "_rot128")
    )
    assert found - plain >= gain
