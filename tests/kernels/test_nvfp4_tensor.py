"""NVFP4 with one scale a row: the formula's bytes, a search that loses no more on any group, rows of every size."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from support.interpreted import NONE, decode, encode, error, interpreted, readonly
from support.models import minilm_outputs
from support.samples import bell, column, integers, shapes

import aq2_pipeline
from aq2_pipeline import SchemeError, layout, pieces
from aq2_pipeline.kernels import e2m1, minifloats, nvfp4_tensor
from aq2_pipeline.kernels.blocks import columns
from aq2_pipeline.layers import check_chunk
from aq2_pipeline.schemes import parse

METHODS = ("search", "reference")
methods = pytest.mark.parametrize("method", METHODS)
SIZE = 1552  # six batches and one group
#: Sums of squares, in float64, of equal errors.
ROUNDING = 1e-9


@functools.cache
def sets():
    """Return weights of many shapes and sizes, and what makes group scales small, or subnormal."""
    w, k = bell(SIZE), np.arange(SIZE)
    wide = w * 2.0 ** -(integers(SIZE // 16, 4) % 20).astype(np.int64).repeat(16)
    made = {
        "bell": w,
        "heavy": w**3,
        "uniform": integers(SIZE, 3) / 2**32 - 0.5,
        "positive": 1 + w,
        "constant": np.repeat(bell(SIZE // 16, 5), 16),
        "outlier": np.where(k == 77, 50 * w, w),
        "single": np.where(k == 200, w, 0),
        "wide": wide,
        "grid": integers(SIZE, 4) % 25 - 12.0,
        "zeros": 0 * w,
        "tiny": 1e-30 * wide,
        "smallest": 1e-34 * wide,
        "beyond": 1e-37 * w,
        "huge": 3.4e38 * wide / np.abs(wide).max(),
        "edges": np.where(k % 3 == 0, np.finfo(np.float32).max, w),
    }
    return {given: values.astype(np.float32) for given, values in made.items()}


IMPORTANCE = (integers(SIZE, 9) % 1000 / 999).astype(np.float32)
IMPORTANCE[160:192] = 0


def encoded(values, method, importance=None, params=()):
    """Return the bytes and the scale of finite weights."""
    data, scales = np.full(values.size // 16 * 9, 255, np.uint8), np.full(1, np.nan, np.float32)
    kernel = getattr(nvfp4_tensor.kernels, f"encode_{method}" + ("" if importance is None else "_weighted"))
    given = NONE if importance is None else readonly(importance)
    params = readonly(params, np.int64)
    assert kernel(readonly(values), values.size, params, given, data, scales, np.zeros(0, np.float32)) == -1
    return data, scales


def decoded(data, scales):
    """Return the weights of bytes that are good."""
    status, values = decode(nvfp4_tensor.kernels.decode, data, scales, NONE, 16, (), data.size // 9 * 16)
    assert status == -1
    return values


def by_formula(values):
    """Return the bytes and the scale as the format's formula has them, in NumPy and ml_dtypes."""
    groups, size = values.reshape(-1, 16), np.abs(values).max()
    scale, inverse = size / np.float32(2688), np.float32(2688) / size
    if scale < np.finfo(np.float32).tiny:
        scale = inverse = np.float32(0)
    stored = (np.abs(groups).max(axis=1) * inverse / np.float32(6)).astype(ml_dtypes.float8_e4m3fn)
    steps = stored.astype(np.float32) * scale
    codes = np.clip(groups / np.where(steps == 0, np.float32(np.inf), steps)[:, None], -6, 6)
    codes = codes.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(-1, 8, 2)
    data = np.concatenate([stored.view(np.uint8)[:, None], codes[..., 0] | codes[..., 1] << 4], axis=1)
    return data.ravel(), scale


def values_by_formula(data, scale):
    """Return what bytes stand for, by NumPy and ml_dtypes."""
    rows = data.reshape(-1, 9)
    steps = rows[:, 0].copy().view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale)
    codes = np.stack([rows[:, 1:] & 15, rows[:, 1:] >> 4], axis=-1).reshape(-1, 16).view(ml_dtypes.float4_e2m1fn)
    return (codes.astype(np.float32) * steps[:, None]).ravel()


def squared_errors(values, data, scales, importance=1.0):
    """Return the weighted squared error of each group."""
    lost = values.astype(np.float64) - decoded(data, scales)
    return (lost**2 * importance).reshape(-1, 16).sum(axis=1)


