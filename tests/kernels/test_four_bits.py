"""IQ4_NL, IQ4_XS, MXFP4 and NVFP4: ggml's bytes and bits, and searches that lose no more on any block."""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest
from support.interpreted import NONE, interpreted, readonly
from support.samples import bell, integers

from aq2_pipeline.kernels import e2m1, halves, minifloats
from aq2_pipeline.kernels.blocks import columns, iq4_nl, iq4_xs, mxfp4, nonlinear, nvfp4

FORMATS = {"iq4_nl": iq4_nl, "iq4_xs": iq4_xs, "mxfp4": mxfp4, "nvfp4": nvfp4}
MODULES = (halves, minifloats, e2m1, columns, nonlinear, *FORMATS.values())
formats = pytest.mark.parametrize("name", FORMATS)
SIZE = 2048
#: Sums of squares, in float64, of equal errors.
ROUNDING = 1e-9


@pytest.fixture(scope="module")
def ggml():
    """Return the C library."""
    return importlib.import_module("support.ggml")


@functools.cache
def sets():
    """Return weights of many shapes, whole super-blocks."""
    w, k = bell(SIZE), np.arange(SIZE)
    made = {
        "bell": w,
        "heavy": w**3,
        "exponential": np.sign(w) * np.log1p(-np.minimum(np.abs(w) / 2, 0.99)),
        "uniform": integers(SIZE, 3) / 2**32 - 0.5,
        "positive": 1 + w,
        "constant": np.repeat(bell(SIZE // 256, 5), 256),
        "outlier": np.where(k % 256 == 77, 50 * w, w),
        "single": np.where(k % 256 == 200, w, 0),
        "zeros": 0 * w,
        "tiny": 1e-6 * w,
        "small": 1e-5 * w,
        "grid": integers(SIZE, 4) % 25 - 12.0,
        "halves": (integers(SIZE, 6) % 25 - 12.0) / 2,
        "codebook": nonlinear.VALUES[integers(SIZE, 7) % 16] * np.repeat(bell(SIZE // 32, 8), 32),
        "subnormal": 1e-40 * w,
        "large": 2000 * w / np.abs(w).max(),
    }
    return {given: values.astype(np.float32) for given, values in made.items()}


def encoded(name, method, values, importance=None):
    """Return the bytes of finite weights."""
    form, values = FORMATS[name], readonly(values, np.float32)
    data, nothing = np.full(values.size // form.BLOCK * form.N_BYTES, 255, np.uint8), np.zeros(0, np.float32)
    kernel = getattr(form.kernels, f"encode_{method}" + ("" if importance is None else "_weighted"))
    given = NONE if importance is None else readonly(importance, np.float32)
    status = kernel(values, values.size, readonly([], np.int64), given, data, nothing, nothing)
    return data if status < 0 else int(status)


def decoded(name, data):
    """Return the status and the weights of bytes."""
    form = FORMATS[name]
    values = np.full(data.size // form.N_BYTES * form.BLOCK, np.nan, np.float32)
    return form.kernels.decode(readonly(data), NONE, NONE, values.size, readonly([], np.int64), values), values


def squared_errors(ggml, name, values, data, importance=1.0):
    """Return the weighted squared error of each block of what ggml decodes."""
    lost = values.astype(np.float64) - ggml.dequantize(name, data, values.size)
    return (lost**2 * importance).reshape(-1, FORMATS[name].BLOCK).sum(axis=1)


@formats
def test_reference_has_ggmls_bytes(name, ggml):
    """On every set, edges and ties included."""
    for given, values in sets().items():
        np.testing.assert_array_equal(encoded(name, "reference", values), ggml.quantize(name, values), given)


@formats
def test_search_never_loses_more_than_ggml(name, ggml):
    """On no block of any set; with importance, where that is what counts, neither."""
    importance = integers(SIZE, 9) % 1000 / 1000
    importance[::64] = 1
    for given, values in sets().items():
        theirs = ggml.quantize(name, values)
        for weighting in (None, importance):
            data, counted = encoded(name, "search", values, weighting), 1.0 if weighting is None else weighting
            ours = squared_errors(ggml, name, values, data, counted)
            assert (ours <= squared_errors(ggml, name, values, theirs, counted) * (1 + ROUNDING)).all(), given


@formats
def test_importance_lowers_the_error_that_it_weighs(name, ggml):
    """In total, against a search without it."""
    values, importance = sets()["bell"], 0.1 ** (integers(SIZE, 10) % 3)
    errors = (
        squared_errors(ggml, name, values, encoded(name, "search", values, given), importance).sum()
        for given in (importance, None)
    )
    assert next(errors) < next(errors)


@formats
def test_groups_without_importance_are_quantized(name, ggml):
    """Where no weight of a group counts, it is not lost: its scale is near the one found without importance."""
    values, importance = sets()["bell"], np.ones(SIZE)
    importance.reshape(-1, 256)[:, 64:128] = 0
    data = encoded(name, "search", values, importance)
    lost = (values - ggml.dequantize(name, data, SIZE)).reshape(-1, 256)[:, 64:128]
    assert (lost**2).sum() < 0.05 * (values.reshape(-1, 256)[:, 64:128] ** 2).sum()


@formats
def test_decoded_bits_are_ggmls(name, ggml):
    """Of random bytes; a block with a weight that is not finite is told of."""
    form = FORMATS[name]
    blocks = integers(256 * form.N_BYTES, 11).astype(np.uint8).reshape(256, -1)
    blocks[:, 0] = np.arange(256)  # every exponent of MXFP4, every scale of NVFP4
    finite = np.isfinite(ggml.dequantize(name, blocks.ravel(), 256 * form.BLOCK)).reshape(256, -1).all(axis=1)
    status, values = decoded(name, blocks[finite].ravel())
    assert status == -1
    assert values.tobytes() == ggml.dequantize(name, blocks[finite].ravel(), values.size).tobytes()
    assert finite.all() == (name == "nvfp4")
    for block in blocks[~finite]:
        assert decoded(name, np.concatenate([blocks[finite][0], block]))[0] == form.BLOCK


def test_mxfp4_takes_ggmls_logarithm(ggml):
    """Just below a power of two its float32 logarithm is rounded up; from 2**-149 to the largest float."""
    powers = np.array([2.0**k for k in range(-149, 128)], np.float32).view(np.int32)
    sizes = np.concatenate([powers - k for k in (0, 1, 2, 5, 6, 11, 12, 22, 23, 44, 45, 90)])
    sizes = np.append(sizes[sizes > 0], np.float32(np.finfo(np.float32).max).view(np.int32)).astype(np.int32)
    values = np.zeros((-(-sizes.size // 16) * 16, 32), np.float32)
    values[: sizes.size, 9] = sizes.view(np.float32)
    expected = ggml.quantize("mxfp4", values)
    np.testing.assert_array_equal(encoded("mxfp4", "reference", values.ravel()), expected)
    with np.errstate(over="ignore"):
        ours, theirs = (
            np.abs(values.astype(np.float64).ravel() - ggml.dequantize("mxfp4", data, values.size))
            for data in (encoded("mxfp4", "search", values.ravel()), expected)
        )
    assert (ours <= theirs).all()


@formats
@pytest.mark.parametrize("method", ["search", "reference"])
@pytest.mark.parametrize("huge", [1e30, -1e30])
def test_what_no_scale_holds_is_refused(name, method, huge):
    """The status is the weight's position; MXFP4's scales hold every float."""
    values = np.array([*sets()["bell"][:600], huge, *sets()["bell"][601:768]], np.float32)
    found = encoded(name, method, values)
    if name == "mxfp4":
        value = decoded(name, found)[1][600]
        assert abs(value / np.float32(huge) - 1) < 0.3
    else:
        assert found == 600


@formats
def test_nvfp4_holds_no_more_than_2688(name):
    """The limit itself is kept, in all formats; what is larger, in all but NVFP4."""
    values = sets()["bell"][:256].copy()
    values[100] = 2688
    assert abs(decoded(name, encoded(name, "search", values))[1][100] - 2688) < 400
    values[100] = np.nextafter(np.float32(2688), np.float32(3000))
    found = encoded(name, "search", values)
    assert (found == 100) if name == "nvfp4" else isinstance(found, np.ndarray)


@formats
@pytest.mark.parametrize("method", ["search", "reference"])
def test_compiled_is_interpreted(name, method):
    """A batch, with importance and without, has the same bytes and decodes to the same bits."""
    form = FORMATS[name]
    size = form.BATCH * form.BLOCK
    values = np.concatenate([sets()[given][:128] for given in ("bell", "grid", "tiny", "single")])[:size]
    importance = (integers(size, 12) % 100 / 99).astype(np.float32)
    importance[::16] = 1
    for weights in (None, importance):
        expected = encoded(name, method, values, weights)
        _, whole = decoded(name, expected)
        data, back = np.zeros(form.BATCH * form.N_BYTES, np.uint8), np.zeros(form.BLOCK, np.float32)
        with interpreted(*MODULES), np.errstate(all="ignore"):
            assert getattr(form, method)(values, weights, data) == -1
            np.testing.assert_array_equal(data, expected)
            for k in range(form.BATCH):
                assert form.decode(data[k * form.N_BYTES : (k + 1) * form.N_BYTES], back) == -1
                assert back.tobytes() == whole[k * form.BLOCK : (k + 1) * form.BLOCK].tobytes()
