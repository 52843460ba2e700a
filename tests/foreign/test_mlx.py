"""Folders of MLX, read by MLX."""

import json

import mlx.core as mx
import numpy as np
import polars as pl
import pytest

import aq2_pipeline

SHAPE = (70, 256)
INTEGERS = [
    f"int{bits}_g{group}{zeros}" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128) for zeros in ("", "_asym")
]


def written(folder, scheme, **options):
    """Write a matrix; return what `mx.dequantize` makes of the folder, what we decode, and the weights."""
    weights = np.random.default_rng(0).standard_t(4, SHAPE).astype(np.float32)
    weights[0, :128], weights[1, :64] = 0, 0.25
    table = pl.DataFrame({"layer_name": ["up.weight"], "shape": [list(SHAPE)], "weights": [weights.reshape(-1)]})
    table = table.with_columns(quantized=pl.col("weights").aq2.quantize(scheme, shape="shape"))
    aq2_pipeline.sink_mlx(table, folder, **options)
    tensors = mx.load(str(folder / "model.safetensors"))
    told = json.loads((folder / "config.json").read_text())["quantization"]
    theirs = mx.dequantize(
        tensors["up.weight"], tensors["up.scales"], tensors.get("up.biases"), **told, dtype=mx.float32
    )
    ours = table["quantized"].aq2.dequantize()[0].to_numpy().reshape(SHAPE)
    return np.array(theirs), ours, weights, tensors


@pytest.mark.parametrize("scheme", [*INTEGERS, "int4_g64_asym:hqq"])
def test_mlx_decodes_integers_as_we_do(scheme, tmp_path):
    """Within 2**-20 * scale * 2**bits: MLX computes scale * code + bias."""
    theirs, ours, _, tensors = written(tmp_path / "m", scheme)
    scales = np.abs(np.array(tensors["up.scales"]))
    bound = np.repeat(scales, SHAPE[1] // scales.shape[1], 1) * 2.0 ** (int(scheme[3]) - 20)
    assert (np.abs(theirs - ours) <= bound).all()
    assert not theirs[0, :128].any()


@pytest.mark.parametrize("scheme", ["mxfp4", "nvfp4"])
def test_mlx_decodes_small_floats_as_we_do(scheme, tmp_path):
    """Exactly: scales are bytes, and values have few digits."""
    theirs, ours, _, _ = written(tmp_path / "m", scheme)
    np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("scheme", ["int4_g64", "int3_g32_asym", "int8_g128_asym", "int4_g64_asym:hqq"])
def test_weights_coded_with_rounded_scales_and_biases_are_near(scheme, dtype, tmp_path):
    """Half a step, and what the rounding of scale and bias takes from the ends of the range."""
    _, _, weights, tensors = written(tmp_path / "m", scheme, scale_dtype=dtype)
    assert tensors["up.scales"].dtype == tensors["up.biases"].dtype == {"F16": mx.float16, "BF16": mx.bfloat16}[dtype]
    bits, group = int(scheme[3]), int(scheme.split("_")[1].split(":")[0][1:])
    scales, biases = (tensors[f"up.{name}"].astype(mx.float32) for name in ("scales", "biases"))
    theirs = np.array(mx.dequantize(tensors["up.weight"], scales, biases, group_size=group, bits=bits))
    lost = np.abs(theirs - weights).reshape(SHAPE[0], -1, group) / np.abs(np.array(scales))[:, :, None]
    assert lost.max() <= (0.5 if "hqq" not in scheme else 2) + 2**bits * 2.0**-7
