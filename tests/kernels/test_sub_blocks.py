"""Q3_K, Q6_K, TQ1_0, TQ2_0: bytes and values are ggml's, and no searched block is worse than ggml's."""

from __future__ import annotations

import numpy as np
import pytest
from support import ggml, interpreted
from support.interpreted import NONE, readonly
from support.samples import bell

from aq2_pipeline.kernels import halves
from aq2_pipeline.kernels.blocks import (
    code_descent,
    columns,
    integer_scale_search,
    q3_k,
    q6_k,
    rounding,
    sub_blocks,
    ternary,
    tq1_0,
    tq2_0,
)

FORMATS = {"q3_k": q3_k, "q6_k": q6_k, "tq1_0": tq1_0, "tq2_0": tq2_0}
N = 256 * 48


def _sets():
    w = bell(N, 1).astype(np.float32)
    blocks = w.reshape(-1, 256)
    single = np.zeros_like(blocks)
    single[:, 77] = blocks[:, 77]
    outlier = blocks * np.float32(0.001)
    outlier[:, 5] = blocks[:, 5]
    exponents = np.repeat(np.linspace(-18, 3, N // 16), 16)
    return {
        "bell": w,
        "heavy": w**5,
        "positive": np.abs(w),
        "constant": np.repeat(w[::256], 256),
        "constant sub-blocks": np.repeat(w[::16], 16),
        "single": single.ravel(),
        "outlier": outlier.ravel(),
        "ties": np.round(w * 3),
        "ramp": np.tile(np.linspace(-1, 1, 256), N // 256),
        "tiny": w * 1e-6,
        "denormal": w * 1e-40,
        "zeros": np.zeros(N),
        "all sizes": w * 10.0**exponents,
    }


SETS = {name: readonly(w, np.float32) for name, w in _sets().items()}


def encoded(kernel, module, w, importance=NONE):
    """Return the status and the bytes of a row."""
    data = np.full(w.size // 256 * module.N_BYTES, 255, np.uint8)
    return kernel(w, w.size, readonly([], np.int64), importance, data, NONE.copy(), NONE.copy()), data


def errors(name, w, data, weights=1.0):
    """Return the squared error of each block."""
    return ((w - ggml.dequantize(name, data, w.size).astype(np.float64)) ** 2 * weights).reshape(-1, 256).sum(axis=1)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("name", FORMATS)
def test_reference(name, kind):
    """The reference writes ggml's bytes."""
    module = FORMATS[name]
    status, data = encoded(module.kernels.encode_reference, module, SETS[kind])
    assert status == -1
    np.testing.assert_array_equal(data, ggml.quantize(name, SETS[kind]))


@pytest.mark.parametrize("name", FORMATS)
def test_decode(name):
    """Any bytes decode to ggml's bits; an infinite scale is refused."""
    data = ggml.random_blocks(name, 64, seed=3)
    values = np.full(64 * 256, np.nan, np.float32)
    given = readonly(data), NONE, NONE, values.size, readonly([], np.int64)
    assert FORMATS[name].kernels.decode(*given, values) == -1
    expected = ggml.dequantize(name, data, values.size)
    np.testing.assert_array_equal(values.view(np.int32), expected.view(np.int32))
    data[-2:] = 0, 0x7C
    assert FORMATS[name].kernels.decode(readonly(data), *given[1:], values) == 63 * 256


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("name", FORMATS)
def test_search(name, kind):
    """No block's error is above ggml's, nor its weighted error where weights count; these lower that in total."""
    module, w = FORMATS[name], SETS[kind]
    importance = np.abs(bell(N, 2)).astype(np.float32).reshape(-1, 256) ** 2
    importance = readonly((importance / importance.max(axis=1, keepdims=True)).ravel())
    status, plain = encoded(module.kernels.encode_search, module, w)
    weighted_status, weighted = encoded(module.kernels.encode_search_weighted, module, w, importance)
    assert (status, weighted_status) == (-1, -1)
    theirs = ggml.quantize(name, w)
    slack = 1 + 1e-6  # errors are compared as sums of float32
    assert np.all(errors(name, w, plain) <= slack * errors(name, w, theirs))
    ours = errors(name, w, weighted, importance)
    assert np.all(ours <= slack * errors(name, w, theirs, importance))
    if kind in ("bell", "heavy", "positive"):
        assert ours.sum() < errors(name, w, plain, importance).sum()


@pytest.mark.parametrize("method", ["search", "reference"])
@pytest.mark.parametrize("name", FORMATS)
def test_beyond_float16(name, method):
    """A block whose scale fits no float16 is told by the position of its weight furthest from zero."""
    w = SETS["bell"].copy()
    w[256 * 5 : 256 * 6] *= 1e12
    status, _ = encoded(getattr(FORMATS[name].kernels, f"encode_{method}"), FORMATS[name], w)
    assert status == 256 * 5 + np.abs(w[256 * 5 : 256 * 6]).argmax()


@pytest.mark.parametrize("name", FORMATS)
def test_alone(name):
    """A block's bytes depend on no other block."""
    module, w = FORMATS[name], SETS["heavy"]
    _, whole = encoded(module.kernels.encode_search, module, w)
    _, part = encoded(module.kernels.encode_search, module, readonly(w[256 * 3 : 256 * 7]))
    np.testing.assert_array_equal(part, whole[3 * module.N_BYTES : 7 * module.N_BYTES])


@pytest.mark.parametrize("method", ["search", "reference"])
@pytest.mark.parametrize("name", FORMATS)
def test_interpreted(name, method, monkeypatch):
    """Compiled and interpreted, a batch becomes the same bytes."""
    ours = (halves, columns, rounding, code_descent, integer_scale_search, sub_blocks, ternary, *FORMATS.values())
    monkeypatch.setattr(interpreted, "MODULES", (*interpreted.MODULES, *ours))
    module = FORMATS[name]
    w = readonly(SETS["heavy"][: 256 * module.BATCH])
    _, expected = encoded(getattr(module.kernels, f"encode_{method}"), module, w)
    data = np.full_like(expected, 255)
    with interpreted.interpreted(), np.errstate(all="ignore"):
        assert getattr(module, method)(w, None, data) == -1
        values = np.full(256, np.nan, np.float32)
        assert module.decode(data[: module.N_BYTES], values) == -1
    np.testing.assert_array_equal(data, expected)
    np.testing.assert_array_equal(values, ggml.dequantize(name, data[: module.N_BYTES], 256))
