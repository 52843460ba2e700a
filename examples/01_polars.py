"""Polars: one expression, and the same bytes from an eager, a lazy and a streaming query."""

import numpy as np
import polars as pl

import aq2_pipeline  # noqa: F401 - registers the namespace `.aq2`

rng = np.random.default_rng(0)
layers = pl.DataFrame(
    {
        "layer_name": [f"blocks.{k}.weight" for k in range(8)],
        "weights": [rng.normal(size=256 * 256).astype(np.float32) for _ in range(8)],
        "shape": [[256, 256]] * 8,
    },
    schema_overrides={"weights": pl.List(pl.Float32)},
)

# The result's type is known before the query runs; a wrong scheme fails on this line.
quantized = pl.col("weights").aq2.quantize(4, shape=pl.col("shape")).alias("quantized")

eager = layers.with_columns(quantized)
lazy = layers.lazy().with_columns(quantized)
assert lazy.collect_schema()["quantized"] == eager.schema["quantized"]
assert lazy.collect().equals(eager)
assert lazy.collect(engine="streaming").equals(eager)

# A column in two chunks is quantized chunk by chunk, to the same bytes.
halves = pl.concat([layers[:5], layers[5:]], rechunk=False)
assert halves.with_columns(quantized).equals(eager)

# A 4-bit weight takes half a byte, a group of 128 one float32 scale.
sizes = eager.select(
    data=pl.col("quantized").struct.field("quantized_data").bin.size(),
    scales=pl.col("quantized").struct.field("scales").list.len(),
)
assert sizes["data"].unique().to_list() == [256 * 256 // 2]
assert sizes["scales"].unique().to_list() == [256 * 256 // 128]

# Decoding needs the struct and nothing else. No weight is off by more than half a scale.
decoded = eager.select(pl.col("quantized").aq2.dequantize())["quantized"]
row = 0
distance = np.abs(layers["weights"][row].to_numpy() - decoded[row].to_numpy()).reshape(-1, 128)
half = eager["quantized"].struct.field("scales")[row].to_numpy() / 2
assert np.all(distance.max(axis=1) <= half * (1 + 1e-6))

errors = layers.select("layer_name", pl.col("weights").aq2.quantization_error(4).struct.field("sqnr_db"))
print(errors)
