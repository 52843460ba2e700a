"""What a Parquet file may unpack to, checked against what its layers take, before it is unpacked.

Runs and dictionaries make a few bytes of a page stand for gigabytes. A footer says
how many values each column has, and rows that say little of themselves (names,
shapes, lengths) say how many there should be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aq2_pipeline.io.paths import bad_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["check_counts", "check_texts", "first_counts"]

#: Axes of a shape, and bytes of a name, at the most.
_MOST_AXES, _MOST_TEXT = 64, 1 << 16
#: Pages have headers, levels and dictionaries beside their values: so many times the values, and bytes, are believed.
_SLACK, _SMALL = 4, 1 << 20


def check_texts(file: Any, columns: Sequence[str], path: Path) -> None:
    """Check that no row's text is longer than names are; texts that many rows share are read once.

    Parameters
    ----------
    file : str or file object
        As pyarrow reads it.
    columns : sequence of str
        The paths of columns of strings.
    path : Path
        For messages.

    Raises
    ------
    FormatError
    """
    with pq.ParquetFile(file, read_dictionary=list(columns), pre_buffer=False) as opened:
        for group in range(opened.num_row_groups):  # dictionaries in structs are read of one row group at a time
            for column in _leaves(opened.read_row_group(group, list(columns))):
                texts = column.dictionary if isinstance(column, pa.DictionaryArray) else column
                longest = pc.max(pc.binary_length(texts)).as_py() or 0
                if longest > _MOST_TEXT:
                    raise bad_file(path, f"a text has {longest} bytes; {_MOST_TEXT} are read", "it is no layer table")


def _leaves(table: pa.Table) -> list[pa.Array]:
    chunks = [chunk for column in table.columns for chunk in column.chunks]
    return [leaf for chunk in chunks for leaf in (chunk.flatten() if pa.types.is_struct(chunk.type) else [chunk])]


def check_counts(metadata: pq.FileMetaData, expected: Sequence[dict[str, int]], path: Path) -> None:
    """Check what a footer says of each row group: no column unpacks to much more than its layers take.

    Parameters
    ----------
    metadata : FileMetaData
    expected : sequence of dict
        For each row group, column -> the values of a list or the bytes of a
        binary that it has; columns that are not there are not checked.
    path : Path
        For messages.

    Raises
    ------
    FormatError
    """
    for number, known in enumerate(expected):
        group = metadata.row_group(number)
        for k in range(group.num_columns):
            column = group.column(k)
            steps = column.path_in_schema.split(".")
            name = ".".join(steps[: 2 if steps[0] == "quantized" else 1])
            if name not in known:
                continue
            is_list = column.physical_type != "BYTE_ARRAY"
            found, most = column.num_values, known[name] + group.num_rows
            if not is_list:
                found, most = column.total_uncompressed_size, _SLACK * known[name] + _SMALL
            if found > most:
                what = "values" if is_list else "bytes"
                msg = f"row group {number} of {name!r} claims {found} {what}, its layers take {known[name]}"
                raise bad_file(path, msg, "it is damaged, or made to fill the memory")


def first_counts(metadata: pq.FileMetaData) -> list[dict[str, int]]:
    """Return what `check_counts` expects of names and shapes, before anything is read."""
    texts = ("layer_name", "dtype", "quantized.scheme")
    rows = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    return [
        dict.fromkeys(("shape", "tensor_shape"), _MOST_AXES * n) | dict.fromkeys(texts, _MOST_TEXT // _SLACK * n)
        for n in rows
    ]
