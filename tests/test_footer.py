"""What is read of a Parquet file's footer without pyarrow: the same as pyarrow says, or a FormatError."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aq2_pipeline import FormatError
from aq2_pipeline.io.parquet.footer import read_claims

#: As parquet.thrift numbers physical types.
PHYSICAL = (
    "BOOLEAN INT32 INT64 INT96 FLOAT DOUBLE BYTE_ARRAY FIXED_LEN_BYTE_ARRAY".split()  # noqa: SIM905
)


def table():
    """Return a table of every physical type, nested, with nulls, in more columns than a list's short head counts."""
    columns = {f"c{k}": pa.array(np.arange(10, dtype=np.float32)) for k in range(20)}
    return pa.table(
        columns
        | {
            "flag": pa.array([True, None] * 5),
            "text": pa.array(["a", "bc", None, "", "é"] * 2),
            "fixed": pa.array([b"abcd"] * 10, pa.binary(4)),
            "long": pa.array(range(10)),
            "double": pa.array([0.5] * 10),
            "stamp": pa.array([0] * 10, pa.timestamp("ns")),
            "lists": pa.array([[1.0, None], [], None, [2.0], [3.0]] * 2, pa.list_(pa.float32())),
            "struct": pa.array([{"a": [1], "b": "x"}, None] * 5),
        }
    )


def written(path, **options):
    """Write the table in three row groups."""
    pq.write_table(table(), path, row_group_size=4, **options)
    return path


def with_footer(path, footer):
    """Write what has a footer and nothing else."""
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd", "use_dictionary": False, "write_statistics": False},
        {"version": "1.0", "use_deprecated_int96_timestamps": True},
        {"write_page_index": True, "write_page_checksum": True, "data_page_version": "2.0"},
        {"store_schema": False, "sorting_columns": [pq.SortingColumn(0)]},
    ],
)
def test_claims_are_what_pyarrow_says(tmp_path, options):
    """Types, values and bytes of each column in each row group are those that the library reads."""
    path = written(tmp_path / "t.parquet", **options)
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    expected = [
        [
            (PHYSICAL.index(column.physical_type), column.num_values, column.total_uncompressed_size)
            for column in (group.column(k) for k in range(group.num_columns))
        ]
        for group in groups
    ]
    assert len(expected) == 3
    assert read_claims(path) == expected


@pytest.mark.parametrize(
    "footer",
    [
        b"",  # no end of the struct
        b"\x19\x1c",  # a column's list before its items; then the end
        b"\x49\x15\x02\x00",  # row groups that are integers
        b"\x49\x1c\x19\x1c\x00\x00\x00",  # a column without metadata, as an encrypted one
        b"\x49\x1c\x19\x1c\x3c\x15\x0c\x00\x00\x00\x00",  # metadata without values and bytes
        b"\x49\xfc" + b"\xff" * 9 + b"\x01",  # more row groups than a footer has bytes
        b"\x16" + b"\xff" * 40,  # an integer without an end
        b"\x1c" * 200,  # structs in structs
        b"\x19\x19" * 200,  # lists in lists
        b"\x1e\x00",  # a kind that Thrift does not have
        b"\x18\xff\xff\xff\xff\x0f",  # a text that goes on for 4 GB
        b"\x19\xf3\xff\xff\xff\xff\x0f",  # 4 billion bytes
        b"\x1b\xff\xff\xff\xff\x0f\x33",  # 4 billion pairs
    ],
)
def test_a_footer_that_is_none_is_refused(tmp_path, footer):
    """What ends early, goes too deep or lies about its length is a FormatError that names the file."""
    with pytest.raises(FormatError, match=r"t\.parquet"):
        read_claims(with_footer(tmp_path / "t.parquet", footer))


def test_a_footer_longer_than_its_file_is_refused(tmp_path):
    """A length beyond the file is said as such."""
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + struct.pack("<I", 1 << 31) + b"PAR1")
    with pytest.raises(FormatError, match="the footer claims 2147483648 bytes, the file has 12"):
        read_claims(tmp_path / "t.parquet")


def test_a_footer_cut_anywhere_is_refused(tmp_path):
    """A footer that ends at any byte before its last is a FormatError."""
    content = written(tmp_path / "t.parquet").read_bytes()
    n = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - n : -8]
    for k in range(n):
        with pytest.raises(FormatError):
            read_claims(with_footer(tmp_path / "cut.parquet", footer[:k]))


@settings(deadline=None)
@given(footer=st.binary(max_size=300))
def test_any_bytes_are_claims_or_a_format_error(tmp_path_factory, footer):
    """Bytes that no library wrote end in no other error."""
    path = with_footer(tmp_path_factory.getbasetemp() / "any.parquet", footer)
    try:
        claims = read_claims(path)
    except FormatError:
        return
    assert all(isinstance(column, tuple) for group in claims for column in group)
