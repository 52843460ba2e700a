"""Parquet files that grow by row groups: every reader sees one file, however often its writer was stopped."""

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aq2_pipeline.io.parquet.groups import GroupFile

SCHEMA = pa.schema([pa.field("dtype", pa.large_string()), pa.field("n", pa.int64())])
TABLES = [pa.table({"dtype": [f"{k}"] * 5, "n": range(5 * k, 5 * k + 5)}, SCHEMA) for k in range(4)]


def written(path, stop=4, cut=b""):
    """Write tables, stop after some, add what a killed writer may have left, and go on."""
    file = GroupFile(path, SCHEMA, {"who": "tests"})
    kept = [file.write(table) for table in TABLES[:stop]]
    if stop < len(TABLES):
        with path.open("ab") as behind:
            behind.write(cut)
        file = GroupFile(path, SCHEMA, {"who": "tests"}, kept)
        for table in TABLES[stop:]:
            file.write(table)
    file.close()
    return path.read_bytes()


def test_readers_see_one_file(tmp_path):
    """pyarrow, Polars and DuckDB read the rows, the row groups, the metadata and the schema of one file."""
    path = tmp_path / "m.parquet"
    data = written(path)
    assert data[:4] == data[-4:] == b"PAR1"
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 4
    assert [file.read_row_group(k).equals(TABLES[k]) for k in (3, 0, 2, 1)] == [True] * 4
    assert file.schema_arrow.equals(SCHEMA)
    assert file.metadata.metadata[b"who"] == b"tests"
    assert pl.read_parquet(path)["n"].to_list() == list(range(20))
    assert pl.scan_parquet(path).filter(pl.col("n") == 13).collect().rows() == [("2", 13)]
    with duckdb.connect() as con:
        assert con.read_parquet(str(path)).filter("dtype = '3'").sum("n").fetchall() == [(85,)]


@pytest.mark.parametrize("stop", range(4))
@pytest.mark.parametrize("cut", [b"", b"half a row group"])
def test_a_stopped_file_goes_on(tmp_path, stop, cut):
    """Stopped after any row group, or within the next, a file that is taken up has the bytes of one that was not."""
    assert written(tmp_path / "stopped.parquet", stop, cut) == written(tmp_path / "whole.parquet")


def test_a_file_without_rows_is_read(tmp_path):
    """A file that nothing was written to has its columns and no rows."""
    GroupFile(tmp_path / "m.parquet", SCHEMA, {}).close()
    assert pl.read_parquet(tmp_path / "m.parquet").shape == (0, 2)
