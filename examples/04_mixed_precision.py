"""Mixed precision: the bit width is a column, and the error of every layer comes from the same query."""

import numpy as np
import polars as pl

import aq2_pipeline  # noqa: F401 - registers the namespace `.aq2`

rng = np.random.default_rng(0)
shapes = {"embedding": (2000, 64), "attention": (256, 256), "mlp.up": (1024, 256), "norm": (256,)}
layers = pl.DataFrame(
    {
        "layer_name": list(shapes),
        "weights": [rng.standard_t(5, size=int(np.prod(shape))).astype(np.float32) for shape in shapes.values()],
        "shape": [list(shape) for shape in shapes.values()],
    },
    schema_overrides={"weights": pl.List(pl.Float32)},
)

# Any expression may decide: here rank and name; a policy is one too.
bits = (
    pl.when(pl.col("shape").list.len() < 2)
    .then(pl.lit("f32"))
    .when(pl.col("layer_name") == "embedding")
    .then(pl.lit("int8_g64"))
    .otherwise(pl.lit("int4_g64_asym"))
)
shape = pl.col("shape")
report = (
    layers.lazy()
    .with_columns(asked=bits, policy=pl.col("layer_name").aq2.policy_scheme(shape, 4, "diffusion"))
    .with_columns(
        quantized=pl.col("weights").aq2.quantize(pl.col("asked"), shape=shape),
        error=pl.col("weights").aq2.quantization_error(pl.col("asked"), shape=shape),
    )
    .select("layer_name", "policy", pl.col("quantized").struct.field("scheme"), pl.col("error").struct.unnest())
    .collect()
)
assert report["scheme"].to_list() == ["int8_g64", "int4_g64_asym", "int4_g64_asym", "f32"]
by_layer = {row["layer_name"]: row for row in report.iter_rows(named=True)}
assert by_layer["norm"]["sqnr_db"] == float("inf")
assert by_layer["norm"]["bits_per_weight"] == 32
assert by_layer["embedding"]["bits_per_weight"] == 8 + 32 / 64
assert by_layer["attention"]["bits_per_weight"] == 4 + 2 * 32 / 64
assert by_layer["embedding"]["sqnr_db"] > by_layer["attention"]["sqnr_db"] + 20

# A column of integers is a column of widths: more bits, less error.
widths = layers.filter(layer_name="mlp.up").join(pl.DataFrame({"bits": range(2, 9)}), how="cross")
curve = widths.select("bits", pl.col("weights").aq2.quantization_error(pl.col("bits")).struct.field("sqnr_db"))
assert curve["sqnr_db"].is_sorted()

with pl.Config(tbl_cols=-1, tbl_width_chars=140):
    print(report)
print(curve)
