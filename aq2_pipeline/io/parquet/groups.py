"""Parquet files that grow by a row group at a time, and can be taken up after any of them."""

from __future__ import annotations

import base64
import os
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from aq2_pipeline.io.parquet.writing import writer
from aq2_pipeline.io.writing.files import begin_sync

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["GroupFile"]

#: What a Parquet file begins and ends with, and the bytes at the end that say how long its footer is.
_MAGIC, _TAIL = b"PAR1", 8


class GroupFile:
    """A Parquet file while it is written.

    Each row group is written as the file of its own that pyarrow knows to write,
    behind the others, where its footer is cut off again; the footer at the end is
    of all of them. Readers go by offsets, so that the four bytes with which each
    of these files began are in nobody's way.

    Parameters
    ----------
    path : Path
        It is made where it is missing.
    schema : pyarrow.Schema
    about : mapping of str to str
        The file's key-value metadata.
    kept : sequence of dict
        What `write` returned for the row groups that are there; what is behind them goes.
    compression : str
        One of `file.COMPRESSIONS`.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        about: Mapping[str, str],
        kept: Sequence[Mapping[str, Any]] = (),
        compression: str = "uncompressed",
    ) -> None:
        self.schema = schema
        self._path, self._about, self._compression = os.fsencode(path), about, compression
        self._metadata: pq.FileMetaData | None = None
        path.touch()
        os.truncate(path, kept[-1]["end"] if kept else 0)
        for group in kept:
            self._note(base64.b64decode(group["footer"]))

    def _note(self, footer: bytes) -> None:
        metadata = pq.read_metadata(BytesIO(_MAGIC + footer))
        if self._metadata is None:
            self._metadata = metadata
        else:
            self._metadata.append_row_groups(metadata)

    def write(self, table: pa.Table) -> dict[str, Any]:
        """Write one row group, and return what it takes to go on behind it: anything that JSON holds."""
        with pa.OSFile(self._path, "ab") as file:
            os.lseek(file.fileno(), 0, os.SEEK_SET)  # pyarrow begins at 0 only; what is appended goes to the end
            about = self._about if self._metadata is None else None
            with writer(file, self.schema, about, self._compression) as group:
                group.write_table(table, row_group_size=max(len(table), 1))
        with open(self._path, "r+b") as file:  # noqa: PTH123 - a path as bytes
            file.seek(-_TAIL, os.SEEK_END)
            n_footer = int.from_bytes(file.read(4), "little") + _TAIL
            end = file.seek(-n_footer, os.SEEK_END)
            footer = file.read()
            file.truncate(end)
            begin_sync(file.fileno())
        self._note(footer)
        return {"end": end, "footer": base64.b64encode(footer).decode()}

    def close(self) -> None:
        """Write the footer of all row groups; a file without any has an empty one."""
        if self._metadata is None:
            self.write(self.schema.empty_table())
        with pa.OSFile(self._path, "ab") as file:
            self._metadata.write_metadata_file(file)  # type: ignore[union-attr]
