"""The Arrow types that results have, in one place. Logical types: readers also take 32-bit and view forms."""

from __future__ import annotations

import pyarrow as pa

FLOATS = pa.large_list(pa.field("item", pa.float32()))
INTS = pa.large_list(pa.field("item", pa.int64()))
TEXT = pa.large_string()

#: One quantized row, whatever its scheme: self-describing, because engines drop field metadata.
QUANTIZED = pa.struct(
    [
        pa.field("scheme", TEXT),
        pa.field("length", pa.int64()),
        pa.field("row_length", pa.int64()),
        pa.field("quantized_data", pa.large_binary()),
        pa.field("scales", FLOATS),
        pa.field("zero_points", FLOATS),
    ]
)

#: What `quantization_error` returns.
ERROR_FIELDS = ("mse", "rmse", "max_abs", "sqnr_db", "cosine", "bits_per_weight")
ERROR = pa.struct([pa.field(name, pa.float64()) for name in ERROR_FIELDS])

#: What `weight_stats` returns.
COUNT_FIELDS = ("count", "zeros", "non_finite")
FIGURE_FIELDS = ("min", "max", "mean", "std", "abs_max", "kurtosis", "outlier_ratio")
STATS = pa.struct(
    [pa.field(name, pa.int64()) for name in COUNT_FIELDS] + [pa.field(name, pa.float64()) for name in FIGURE_FIELDS]
)

#: The layer table: the same from every source, sink and file; `weights` or `quantized` follows.
LAYER_FIELDS = (
    pa.field("layer_name", TEXT),
    pa.field("shape", INTS),
    pa.field("dtype", TEXT),
)
#: What a table has before `weights` or `quantized` where rows may be chunks of a layer; null in rows that are whole.
CHUNK_FIELDS = (
    pa.field("chunk", pa.int32()),
    pa.field("start", pa.int64()),
    pa.field("tensor_shape", INTS),
)
