"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: ggml's bytes without a search, and never a larger error with one."""

from __future__ import annotations

import numpy as np
import pytest
from support import ggml
from support.interpreted import NONE, interpreted, readonly
from support.samples import bell, integers

from aq2_pipeline.kernels import halves
from aq2_pipeline.kernels.blocks import (
    affine,
    columns,
    nibbles,
    q4_0,
    q4_1,
    q5_0,
    q5_1,
    q8_0,
    range_search,
    scale_search,
    symmetric,
)

FORMATS = {"q4_0": q4_0, "q4_1": q4_1, "q5_0": q5_0, "q5_1": q5_1, "q8_0": q8_0}
SHARED = (halves, columns, nibbles, scale_search, range_search, symmetric, affine)
PARAMS, NOTHING = readonly([], np.int64), np.zeros(0, np.float32)

N = 32 * 67  # four batches, and a part of one
BELL, UNIFORM = bell(N), integers(N, 2) / 2**32
IMPORTANCE = (integers(N, 3) / 2**32 + 2.0**-10).astype(np.float32) ** 3


def sets():
    """Return the weights that are tried, by name."""
    blocks = BELL.reshape(-1, 32)
    one = np.zeros_like(blocks)
    one[:, 5] = blocks[:, 5]
    constant = np.repeat(blocks[:, :1], 32, axis=1)
    found = {
        "bell": BELL,
        "heavy tails": 1000 * BELL**3,
        "positive": UNIFORM,
        "far from zero": 100 + BELL,
        "one weight": one,
        "an outlier": blocks / 1000 + 20 * one,
        "constant": constant,
        "zeros": np.zeros(N),
        "negative zeros": -np.zeros(N),
        "zeros of both signs": np.copysign(0, BELL),
        "whole numbers": integers(N, 4) % 16 - 8.0,
        "ties": (integers(N, 5) % 33 - 16.0) / 2,
        "large": BELL / np.abs(BELL).max() * 65000,
        "of all sizes": BELL * 10.0 ** (integers(N, 6) % 12 - 9.0),
    }
    found |= {f"about {size}": BELL * size for size in (1e-6, 1e-7, 1e-20, 1e-37, 1e-39, 1e-44)}
    return {name: np.ascontiguousarray(values, np.float32).reshape(-1) for name, values in found.items()}


SETS = sets()


