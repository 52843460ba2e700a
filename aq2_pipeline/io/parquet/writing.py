"""Quantized layer tables to Parquet files: row groups bounded by bytes, whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aq2_pipeline import layout
from aq2_pipeline.errors import FormatError, InputValueError
from aq2_pipeline.io.writing.files import replacing
from aq2_pipeline.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

__all__ = [
    "CHUNK_NAMES",
    "COMPRESSIONS",
    "LAYER_TABLE",
    "RAW",
    "ROW_GROUP_BYTES",
    "about",
    "check_compression",
    "write_quantized",
    "writer",
]

#: Bytes of float32 weights that the layers of one row group stand for at the most; a larger layer stands alone.
ROW_GROUP_BYTES = 1 << 26
LAYER_TABLE = pa.schema([*layout.LAYER_FIELDS, pa.field("quantized", layout.QUANTIZED)])
CHUNK_NAMES = tuple(field.name for field in layout.CHUNK_FIELDS)
#: The bytes of a tensor that has no codes: elements of its dtype, little-endian.
RAW = pa.field("raw", pa.large_binary())
#: Names as Polars and DuckDB have them, and pyarrow's. Codes are close to random: zstd makes those of four bits 15 %
#: smaller, and writing a model twice as long.
COMPRESSIONS = {"uncompressed": "none", "lz4": "lz4", "snappy": "snappy", "zstd": "zstd"}
#: Codes do not repeat, so a dictionary of them only costs.
_DICTIONARIES = ["dtype", "quantized.scheme"]


def write_quantized(
    tables: Iterable[Any],
    target: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    compression: str = "uncompressed",
) -> int:
    """Write layer tables with the column `quantized` to one Parquet file.

    Parameters
    ----------
    tables : iterable
        pyarrow tables or record batches, Polars frames, or anything with
        ``__arrow_c_stream__``, of the columns ``layer_name``, ``shape``,
        ``dtype`` and ``quantized``, and where rows are chunks of a layer
        ``chunk``, ``start`` and ``tensor_shape``; others are dropped. Each is
        written when it comes, so an iterator keeps one in memory.
    target : str or Path
        It is replaced once the file is complete.
    metadata : mapping of str to str, optional
        Added to the file's key-value metadata, beside ``aq2_pipeline`` (the
        version).
    compression : {"uncompressed", "lz4", "snappy", "zstd"}

    Returns
    -------
    int
        The rows written.

    Raises
    ------
    InputValueError
        If there is no such compression.
    FormatError
        If a table lacks a column, has one of another type, or is the first with chunks and not the first.
    OSError
        If the file cannot be written; an earlier one stays as it was.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import polars as pl
    >>> import aq2_pipeline
    >>> df = pl.DataFrame({"layer_name": ["w"], "shape": [[2, 2]], "dtype": ["F32"], "weights": [[1.0, 2, 3, 4]]})
    >>> with TemporaryDirectory() as folder:
    ...     write_quantized([df.with_columns(quantized=pl.col("weights").aq2.quantize(4, "shape"))], f"{folder}/q")
    ...     pl.read_parquet(f"{folder}/q").select(pl.col("quantized").struct.field("scheme")).item()
    1
    'int4_g128'
    """
    check_compression(compression)
    told = about(metadata)
    n_rows = 0
    with replacing(target) as temporary:
        with ExitStack() as open_files:
            file = open_files.enter_context(temporary.open("wb"))  # pyarrow takes no name but of UTF-8
            groups: _Groups | None = None
            for given in tables:
                table = pa.table(given)
                if groups is None:
                    groups = _Groups(open_files.enter_context(writer(file, _schema_of(table), told, compression)))
                n_rows += len(table)
                groups.add(_layer_table(table, groups.writer.schema, target))
                del given, table  # before the next is made
            if groups is None:
                open_files.enter_context(writer(file, LAYER_TABLE, told, compression))
            else:
                groups.write()
        with temporary.open("rb") as made, pq.ParquetFile(made) as written:
            if written.metadata.num_rows != n_rows:
                msg = f"{str(target)!r}: {written.metadata.num_rows} of {n_rows} rows were written"
                raise FormatError(msg)
    return n_rows


def about(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return a file's key-value metadata: the caller's, beside the package's version."""
    return {"aq2_pipeline": __version__, **(metadata or {})}