@pytest.mark.parametrize("given", sets())
def test_reference_is_the_formula(given):
    """Bytes, scale and decoded bits, from zeros to the largest floats."""
    values = sets()[given]
    with np.errstate(all="ignore"):
        expected, scale = by_formula(values)
        back = values_by_formula(expected, scale)
    data, scales = encoded(values, "reference")
    np.testing.assert_array_equal(data, expected)
    assert scales[0] == scale
    assert decoded(data, scales).tobytes() == back.tobytes()


@pytest.mark.parametrize("given", sets())
@pytest.mark.parametrize("importance", [None, IMPORTANCE], ids=["plain", "weighted"])
def test_search_never_loses_more_than_the_reference(given, importance):
    """On no group of any set; with importance, where that is what counts, neither."""
    values, counted = sets()[given], 1.0 if importance is None else importance
    theirs = squared_errors(values, *encoded(values, "reference"), counted)
    ours = squared_errors(values, *encoded(values, "search", importance), counted)
    assert (ours <= theirs * (1 + ROUNDING)).all()
    assert ours.sum() < theirs.sum() or given not in ("bell", "heavy", "uniform", "wide", "tiny", "huge")


def test_importance_lowers_the_error_that_it_weighs():
    """In total, against a search without it; where no weight of a group counts, all do alike."""
    values = sets()["bell"]
    plain, weighted = encoded(values, "search"), encoded(values, "search", IMPORTANCE)
    assert squared_errors(values, *weighted, IMPORTANCE).sum() < squared_errors(values, *plain, IMPORTANCE).sum()
    np.testing.assert_array_equal(weighted[0][90:108], plain[0][90:108])


@methods
def test_rows_without_a_normal_scale_are_zeros(method):
    """The scale is 0 then, and each weight; above the limit, no weight is lost whole."""
    for given in ("zeros", "beyond"):
        data, scales = encoded(sets()[given], method)
        assert scales[0] == 0
        assert not decoded(data, scales).any()
        assert not (data & 0x77).any()  # signs of zeros at the most
    for given in ("tiny", "huge"):
        data, scales = encoded(sets()[given], method)
        values = sets()[given].astype(np.float64)
        assert np.finfo(np.float32).tiny <= scales[0] < np.inf
        assert squared_errors(values, data, scales).sum() < 0.02 * (values**2).sum()


