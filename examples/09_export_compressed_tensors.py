"""Export a model for vLLM and transformers: safetensors in, a folder of compressed-tensors out, read back by hand."""

import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

import aq2_pipeline

NAMES = [f"model.layers.{k}.{name}.weight" for k in range(2) for name in ("self_attn.q_proj", "mlp.up_proj")]

with tempfile.TemporaryDirectory() as folder:
    source, target = Path(folder, "source"), Path(folder, "target")
    source.mkdir()
    rng = np.random.default_rng(0)
    model = {name: rng.normal(scale=0.02, size=(64, 128)).astype(np.float16) for name in NAMES}
    model |= {"lm_head.weight": model[NAMES[0]], "model.norm.weight": np.ones(128, np.float16)}
    save_file(model, source / "model.safetensors")
    Path(source, "config.json").write_text('{"model_type": "llama"}')

    # The query says which layer gets which scheme; the rest has none, and is written as it came.
    layer = pl.col("layer_name")
    scheme = pl.when(layer.str.contains("q_proj")).then(pl.lit("int8_channel")).otherwise(pl.lit("int4_g32_asym"))
    quantized = pl.col("weights").aq2.quantize(scheme, shape=pl.col("shape"))
    lazy = aq2_pipeline.scan_safetensors(source / "model.safetensors").with_columns(
        quantized=pl.when(layer.str.contains(r"layers\..*proj")).then(quantized)
    )
    aq2_pipeline.sink_compressed_tensors(lazy, target, config_from=source)

    written = load_file(target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    ours = dict(lazy.select(layer, pl.col("quantized").aq2.dequantize()).drop_nulls().collect().iter_rows())
    n_bytes = [(path / "model.safetensors").stat().st_size for path in (source, target)]


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """Return rows of codes of 4 or 8 bits, which divide a word."""
    codes = words.view(np.uint32)[:, :, None] >> np.arange(0, 32, bits, dtype=np.uint32)
    return (codes & ((1 << bits) - 1)).reshape(len(words), -1).astype(np.float32)


for group in config["config_groups"].values():
    bits = group["weights"]["num_bits"]
    for module in group["targets"]:
        codes, scales = unpacked(written[f"{module}.weight_packed"], bits), written[f"{module}.weight_scale"]
        zeros = np.full(scales.shape, np.float32(1 << (bits - 1)))
        if not group["weights"]["symmetric"]:
            zeros = unpacked(np.ascontiguousarray(written[f"{module}.weight_zero_point"].T), bits).T
        by_group = codes.reshape(*scales.shape, -1) - zeros[:, :, None]
        assert (by_group * scales[:, :, None]).ravel().tolist() == ours[f"{module}.weight"]
assert config["ignore"] == ["lm_head"]
assert np.array_equal(written["model.norm.weight"], model["model.norm.weight"])
print(f"{n_bytes[0]:,} bytes of float16 became {n_bytes[1]:,}; {len(ours)} layers decode as here, bit for bit")
