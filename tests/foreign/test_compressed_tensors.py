"""Folders of compressed-tensors, read by its own package, and by transformers."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import aq2_pipeline

SHAPE = (70, 192)
INTEGERS = [
    f"int{bits}_{group}{zeros}"
    for bits in range(2, 9)
    for group in ("g32", "g64", "g12", "channel", "tensor", "g256")
    for zeros in ("", "_asym")
]


def matrix(shape=SHAPE, seed=0):
    """Return weights with a zero group, a constant one, and small and large ones."""
    weights = np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)
    weights[0, :96], weights[1, :64], weights[2] = 0, 0.25, weights[2] * 1e-20
    return weights


def written(folder, layers, **options):
    """Write named matrices in their schemes; return the folder's tensors, its config, and what we decode."""
    rows = [
        {"layer_name": name, "shape": list(w.shape), "dtype": "F32", "scheme": scheme, "weights": w.reshape(-1)}
        for name, (w, scheme) in layers.items()
    ]
    table = pl.DataFrame(
        rows,
        {
            "layer_name": pl.String,
            "shape": pl.List(pl.Int64),
            "dtype": pl.String,
            "scheme": pl.String,
            "weights": pl.List(pl.Float32),
        },
    )
    table = table.with_columns(quantized=pl.col("weights").aq2.quantize(pl.col("scheme"), shape=pl.col("shape")))
    aq2_pipeline.sink_compressed_tensors(table, folder, **options)
    decoded = table["quantized"].aq2.dequantize()
    ours = {name: decoded[k].to_numpy().reshape(w.shape) for k, (name, (w, _)) in enumerate(layers.items())}
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text()), ours


def decompressed(tensors, config, module):
    """Return a module's state and scheme, and what the package's own compressor makes of them."""
    told = QuantizationConfig(**config["quantization_config"])
    (scheme,) = (group for group in told.config_groups.values() if module in group.targets)
    state = {key.removeprefix(f"{module}."): t for key, t in tensors.items() if key.startswith(f"{module}.")}
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    assert set(state) == set(compressor.compression_param_names(scheme)), module
    return state, scheme, compressor.decompress(dict(state), scheme)["weight"]


@pytest.mark.parametrize("scheme", INTEGERS)
def test_decompressed_integers_are_ours_bit_for_bit(scheme, tmp_path):
    """Of every width, symmetric or not, in groups that fill bytes or do not, by channel, and by tensor."""
    tensors, config, ours = written(tmp_path / "m", {"up.weight": (matrix(), scheme)})
    _, _, theirs = decompressed(tensors, config, "up")
    assert theirs.dtype == torch.float32
    np.testing.assert_array_equal(theirs.numpy().view(np.uint32), ours["up.weight"].view(np.uint32))


def test_decompressed_mxfp4_is_ours_bit_for_bit(tmp_path):
    """Its values fit bfloat16, which the package decodes to."""
    tensors, config, ours = written(tmp_path / "m", {"up.weight": (matrix(), "mxfp4")})
    _, _, theirs = decompressed(tensors, config, "up")
    np.testing.assert_array_equal(theirs.float().numpy().view(np.uint32), ours["up.weight"].view(np.uint32))


@pytest.mark.parametrize(("scheme", "ulps"), [("nvfp4", 0), ("nvfp4_tensor", 2)])
def test_decompressed_nvfp4_is_ours(scheme, ulps, tmp_path):
    """With ggml's scales bit for bit; where the tensor's is stored as an inverse, within two last places of float32."""
    tensors, config, ours = written(tmp_path / "m", {"up.weight": (matrix(), scheme)})
    state, told, theirs = decompressed(tensors, config, "up")
    codes = unpack_fp4_from_uint8(state["weight_packed"], *SHAPE, dtype=torch.float32)
    scale, whole = state["weight_scale"].float(), state["weight_global_scale"]
    wide = dequantize(codes, scale, args=told.weights, global_scale=whole, dtype=torch.float32).numpy()
    steps = np.abs(wide.view(np.int32).astype(np.int64) - ours["up.weight"].view(np.int32))
    assert steps.max() <= ulps
    np.testing.assert_array_equal(theirs.float().numpy(), torch.from_numpy(wide).bfloat16().float().numpy())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("scheme", ["int4_g64", "int3_g32_asym", "int8_channel", "int5_tensor_asym"])
def test_weights_coded_with_rounded_scales_are_nearest(scheme, dtype, tmp_path):
    """Each decoded weight is the nearest multiple of its rounded scale."""
    weights = matrix()
    weights[2] = weights[3]
    tensors, config, _ = written(tmp_path / "m", {"up.weight": (weights, scheme)}, scale_dtype=dtype)
    state, told, _ = decompressed(tensors, config, "up")
    state["weight_scale"] = state["weight_scale"].float()
    compressor = BaseCompressor.get_value_from_registry(told.format)
    theirs = compressor.decompress(dict(state), told)["weight"].numpy()
    scales = state["weight_scale"].numpy().reshape(-1, 1)
    lost = np.abs(theirs - weights).reshape(scales.size, -1) / scales
    top = 2**told.weights.num_bits - 1
    assert lost.max() <= 0.5 + top * 2.0**-8
    assert tensors["up.weight_scale"].dtype == {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]


def llama(**options):
    """Return a small model of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **options,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_load_a_model_of_many_schemes(tied, tmp_path):
    """Integers and MXFP4 find their modules, and decode there as here; what is ignored is as it was.

    Neither embeddings nor zero points: transformers 5.23 has no place for the first, and compressed-tensors 0.20 makes
    one of the wrong shape for the second, as it prepares a model without memory.
    """
    model = llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "plain")

    def scheme(name, w):
        if w.ndim < 2 or "lm_head" in name or "embed" in name or "layers.1.mlp" in name:
            return None
        if "down" in name:
            return "int8_channel"
        return "int6_g32" if "mlp" in name else "mxfp4" if "q_proj" in name else "int4_g32"

    table = aq2_pipeline.scan_safetensors(tmp_path / "plain" / "model.safetensors").collect()
    names = [scheme(name, np.empty(shape)) for name, shape in table.select("layer_name", "shape").rows()]
    held = table.with_columns(scheme=pl.Series(names)).with_columns(
        quantized=pl.when(pl.col("scheme").is_not_null()).then(
            pl.col("weights").aq2.quantize(pl.col("scheme").fill_null("f32"), shape=pl.col("shape"))
        )
    )
    aq2_pipeline.sink_compressed_tensors(held, tmp_path / "m", config_from=tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    loaded.hf_quantizer.compressor.decompress_model(loaded)
    decoded = held.with_columns(
        weights=pl.when(pl.col("scheme").is_null())
        .then(pl.col("weights"))
        .otherwise(pl.col("quantized").aq2.dequantize())
    )
    state = loaded.state_dict()
    for name, shape, values in decoded.select("layer_name", "shape", "weights").rows():
        np.testing.assert_array_equal(state[name].float().numpy(), np.array(values, np.float32).reshape(shape), name)
