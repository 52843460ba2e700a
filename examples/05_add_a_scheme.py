"""Add a scheme from outside the package: 8-bit fixed point for weights in [-1, 1], such as unit vectors, no scales."""
# ruff: noqa: ANN001, ANN201, ARG001, D103 - kernels share one signature, used or not

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

import aq2_pipeline
from aq2_pipeline.codecs import Codec, Sizes
from aq2_pipeline.kernels import DECODE, ENCODE, ERROR, kernel
from aq2_pipeline.kernels.moments import add_value
from aq2_pipeline.schemes import Family, add_family


@kernel(ENCODE)
def encode(values, row_length, params, importance, data, scales, zero_points):
    for j in range(values.size):
        if not abs(values[j]) <= 1:
            return j  # the position of the first bad value
        data[j] = np.uint8(np.rint(values[j] * np.float32(127)) + 128)
    return -1


@kernel(DECODE)
def decode(data, scales, zero_points, row_length, params, values):
    for j in range(values.size):
        values[j] = np.float32(np.int64(data[j]) - 128) / np.float32(127)
    return -1


@kernel(ERROR)
def error(values, position, row_length, params, importance, lanes, sums):
    for j in range(values.size):
        if not abs(values[j]) <= 1:
            return j
        decoded = np.rint(values[j] * np.float32(127)) / np.float32(127)
        add_value(values[j], decoded, position + j, lanes, sums)
    return -1


none = np.zeros_like
codec = Codec("fixed", __name__, "encode", "decode", "error", lambda n, *_: Sizes(n, none(n), none(n)), lambda *_: 1)
add_family(Family("fixed8", codec, (), 8, summary="8-bit fixed point for [-1, 1]"))

vectors = np.random.default_rng(0).normal(size=(1000, 384)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
df = pl.DataFrame({"w": pa.array(list(vectors), pa.large_list(pa.float32()))})
python = aq2_pipeline.quantize(vectors, "fixed8")
with duckdb.connect() as con:
    aq2_pipeline.register(con)
    from_sql = con.sql("SELECT aq2_quantize(w, 'fixed8') AS q FROM df").to_arrow_table()["q"].to_pylist()
assert from_sql == df["w"].aq2.quantize("fixed8").to_list() == python.to_pylist()
lost = aq2_pipeline.quantization_error(vectors, "fixed8").field("max_abs").to_numpy()
decoded = aq2_pipeline.dequantize(python).values.to_numpy().reshape(vectors.shape)
assert np.array_equal(np.abs(vectors.astype(float) - decoded).max(axis=1), lost)
print("8 bits a weight; the largest error is", lost.max())
