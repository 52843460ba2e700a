"""NF4 as bitsandbytes makes it: the same codes and scales; it packs the first of two codes in the high half."""

import numpy as np
import torch
from bitsandbytes import functional
from support.models import weights

import aq2_pipeline


def test_nf4_codes_and_scales_are_those_of_bitsandbytes():
    """On real and made weights, in groups of 64."""
    for name in ("minilm", "gaussian", "t3", "constant", "zeros", "outlier", "tiny"):
        values = weights(name)[: 1 << 16].copy()
        stored, state = functional.quantize_4bit(torch.from_numpy(values), blocksize=64, quant_type="nf4")
        theirs = stored.numpy().reshape(-1)
        ours = aq2_pipeline.quantize(values.reshape(1, -1), "nf4_g64")[0].as_py()
        data = np.frombuffer(ours["quantized_data"], np.uint8)
        np.testing.assert_array_equal(np.stack([data & 15, data >> 4]), np.stack([theirs >> 4, theirs & 15]), name)
        np.testing.assert_array_equal(np.array(ours["scales"], np.float32), state.absmax.numpy(), name)