def encode(name, method, values, importance=NONE):
    """Return the bytes that a kernel writes."""
    module = FORMATS[name]
    data = np.full(values.size // module.BLOCK * module.N_BYTES, 255, np.uint8)
    kernel = getattr(module.kernels, f"encode_{method}")
    assert kernel(readonly(values), values.size, PARAMS, readonly(importance), data, NOTHING, NOTHING) == -1
    return data


def decode(name, data, n):
    """Return the values that the kernel reads."""
    values = np.full(n, np.nan, np.float32)
    assert FORMATS[name].kernels.decode(readonly(data), NONE, NONE, n, PARAMS, values) == -1
    return values


def errors(name, data, values, importance=1):
    """Return the error of each block, as ggml decodes it."""
    found = (values - ggml.dequantize(name, data, values.size).astype(np.float64)) ** 2 * importance
    return found.reshape(-1, 32).sum(axis=1)


@pytest.mark.parametrize("weights", SETS)
@pytest.mark.parametrize("name", FORMATS)
def test_reference(name, weights):
    """Without a search, ggml's bytes."""
    values = SETS[weights]
    np.testing.assert_array_equal(encode(name, "reference", values), ggml.quantize(name, values))


@pytest.mark.parametrize("name", FORMATS)
def test_decode(name):
    """What ggml decodes, from any codes and any finite scales."""
    data = ggml.random_blocks(name, N // 32, 7)
    expected = ggml.dequantize(name, data, N)
    np.testing.assert_array_equal(decode(name, data, N).view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
@pytest.mark.parametrize("name", FORMATS)
def test_decode_refuses(name, bits):
    """A scale that is not finite is refused, at its block."""
    data = ggml.quantize(name, SETS["bell"])
    data[2 * FORMATS[name].N_BYTES :][:2] = np.uint16(bits).reshape(1).view(np.uint8)
    values = np.zeros(N, np.float32)
    assert FORMATS[name].kernels.decode(readonly(data), NONE, NONE, N, PARAMS, values) == 64


@pytest.mark.parametrize("weights", SETS)
@pytest.mark.parametrize("name", FORMATS)
def test_search_is_never_worse(name, weights):
    """No block's error is above that of ggml's block, whatever the weights."""
    values = SETS[weights]
    own, theirs = (errors(name, d, values) for d in (encode(name, "search", values), ggml.quantize(name, values)))
    assert (own <= theirs * (1 + 1e-6)).all()


@pytest.mark.parametrize("weights", ["bell", "heavy tails", "positive", "far from zero", "of all sizes"])
@pytest.mark.parametrize("name", FORMATS)
def test_weighted_search(name, weights):
    """With an importance, the weighted error of no block is above ggml's, and the total below the plain search's."""
    values = SETS[weights]
    weighted, plain, theirs = (
        errors(name, data, values, IMPORTANCE)
        for data in (
            encode(name, "search_weighted", values, IMPORTANCE),
            encode(name, "search", values),
            ggml.quantize(name, values),
        )
    )
    assert (weighted <= theirs * (1 + 1e-6)).all()
    assert weighted.sum() < plain.sum()


#: Decibels that a search gains on ggml's block for bell-shaped weights, at least.
GAINS = {"q4_0": 0.45, "q4_1": 1.0, "q5_0": 0.45, "q5_1": 1.1, "q8_0": 1.0}


@pytest.mark.parametrize("name", FORMATS)
def test_search_gains(name):
    """A search is worth its time."""
    own, theirs = (errors(name, d, BELL).sum() for d in (encode(name, "search", BELL), ggml.quantize(name, BELL)))
    assert 10 * np.log10(theirs / own) > GAINS[name]


@pytest.mark.parametrize("method", ["reference", "search"])
@pytest.mark.parametrize("name", FORMATS)
def test_scale_beyond_float16(name, method):
    """A block whose scale fits no float16 is refused, at the weight that is furthest from zero."""
    module, values = FORMATS[name], BELL.copy()
    values[77] = -2e7
    data = np.zeros(N // 32 * module.N_BYTES, np.uint8)
    kernel = getattr(module.kernels, f"encode_{method}")
    assert kernel(readonly(values), N, PARAMS, NONE, data, NOTHING, NOTHING) == 77


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_do_not_see_each_other(name):
    """A block's bytes are the same wherever in a batch it lies, and whatever lies beside it."""
    values = SETS["of all sizes"]
    turned = np.roll(values.reshape(-1, 32), 5, axis=0).reshape(-1)
    own, other = (encode(name, "search", w).reshape(N // 32, -1) for w in (values, turned))
    np.testing.assert_array_equal(np.roll(own, 5, axis=0), other)


def test_no_code_of_minus_128():
    """A searched Q8_0 has the codes that ggml writes: -127 to 127."""
    codes = encode("q8_0", "search", SETS["bell"]).reshape(-1, 34)[:, 2:].view(np.int8)
    assert codes.min() == -127


@pytest.mark.parametrize("weights", ["bell", "constant", "zeros", "far from zero"])
@pytest.mark.parametrize("name", FORMATS)
def test_compiled_equals_interpreted(name, weights):
    """A batch becomes the same bytes in the interpreter, and decodes to the same values."""
    module, values = FORMATS[name], readonly(SETS[weights][:512])
    importance = readonly(IMPORTANCE[:512] / IMPORTANCE[:512].reshape(-1, 32).max(axis=1).repeat(32))
    expected = {method: encode(name, method, values) for method in ("reference", "search")}
    expected["weighted"] = encode(name, "search_weighted", values, importance)
    with interpreted(*SHARED, module), np.errstate(all="ignore"):
        for method, data in expected.items():
            found, given = np.full(data.size, 255, np.uint8), importance if method == "weighted" else None
            run = module.reference if method == "reference" else module.search
            assert run(values, given, found) == -1
            np.testing.assert_array_equal(found, data)
        block = np.zeros(32, np.float32)
        assert module.decode(expected["search"][: module.N_BYTES], block) == -1
    np.testing.assert_array_equal(block, decode(name, expected["search"][: module.N_BYTES], 32))
