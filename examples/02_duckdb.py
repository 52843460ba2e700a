"""DuckDB: the functions in SQL, and TRY as `continue on error`."""

import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

import aq2_pipeline

rng = np.random.default_rng(0)
weights = [rng.normal(size=64 * 64).astype(np.float32) for _ in range(6)]
layers = pa.table(
    {
        "layer_name": [f"blocks.{k}.weight" for k in range(6)],
        "weights": pa.array(weights, pa.list_(pa.float32())),
        "shape": pa.array([[64, 64]] * 6, pa.list_(pa.int64())),
    }
)

with duckdb.connect() as con, tempfile.TemporaryDirectory() as folder:
    aq2_pipeline.register(con)
    con.register("layers", layers)

    # The scheme is an integer, a name, or a column of either.
    con.sql("CREATE TABLE q AS SELECT layer_name, aq2_quantize(weights, 'int4_g64', shape) AS quantized FROM layers")
    from_sql = con.sql("SELECT quantized FROM q ORDER BY layer_name").to_arrow_table()["quantized"].combine_chunks()
    from_python = aq2_pipeline.quantize(layers["weights"], "int4_g64", layers["shape"]).combine_chunks()
    for field in ("scheme", "quantized_data", "scales"):
        assert from_sql.field(field).to_pylist() == from_python.field(field).to_pylist()

    # A struct column is an ordinary column: views, joins, Parquet.
    path = Path(folder) / "q.parquet"
    con.sql(f"COPY q TO '{path}' (FORMAT parquet)")
    back = con.read_parquet(str(path)).order("layer_name").project("aq2_dequantize(quantized)").fetchall()
    assert all(np.abs(np.array(row[0]) - w).max() < 0.5 for row, w in zip(back, weights, strict=True))

    # One bad row: the statement fails with its place, or TRY turns that row into NULL.
    con.sql("CREATE TABLE mixed AS SELECT * FROM (VALUES (1, [1.0, 2.0]), (2, [1.0, 'nan'::DOUBLE])) AS t(id, w)")
    try:
        con.sql("SELECT aq2_quantize(w, 4) FROM mixed").fetchall()
    except duckdb.InvalidInputException as error:
        assert "row 1 of this batch of 2, position 1" in str(error)  # noqa: PT017 - an example, not a test
    tried = con.sql("SELECT id, TRY(aq2_quantize(w, 4)) IS NULL FROM mixed ORDER BY id").fetchall()
    assert tried == [(1, False), (2, True)]

    query = "SELECT layer_name, round(aq2_quantization_error(weights, 4, shape).sqnr_db, 2) AS sqnr_db FROM layers"
    print(con.sql(query))
