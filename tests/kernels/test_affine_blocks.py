"""Q2_K, Q4_K and Q5_K: ggml's bytes by the reference, less error by the search, ggml's values by the decoder."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from support.interpreted import NONE, interpreted, readonly
from support.samples import bell, integers

from aq2_pipeline.kernels import halves, widening
from aq2_pipeline.kernels.blocks import (
    affine_reference,
    affine_search,
    affine_supers,
    columns,
    q2_k,
    q4_k,
    q5_k,
    rounding,
    six_bit_scales,
)

FORMATS = {"q2_k": q2_k, "q4_k": q4_k, "q5_k": q5_k}
SHARED = (halves, widening, columns, rounding, affine_supers, affine_reference, affine_search, six_bit_scales)
N = 48 * 256


def uniform(seed: int) -> np.ndarray:
    return (integers(N, seed) * 2.0**-32).astype(np.float32)


def samples() -> dict[str, np.ndarray]:
    """Return weights of many kinds, 48 blocks each."""
    w, parts = bell(N, 7), bell(N // 32, 8)
    outlier = w * np.float32(0.01)
    outlier[:: 256 + 32] = 5
    return {
        "bell": w,
        "heavy tails": w / (uniform(1) + np.float32(0.02)),
        "uniform": uniform(2) - np.float32(0.5),
        "positive": np.abs(w),
        "negative": -np.abs(w),
        "far from zero": w * np.float32(0.1) - 1,
        "many sizes": w * np.repeat(np.exp(12 * parts), 32),
        "sparse": np.where(uniform(3) < 0.05, w, 0),
        "outlier": outlier,
        "ties": np.round(w * 16) / 4,
        "constant": np.repeat(parts[: N // 256], 256),
        "constant in parts": np.repeat(parts, 32),
        "zeros": np.zeros(N),
        "negative zeros": -np.zeros(N),
        "1e-6": w * np.float32(1e-6),
        "1e-8": w * np.float32(1e-8),
        "1e-30": w * np.float32(1e-30),
        "denormal": w * np.float32(1e-40),
        "1e5": w * np.float32(1e5),
    }


SAMPLES = {name: w.astype(np.float32) for name, w in samples().items()}


def encoded(name: str, method: str, w: np.ndarray, importance: np.ndarray = NONE) -> np.ndarray:
    data = np.full(w.size // 256 * FORMATS[name].N_BYTES, 255, np.uint8)
    kernel = getattr(FORMATS[name].kernels, f"encode_{method}" + "_weighted" * bool(importance.size))
    assert (
        kernel(readonly(w), w.size, readonly([], np.int64), readonly(importance), data, NONE.copy(), NONE.copy()) == -1
    )
    return data


def decoded(name: str, data: np.ndarray, n: int) -> tuple[int, np.ndarray]:
    values = np.full(n, 7, np.float32)
    return FORMATS[name].kernels.decode(readonly(data), NONE, NONE, n, readonly([], np.int64), values), values


def errors(name: str, data: np.ndarray, w: np.ndarray, importance: np.ndarray | float = 1.0) -> np.ndarray:
    """Return the squared error of each block."""
    status, values = decoded(name, data, w.size)
    assert status == -1
    return (importance * (w.astype(np.float64) - values) ** 2).reshape(-1, 256).sum(axis=1)


@pytest.fixture(scope="module")
def ggml():
    from support import ggml  # noqa: PLC0415 - it needs a package that not every machine has

    return ggml


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("name", FORMATS)
def test_reference(name, kind, ggml):
    """The reference writes ggml's bytes."""
    w = SAMPLES[kind]
    np.testing.assert_array_equal(encoded(name, "reference", w), ggml.quantize(name, w))


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("name", FORMATS)
def test_search(name, kind, ggml):
    """No block's error is above ggml's: by a millionth at most, which float32 cannot tell."""
    w = SAMPLES[kind]
    theirs = errors(name, ggml.quantize(name, w), w)
    assert (errors(name, encoded(name, "search", w), w) <= theirs * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_gain(name, ggml):
    """On weights shaped like a bell the search takes a twentieth off ggml's error."""
    w = SAMPLES["bell"]
    theirs = errors(name, ggml.quantize(name, w), w)
    assert errors(name, encoded(name, "search", w), w).sum() < 0.96 * theirs.sum()


@pytest.mark.parametrize("kind", ["bell", "sparse", "heavy tails"])
@pytest.mark.parametrize("name", FORMATS)
def test_importance(name, kind, ggml):
    """With importance it is the weighted error that falls, and that is nowhere above ggml's."""
    w, importance = SAMPLES[kind], uniform(5) ** 4
    importance[:256] = importance[32:64] = 0  # all of a block, part of another
    importance[256 + 32 : 256 + 64] = 0
    data = encoded(name, "search", w, importance)
    weighted = errors(name, data, w, importance)
    assert (weighted <= errors(name, ggml.quantize(name, w), w, importance) * (1 + 2e-6)).all()
    assert weighted.sum() < 0.95 * errors(name, encoded(name, "search", w), w, importance).sum()


@pytest.mark.parametrize("name", FORMATS)
def test_decode(name, ggml):
    """Random bytes decode to the bits that ggml gives them, where their scales are finite."""
    size = FORMATS[name].N_BYTES
    blocks = integers(200 * size, 9).astype(np.uint8).reshape(-1, size)
    theirs = ggml.dequantize(name, blocks.reshape(-1), 200 * 256).reshape(-1, 256)
    for block, values in zip(blocks, theirs, strict=True):
        status, ours = decoded(name, block, 256)
        if status < 0:
            np.testing.assert_array_equal(ours.view(np.int32), values.view(np.int32))
        else:
            assert status == 0
            d = block[-4:] if name == "q2_k" else block[:4]
            assert not np.isfinite(d.copy().view(np.float16)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_neighbours(name):
    """A block's bytes depend on that block alone."""
    w = np.concatenate([SAMPLES[kind][:256] for kind in SAMPLES])
    alone = [encoded(name, "search", w[at : at + 256]) for at in range(0, w.size, 256)]
    np.testing.assert_array_equal(encoded(name, "search", w), np.concatenate(alone))


@pytest.mark.parametrize("method", ["search", "reference"])
@pytest.mark.parametrize("name", FORMATS)
def test_too_large(name, method):
    """A block whose scale no float16 holds is told by the position of its largest weight."""
    w = SAMPLES["bell"][: 4 * 256].copy()
    w[600] = -3e38
    data, nothing = np.zeros(4 * FORMATS[name].N_BYTES, np.uint8), NONE.copy()
    kernel = getattr(FORMATS[name].kernels, f"encode_{method}")
    assert kernel(readonly(w), w.size, readonly([], np.int64), NONE, data, nothing, nothing) == 600


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_interpreted(name, weighted, monkeypatch):
    """Compiled and as Python functions, the search writes the same bytes."""
    module = FORMATS[name]
    n = module.BATCH * 256
    w, importance = SAMPLES["sparse"][:n], uniform(5)[:n] + np.float32(0.01)
    importance /= importance.reshape(-1, 256).max(axis=1).repeat(256)
    data = np.zeros(module.BATCH * module.N_BYTES, np.uint8)
    with interpreted(), np.errstate(all="ignore"):
        for each in (*SHARED, module):
            for key, value in list(vars(each).items()):
                if hasattr(value, "py_func") and not isinstance(value, SimpleNamespace):
                    monkeypatch.setattr(each, key, value.py_func)
        assert module.search(w, importance if weighted else None, data) == -1
    monkeypatch.undo()
    np.testing.assert_array_equal(data, encoded(name, "search", w, importance if weighted else NONE))
