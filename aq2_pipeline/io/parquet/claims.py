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

    from aq2_pipeline.io.parquet.footer import Claim

__all__ = ["check_counts", "check_texts", "first_counts", "leaf_names"]

#: Axes of a shape, and bytes of a name, at the most.
_MOST_AXES, _MOST_TEXT = 64, 1 << 16
#: Pages have headers, levels and dictionaries beside their values: so many times the values, and bytes, are believed.
_SLACK, _SMALL = 4, 1 << 20
#: As Parquet numbers physical types.
_BYTE_ARRAY = 6


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


def check_counts(
    metadata: pq.FileMetaData, claims: Sequence[Sequence[Claim]], expected: Sequence[dict[str, int]], path: Path
) -> None:
    """Check what a footer says of each row group: no column unpacks to much more than its layers take.

    Parameters
    ----------
    metadata : FileMetaData
    claims : sequence of sequences of Claim
        Of `read_claims`.
    expected : sequence of dict
        For each row group, column -> the values of a list or the bytes of a
        binary that it has; columns that are not there are not checked.
    path : Path
        For messages.

    Raises
    ------
    FormatError
    """
    names = [_column_of(name) for name in leaf_names(metadata, path)]
    if len(claims) != len(expected) or any(len(columns) != len(names) for columns in claims):
        raise bad_file(path, "the footer does not say as much as its schema has columns", "it is damaged")
    for number, (columns, known) in enumerate(zip(claims, expected, strict=True)):
        n_rows = metadata.row_group(number).num_rows
        for name, claim in zip(names, columns, strict=True):
            if name not in known:
                continue
            is_list = claim.physical_type != _BYTE_ARRAY
            found, most = claim.n_values, known[name] + n_rows
            if not is_list:
                found, most = claim.n_bytes, _SLACK * known[name] + _SMALL
            if found > most:
                what = "values" if is_list else "bytes"
                msg = f"row group {number} of {name!r} claims {found} {what}, its layers take {known[name]}"
                raise bad_file(path, msg, "it is damaged, or made to fill the memory")


def leaf_names(metadata: pq.FileMetaData, path: Path) -> list[str]:
    """Return the paths of the columns that hold values, such as ``'quantized.scales.list.element'``.

    Raises
    ------
    FormatError
        If a name is not UTF-8.
    """
    try:
        return [metadata.schema.column(k).path for k in range(metadata.num_columns)]
    except UnicodeDecodeError as error:
        raise bad_file(path, f"a column's name is not UTF-8: {error}", "it is damaged") from None


def _column_of(leaf: str) -> str:
    steps = leaf.split(".")
    return ".".join(steps[: 2 if steps[0] == "quantized" else 1])


def first_counts(metadata: pq.FileMetaData) -> list[dict[str, int]]:
    """Return what `check_counts` expects of names and shapes, before anything is read."""
    texts = ("layer_name", "dtype", "quantized.scheme")
    rows = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    return [
        dict.fromkeys(("shape", "tensor_shape"), _MOST_AXES * n) | dict.fromkeys(texts, _MOST_TEXT // _SLACK * n)
        for n in rows
    ]
