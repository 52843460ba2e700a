"""Case 61: the bytes of blocks are those of gguf's own quantizers, written in NumPy."""

import gguf
import numpy as np
import pytest
from support.models import weights

import aq2_pipeline

#: Those that gguf says give ggml's bytes; of the block formats it has no quantizers for K.
NAMES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def given():
    """Return finite weights of real layers and made ones, which every format holds."""
    return np.concatenate([weights(name)[: 1 << 18] for name in ("minilm", "gaussian", "t3", "constant", "outlier")])


@pytest.mark.parametrize("name", NAMES)
def test_case_61_blocks_are_those_of_gguf(name):
    """The method `reference` and `gguf.quants` write the same bytes, and decode them to the same bits."""
    values, kind = given(), gguf.GGMLQuantizationType[name]
    theirs = gguf.quants.quantize(values, kind)
    ours = aq2_pipeline.quantize(values, f"{name.lower()}:reference")
    np.testing.assert_array_equal(np.frombuffer(ours[0]["quantized_data"].as_py(), np.uint8), theirs)
    decoded = aq2_pipeline.dequantize(ours)[0].values.to_numpy()
    np.testing.assert_array_equal(decoded.view(np.uint32), gguf.quants.dequantize(theirs, kind).view(np.uint32))


def test_case_61_bfloat16_is_that_of_gguf():
    """Weights are rounded to the nearest, halves to even."""
    values = given()
    ours = aq2_pipeline.quantize(values, "bf16")[0]["quantized_data"].as_py()
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    np.testing.assert_array_equal(np.frombuffer(ours, np.uint8), theirs.view(np.uint8))
