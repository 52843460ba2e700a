"""Query a GGUF file in SQL: list its layers, decode them, find what was lost, whatever formats they are in."""

import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

import aq2_pipeline
from aq2_pipeline.io.gguf.layout import header_of
from aq2_pipeline.io.gguf.source import open_gguf
from aq2_pipeline.io.tables.frames import reader

# A model of two blocks, in the formats that llama.cpp takes for such tensors.
rng = np.random.default_rng(0)
FORMATS = {"attn_q": "q4_k", "attn_v": "q6_k", "ffn_down": "q5_0", "attn_norm": "f32"}
weights = {
    f"blk.{k}.{name}.weight": rng.normal(size=(16, 256)).astype(np.float32) for k in range(2) for name in FORMATS
}
schemes = [FORMATS[name.split(".")[2]] for name in weights]
rows = [aq2_pipeline.quantize([w], scheme).to_pylist()[0] for w, scheme in zip(weights.values(), schemes, strict=True)]
blobs = [row["quantized_data"] for row in rows]
tensors = [(name, (16, 256), s.upper(), len(b)) for name, s, b in zip(weights, schemes, blobs, strict=True)]

with tempfile.TemporaryDirectory() as folder, duckdb.connect() as con:
    path = Path(folder) / "model.gguf"
    layout = header_of(tensors, {"general.architecture": "none", "general.quantization_version": 2})
    content = bytearray(layout.header + bytes(layout.size - len(layout.header)))
    for offset, blob in zip(layout.offsets, blobs, strict=True):
        content[offset : offset + len(blob)] = blob
    path.write_bytes(content)

    # The query: any layer of any GGUF file is a list of floats. A reader is read once; Polars has `scan_gguf(path)`.
    aq2_pipeline.register(con)
    layers = reader(open_gguf(path), "quantized")
    con.execute("""
        CREATE TABLE decoded AS
        SELECT layer_name, shape, quantized.scheme AS scheme, octet_length(quantized.quantized_data) AS bytes,
            aq2_dequantize(quantized) AS weights
        FROM layers WHERE layer_name LIKE '%.weight'
    """)
    originals = pa.table({"layer_name": list(weights), "original": [w.ravel() for w in weights.values()]})
    found = con.execute("""
        SELECT scheme, count(*) AS layers, 8 * sum(bytes) / sum(len(weights)) AS bits,
            avg(list_distance(weights, original) / sqrt(len(weights))) AS error
        FROM decoded JOIN originals USING (layer_name) GROUP BY scheme ORDER BY bits
    """).fetchall()
    decoded = dict(con.execute("SELECT layer_name, weights FROM decoded").fetchall())
    assert aq2_pipeline.gguf_metadata(path)["general.quantization_version"] == 2

# Nothing is converted on the way: what SQL decodes is what was quantized.
for name, row in zip(weights, rows, strict=True):
    again = aq2_pipeline.dequantize(pa.array([row], aq2_pipeline.layout.QUANTIZED))
    assert decoded[name] == again.to_pylist()[0]
assert [(scheme, bits) for scheme, _, bits, _ in found] == [("q4_k", 4.5), ("q5_0", 5.5), ("q6_k", 6.5625), ("f32", 32)]
assert [error for *_, error in found] == sorted((error for *_, error in found), reverse=True)
assert found[-1][-1] == 0
print(*found, sep="\n")
