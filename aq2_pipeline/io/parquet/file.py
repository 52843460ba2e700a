"""Parquet files of quantized layers, checked before anything of them is unpacked, and read in bounded batches."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from aq2_pipeline import arrow, schemes
from aq2_pipeline.errors import Aq2Error
from aq2_pipeline.io.parquet.chunks import Part, Place, StoredLayer, joined
from aq2_pipeline.io.parquet.claims import check_counts, check_texts, first_counts, leaf_names
from aq2_pipeline.io.parquet.footer import read_claims
from aq2_pipeline.io.parquet.origin import metadata_of
from aq2_pipeline.io.parquet.writing import CHUNK_NAMES, RAW, ROW_GROUP_BYTES
from aq2_pipeline.io.paths import bad_file, open_regular
from aq2_pipeline.layers import is_chunk

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["QuantizedFile"]

#: What pyarrow raises for damaged files: names and texts that are no UTF-8 come through as they are.
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
#: Rows of a file at the most: as many as the tensors of any other.
MAX_ROWS = 10**6


def _readable(path: Path) -> Any:
    """Return what pyarrow reads a file by: its path, or where that is not UTF-8, the open file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.open("rb")
    return path


class QuantizedFile:
    """A Parquet file of quantized layers, read in batches of bounded size.

    Parameters
    ----------
    source : str or Path
        Written by `write_quantized`, or any Parquet file with the columns
        ``layer_name`` and ``quantized``, and if it has them ``shape``, ``dtype``
        and what says which part of a layer a row is.

    Raises
    ------
    FormatError
        If it is none.
    OSError
        If it is missing or may not be read.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self.path = Path(source).expanduser()
        open_regular(self.path).close()
        try:
            self._file = pq.ParquetFile(_readable(self.path), pre_buffer=False, buffer_size=1 << 20)
            self.schema = self._file.schema_arrow
            texts = ((k.decode(), v.decode()) for k, v in self._key_values())
            self.metadata = {name: text for name, text in texts if name != "ARROW:schema"}
        except _UNREADABLE as error:
            raise bad_file(self.path, f"no Parquet file that can be read: {error}") from None
        if self._file.metadata.num_rows > MAX_ROWS:
            raise bad_file(self.path, f"the file claims {self._file.metadata.num_rows} rows; {MAX_ROWS} are read")
        for name in ("layer_name", "quantized"):
            if self.schema.names.count(name) != 1:
                raise bad_file(self.path, f"the file has no column {name!r}", "expected what aq2 quantize writes")
        for name in ("shape", *CHUNK_NAMES):
            kind = self.schema.field(name).type if name in self.schema.names else pa.null()
            many = name in ("shape", "tensor_shape")
            value = kind.value_type if many and arrow.is_list(kind) else pa.null() if pt.is_null(kind) else kind
            if not (pt.is_null(value) or (pt.is_integer(value) and arrow.is_list(kind) is many)):
                raise bad_file(self.path, f"the column {name!r} is {kind}", "see the reference page on layout")

    def _key_values(self) -> Iterable[tuple[bytes, bytes]]:
        return (self.schema.metadata or {}).items()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close(force=True)

    @property
    def has_raw(self) -> bool:
        """Whether it has the bytes of tensors that have no codes."""
        names = self.schema.names
        return names.count(RAW.name) == 1 and arrow.is_binary(self.schema.field(RAW.name).type)

    @property
    def source_metadata(self) -> Mapping[str, Any]:
        """The metadata of the model that this was made of."""
        return metadata_of(self.metadata, self.path)

    @property
    def layers(self) -> list[StoredLayer]:
        """Every layer, in order of its first row; the chunks of a layer are one.

        Raises
        ------
        FormatError
            Naming the layer, if a row contradicts itself, or the chunks of a
            layer are not exactly its weights.
        """
        return self._joined[0]

    @property
    def places(self) -> list[Place]:
        """Where the weights of each row go: the position in `layers`, and the weights of that layer before them."""
        return self._joined[1]

    @cached_property
    def _joined(self) -> tuple[list[StoredLayer], list[Place]]:
        return joined(self._parts, self.path)

    @cached_property
    def _parts(self) -> list[Part]:
        fields = ("scheme", "length", "row_length")
        columns = [name for name in ("layer_name", "shape", "dtype", *CHUNK_NAMES) if name in self.schema.names]
        metadata = self._file.metadata
        claims = read_claims(self.path)
        check_counts(metadata, claims, first_counts(metadata), self.path)
        texts = {"layer_name", "dtype", "quantized.scheme"}.intersection(leaf_names(metadata, self.path))
        self._read(lambda: check_texts(_readable(self.path), sorted(texts), self.path))
        rows = self._read(lambda: self._file.read([*columns, *(f"quantized.{name}" for name in fields)]).to_pylist())
        parts = [self._part(row) for row in rows]
        check_counts(metadata, claims, self._counts(parts), self.path)
        return parts

    def _counts(self, parts: Sequence[Part]) -> list[dict[str, int]]:
        """Return what the columns of each row group take."""
        found, first = [], 0
        for group in range(self._file.num_row_groups):
            last = first + self._file.metadata.row_group(group).num_rows
            sums = dict.fromkeys(("quantized.quantized_data", "quantized.scales", "quantized.zero_points", RAW.name), 0)
            for stored in (part.stored for part in parts[first:last]):
                sizes = (0, 0, 0)
                if stored.scheme is not None:
                    sizes = schemes.parse(stored.scheme).sizes(stored.length, stored.row_length)
                for name, size in zip(sums, (*sizes, 0 if stored.scheme else 8 * _product(stored.shape)), strict=True):
                    sums[name] += size
            found.append(sums)
            first = last
        return found

    def _part(self, row: dict[str, Any]) -> Part:
        shape, (chunk, start, whole) = row.get("shape"), (row.get(name) for name in CHUNK_NAMES)
        return Part(self._stored(row), is_chunk(shape, chunk, start, whole), start, whole)

    def _stored(self, row: dict[str, Any]) -> StoredLayer:
        name, stored = row["layer_name"], row["quantized"] or {}
        if not isinstance(name, str):
            raise bad_file(self.path, f"a layer is called {name!r}")
        scheme, length = stored.get("scheme"), stored.get("length")
        shape = row.get("shape")
        if scheme is None:
            return StoredLayer(name, shape or [], row.get("dtype"), None, 0, 0)
        if length is None or length < 0 or (shape is not None and _product(shape) != length):
            raise bad_file(self.path, f"the shape {shape} and the length {length} contradict", layer=name)
        row_length = stored.get("row_length")
        try:
            known = schemes.parse(scheme)
        except Aq2Error as error:
            raise error.at(layer=name) from None
        row_length = length if row_length is None else row_length
        n_bytes = known.n_bytes(length, row_length)
        shape = [length] if shape is None else shape
        return StoredLayer(name, shape, row.get("dtype"), known.name, length, n_bytes, row_length)

    @cached_property
    def sizes(self) -> list[int]:
        """The elements of each row."""
        return [part.stored.length if part.stored.scheme else _product(part.stored.shape) for part in self._parts]

    def columns(self, names: Sequence[str], rows: Sequence[int]) -> Iterator[tuple[list[int], pa.RecordBatch]]:
        """Yield columns of some rows, at most `ROW_GROUP_BYTES` of decoded weights or one row at a time.

        Parameters
        ----------
        names : sequence of str
        rows : sequence of int
            Rising.

        Yields
        ------
        (list of int, pyarrow.RecordBatch)
            Which rows, and their values.
        """
        first, wanted = 0, set(rows)
        for group in range(self._file.num_row_groups):
            last = first + self._file.metadata.row_group(group).num_rows
            if wanted.isdisjoint(range(first, last)):
                first = last
                continue
            step = max(1, ROW_GROUP_BYTES // (4 * max(self.sizes[first:last], default=0) or 1))
            batches = self._file.iter_batches(batch_size=step, row_groups=[group], columns=list(names))
            while (batch := self._read(lambda batches=batches: next(batches, None))) is not None:
                kept = [row for row in range(first, first + len(batch)) if row in wanted]
                if len(kept) == len(batch):
                    yield kept, batch
                elif kept:
                    yield kept, batch.take(pa.array([row - first for row in kept]))
                first += len(batch)
            first = last

    def _read(self, read: Any) -> Any:
        try:
            return read()
        except _UNREADABLE as error:
            raise bad_file(self.path, f"the file cannot be read: {error}", "it is cut, or damaged") from None


def _product(shape: Sequence[int | None]) -> int:
    product = 1
    for axis in shape:
        product *= -1 if axis is None or axis < 0 else axis
    return product