def check_compression(name: str) -> None:
    """Check that there is a compression of a name, before anything is read or written."""
    if name not in COMPRESSIONS:
        msg = f"the compression {name!r} is not written"
        raise InputValueError(msg, f"one of {', '.join(COMPRESSIONS)}")


def _schema_of(table: pa.Table) -> pa.Schema:
    """Return the columns of a layer table that a table has."""
    chunks = layout.CHUNK_FIELDS if any(name in table.column_names for name in CHUNK_NAMES) else ()
    raw = [RAW] if RAW.name in table.column_names else []
    return pa.schema([*layout.LAYER_FIELDS, *chunks, LAYER_TABLE.field("quantized"), *raw])


def writer(
    file: Any, schema: pa.Schema, metadata: Mapping[str, str] | None, compression: str = "uncompressed"
) -> pq.ParquetWriter:
    """Return pyarrow's writer as layer tables are written; without metadata its footer is as short as can be."""
    options = {
        "use_dictionary": _DICTIONARIES,
        "write_statistics": ["layer_name"],
        "store_schema": metadata is not None,
    }
    told = {  # names of files may be any bytes
        name: text.encode(errors="surrogateescape").decode(errors="backslashreplace")
        for name, text in (metadata or {}).items()
    }
    return pq.ParquetWriter(file, schema.with_metadata(told), compression=COMPRESSIONS[compression], **options)


class _Groups:
    """Rows that wait for their row group to be full: at most `ROW_GROUP_BYTES` of float32 weights, or one row."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self.writer = writer
        self._tables: list[pa.Table] = []
        self._n_bytes = 0

    def add(self, table: pa.Table) -> None:
        """Take rows, and write the row groups before them that are full."""
        first = 0
        for row, length in enumerate(_lengths(table)):
            if (self._tables or row > first) and self._n_bytes + 4 * length > ROW_GROUP_BYTES:
                self._tables.append(table.slice(first, row - first))
                self.write()
                first = row
            self._n_bytes += 4 * length
        self._tables.append(table.slice(first))

    def write(self) -> None:
        """Write what waits as one row group."""
        table = pa.concat_tables(self._tables) if self._tables else self.writer.schema.empty_table()
        if len(table):
            self.writer.write_table(table, row_group_size=len(table))
        self._tables, self._n_bytes = [], 0


def _layer_table(table: pa.Table, schema: pa.Schema, target: Any) -> pa.Table:
    """Return the columns of a schema; those of chunks are null where the table does not have them."""
    missing = [name for name in LAYER_TABLE.names if name not in table.column_names]
    if missing:
        msg = f"{str(target)!r}: the table has no column {', '.join(map(repr, missing))}"
        raise FormatError(msg, f"a layer table has {', '.join(map(repr, LAYER_TABLE.names))}")
    late = [name for name in (*CHUNK_NAMES, RAW.name) if name in table.column_names and name not in schema.names]
    if late:
        msg = f"{str(target)!r}: the table has the column {', '.join(map(repr, late))}, the tables before it do not"
        raise FormatError(msg, "give the first table these columns too, with nulls")
    for name in schema.names:
        if name not in table.column_names:
            table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        msg = f"{str(target)!r}: the table is no layer table: {error}"
        raise FormatError(msg, "the reference page on layout has the types of the columns") from None


def _lengths(table: pa.Table) -> list[int]:
    """Return the weights that each row holds, or what its bytes are worth."""
    lengths = [n or 0 for chunk in table["quantized"].chunks for n in chunk.field("length").to_pylist()]
    if RAW.name in table.column_names:
        raw = pc.binary_length(table[RAW.name]).to_pylist()
        return [n or (size or 0) // 4 for n, size in zip(lengths, raw, strict=True)]
    return lengths