def test_every_byte_is_decoded_as_the_formula_says():
    """All E4M3 codes with all E2M1 codes; a NaN is told of, and a product beyond the largest float is cut off."""
    rows = integers(256 * 9, 11).astype(np.uint8).reshape(256, 9)
    rows[:, 0] = np.arange(256)
    good = rows[(rows[:, 0] & 127) != 127].ravel()
    for scale in (1.0, -0.3, 1e-38, 1.2e35):
        assert decoded(good, [scale]).tobytes() == values_by_formula(good, scale).tobytes()
    assert np.abs(decoded(good, [3e38])).max() == np.finfo(np.float32).max
    for k in (127, 255):
        data = rows[128:].ravel() if k > 127 else rows.ravel()
        status, _ = decode(nvfp4_tensor.kernels.decode, data, [1.0], NONE, 16, (), data.size // 9 * 16)
        assert status == 16 * 127


@methods
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told_of(method, bad):
    """The status is its position."""
    values = sets()["bell"].copy()
    values[[1000, 1200]] = bad
    kernels = nvfp4_tensor.kernels
    assert encode(getattr(kernels, f"encode_{method}"), values, SIZE, (), (SIZE // 16 * 9, 1, 0))[0] == 1000
    assert error(getattr(kernels, f"error_{method}"), values, SIZE, ())[0] == 1000


@methods
def test_compiled_is_interpreted(method):
    """A whole batch and a part of one, with importance and without: bytes, weights and sums of errors."""
    values = np.concatenate([sets()[given][:96] for given in ("bell", "grid", "wide")])
    for given in (None, IMPORTANCE[: values.size]) if method == "search" else (None,):
        suffix = method + ("" if given is None else "_weighted")
        importance, nothing = NONE if given is None else readonly(given), readonly([], np.int64)
        data, scales = encoded(values, method, given)
        back, sums = decoded(data, scales), np.zeros((2, 4))
        kernels, lanes = nvfp4_tensor.kernels, np.zeros((2, 64))
        kernel = getattr(kernels, f"error_{suffix}")
        kernel(readonly(values), 0, 16, nothing, importance, lanes[0], sums[0])
        plain, one, decoded_plain = np.zeros_like(data), np.zeros(1, np.float32), np.zeros_like(values)
        with interpreted(columns, e2m1, minifloats, nvfp4_tensor), np.errstate(all="ignore"):
            made = method, getattr(nvfp4_tensor, method)  # a function of Python's here
            weighted = given is not None
            encode_plain = nvfp4_tensor.encoder(*made, weighted=weighted).py_func
            error_plain = nvfp4_tensor.error(*made, weighted=weighted).py_func
            assert encode_plain(readonly(values), 16, nothing, importance, plain, one, np.zeros(0, np.float32)) == -1
            assert kernels.decode.py_func(data, scales, NONE, 16, nothing, decoded_plain) == -1
            error_plain(readonly(values), 0, 16, nothing, importance, lanes[1], sums[1])
        np.testing.assert_array_equal(plain, data)
        assert one[0] == scales[0]
        assert decoded_plain.tobytes() == back.tobytes()
        np.testing.assert_array_equal(lanes[0], lanes[1])


@pytest.mark.parametrize(
    ("scheme", "weighted"), [("nvfp4_tensor", False), ("nvfp4_tensor", True), ("nvfp4_tensor:reference", False)]
)
def test_the_error_is_that_of_the_round_trip(scheme, weighted):
    """`quantization_error` reports what quantizing and dequantizing would do."""
    given = pa.array([IMPORTANCE], layout.FLOATS) if weighted else None
    weights = IMPORTANCE.astype(np.float64) if weighted else np.ones(SIZE)
    for name in ("bell", "heavy", "outlier", "grid", "wide"):
        w = sets()[name]
        quantized = aq2_pipeline.quantize(column(w), scheme, importance=given)
        assert len(quantized[0]["scales"]) == 1
        assert len(quantized[0]["quantized_data"].as_py()) == SIZE // 16 * 9
        e = (w - aq2_pipeline.dequantize(quantized).values.to_numpy()).astype(np.float64)
        figures = aq2_pipeline.quantization_error(column(w), scheme, importance=given)[0].as_py()
        np.testing.assert_allclose(figures["mse"], (weights * e * e).sum() / weights.sum(), rtol=1e-10, err_msg=name)
        assert figures["max_abs"] == np.abs(e).max(), name


@pytest.mark.parametrize(
    ("scheme", "importance"),
    [("nvfp4_tensor:reference", "none"), *(("nvfp4_tensor", given) for given in ("none", "a weight", "a channel"))],
)
def test_long_rows_are_measured_in_slices(scheme, importance, monkeypatch):
    """Rows longer than a slice, of float32 and float16, have the bytes, errors and weights of whole ones."""
    w = bell(3200).astype(np.float16)
    w[3000] = 40  # the scale is that of the last slice
    given = {"none": None, "a weight": np.abs(bell(3200, 3)), "a channel": np.abs(bell(800, 3))}[importance]
    given = None if given is None else column(given, given)
    shape = shapes((4, 800), (4, 800))

    def results():
        for weights, name in ((pa.array([w.tobytes()] * 2), f"{scheme}@f16"), (column(w, w), scheme)):
            quantized = aq2_pipeline.quantize(weights, name, shape, importance=given)
            yield quantized, aq2_pipeline.dequantize(quantized)
            figures = aq2_pipeline.quantization_error(weights, name, shape, importance=given)
            yield figures.field("mse").to_numpy(), figures.field("max_abs").to_numpy()

    expected = list(results())
    monkeypatch.setattr(pieces, "SLICE_SIZE", 200)
    found = list(results())
    assert expected[0][0].equals(expected[2][0])
    for k in (0, 2):
        assert expected[k][0].equals(found[k][0])
        assert expected[k][1].equals(found[k][1])
        np.testing.assert_allclose(expected[k + 1], found[k + 1], rtol=1e-12)


def test_rows_that_16_does_not_divide_and_chunks_are_refused():
    """The messages say why: matrix rows are whole groups, and a tensor has one scale."""
    with pytest.raises(SchemeError, match="multiple of 16 weights, this one has rows of 20"):
        aq2_pipeline.quantize(column(bell(80)), "nvfp4_tensor", shapes((4, 20)))
    with pytest.raises(SchemeError, match="nvfp4_tensor has one scale a tensor"):
        check_chunk(parse("nvfp4_tensor"), [2, 16], [4, 16], 0)


def test_search_reaches_its_bar_on_a_model():
    """The output matrices of MiniLM, each with a scale: 21.84 dB."""
    squares = np.zeros(2)
    for matrix in minilm_outputs():
        w = np.ascontiguousarray(matrix, np.float32).ravel()
        lost = w.astype(np.float64) - decoded(*encoded(w, "search"))
        squares += (w.astype(np.float64) ** 2).sum(), (lost**2).sum()
    assert 10 * np.log10(squares[0] / squares[1]) >= 21.84
