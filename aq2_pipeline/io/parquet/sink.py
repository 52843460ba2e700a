"""Layer tables as Parquet files: codes as they are, chunk by chunk, and what was left alone as it came."""

from __future__ import annotations

import math
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from aq2_pipeline import build, layout
from aq2_pipeline.io.gguf.types import GGML_NAMES, GGML_TYPES
from aq2_pipeline.io.parquet.chunks import Part as StoredPart
from aq2_pipeline.io.parquet.chunks import StoredLayer, joined
from aq2_pipeline.io.parquet.file import QuantizedFile
from aq2_pipeline.io.parquet.groups import GroupFile
from aq2_pipeline.io.parquet.origin import told_of
from aq2_pipeline.io.parquet.writing import (
    CHUNK_NAMES,
    LAYER_TABLE,
    RAW,
    ROW_GROUP_BYTES,
    about,
    check_compression,
    write_quantized,
)
from aq2_pipeline.io.tables.dtypes import DTYPE_BITS
from aq2_pipeline.io.tables.rows import readable, rows_of
from aq2_pipeline.io.writing.sinks import Sink, Writer, check_target, described, unknown_dtype
from aq2_pipeline.io.writing.staging import Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from aq2_pipeline.io.tables.parts import Part
    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.targets import Options
    from aq2_pipeline.io.writing.sinks import Layer, Plan, Progress
    from aq2_pipeline.io.writing.staging import Staging
    from aq2_pipeline.weights import Array

__all__ = ["ParquetSink", "sink_parquet"]

#: Bytes of a row's arrays from which on they are written where they are.
_LARGE = 1 << 20
#: Columns that are left out where no row has any.
_OPTIONAL = (*CHUNK_NAMES, RAW.name)


def sink_parquet(
    given: Any,
    target: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    compression: str = "uncompressed",
    progress: Progress | None = None,
) -> None:
    """Write a layer table of quantized layers to a Parquet file, in row groups that are bounded by bytes.

    Parameters
    ----------
    given : LazyFrame, DataFrame, Table, RecordBatch, reader, or anything with ``__arrow_c_stream__``
        A layer table with ``quantized``. It is read once, a batch in memory at a
        time. Rows without codes are stored as they came, in the column ``raw``,
        where the table has their bytes: ``weights`` or ``raw`` as Binary.
    target : str or Path
        Replaced once the new file is complete.
    metadata : mapping of str to str, optional
        Added to the file's key-value metadata, beside the package's version.
    compression : {"uncompressed", "lz4", "snappy", "zstd"}
        Of every column. Codes are close to random: see the page on Parquet files.
    progress : callable, optional
        Called with a layer's name and the bytes of its codes, row by row.

    Raises
    ------
    InputTypeError, FormatError, SchemeError
        Naming the layer; nothing is written then.
    InputValueError
        If there is no such compression.
    OSError
        If the file cannot be written; an earlier one stays.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import polars as pl
    >>> import aq2_pipeline
    >>> df = pl.DataFrame({"layer_name": ["w"], "shape": [[2, 2]], "dtype": ["F32"], "weights": [[1.0, 2, 3, 4]]})
    >>> lf = df.lazy().select("layer_name", "shape", "dtype", quantized=pl.col("weights").aq2.quantize("int8_g4"))
    >>> with TemporaryDirectory() as folder:
    ...     aq2_pipeline.sink_parquet(lf, f"{folder}/w.parquet")
    ...     stored = aq2_pipeline.scan_parquet(f"{folder}/w.parquet")
    ...     stored.select(pl.col("quantized").aq2.dequantize()).collect().item().to_list()
    [1.0078740119934082, 2.0157480239868164, 2.992125988006592, 4.0]
    """
    check_compression(compression)
    check_target(Path(os.path.realpath(target)), folder=False)
    table, names = readable(given, "sink_parquet")
    optional = set(CHUNK_NAMES).intersection(names)
    optional |= {RAW.name} if {RAW.name, "weights"}.intersection(names) else set()
    left_out = [name for name in _OPTIONAL if name not in optional]
    write_quantized(_tables(_rows(table, Path(target), progress), left_out), target, metadata, compression)


def _rows(given: Any, path: Path, progress: Progress | None) -> Iterator[_Row]:
    """Yield rows as they are stored; in the end their layers are checked, before the file has its name."""
    parts_told: list[StoredPart] = []
    for row in rows_of(given, "sink_parquet"):
        parts_told.append(_told(row))
        made = _stored(described(row), row)
        yield made
        if progress is not None:
            progress(row.name, made.n_bytes)
    joined(parts_told, path)


def _stored(told: dict[str, Any], row: Row) -> _Row:
    """Return a row as it is stored: its codes, or else its bytes; floats of any width come as float32."""
    held = row.quantized
    if held is not None:
        return _Row(told, (held.data, held.scales, held.zero_points), None)
    if row.weights is not None:
        return _Row(told | {"dtype": "F32"}, None, row.weights.view(np.uint8))
    return _Row(told, None, row.raw)


def _told(row: Row) -> StoredPart:
    """Return what the layers of a file are checked by."""
    held, shape = row.quantized, list(row.shape)
    stored = StoredLayer(row.name, shape, row.dtype, None, 0, 0)
    if held is not None:
        stored = stored._replace(scheme=held.scheme.name, length=held.length, row_length=held.row_length)
    cut = row.chunk is not None
    return StoredPart(stored, cut, row.start if cut else None, [*row.tensor_shape] if cut else None)


class _Row(NamedTuple):
    """A row of the file: what is said of it, and its codes, scales and zero points, or its bytes."""

    told: Mapping[str, Any]
    parts: Sequence[Array] | None
    raw: Array | None

    @property
    def n_bytes(self) -> int:
        """The bytes of its arrays."""
        return sum(part.nbytes for part in self.parts or ()) + (0 if self.raw is None else self.raw.nbytes)

    @property
    def n_decoded(self) -> int:
        """The bytes that it stands for: of float32 weights, or its own."""
        return 4 * self.told["length"] if "length" in self.told else self.n_bytes


def _tables(rows: Iterable[_Row], left_out: Sequence[str]) -> Iterator[pa.Table]:
    """Yield tables of rows that stand for about a row group of weights, without some columns."""
    pending: list[_Row] = []
    size = 0
    for row in rows:
        pending.append(row)
        size += row.n_decoded
        if size > ROW_GROUP_BYTES:
            yield _table(pending).drop(left_out)
            pending, size = [], 0
    if pending:
        yield _table(pending).drop(left_out)


def _table(rows: Sequence[_Row]) -> pa.Table:
    columns = {
        field.name: pa.array([row.told.get(field.name) for row in rows], field.type)
        for field in (*layout.LAYER_FIELDS, *layout.CHUNK_FIELDS)
    }
    columns["quantized"] = pa.chunked_array([_structs(run) for run in _runs(rows)])
    columns[RAW.name] = _binaries([row.raw for row in rows], np.array([row.raw is not None for row in rows]))
    return pa.table(columns)


def _runs(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    """Yield rows that are written from one array; a large one stands alone, so that its codes are not copied."""
    first = 0
    for at, row in enumerate(rows):
        if row.n_bytes >= _LARGE:
            yield from filter(None, (rows[first:at], [row]))
            first = at + 1
    yield from filter(None, [rows[first:]])


def _structs(rows: Sequence[_Row]) -> pa.Array:
    """Return the column `quantized`; a row without codes is null."""
    valid = np.array([row.parts is not None for row in rows])
    mask = build.bitmap(valid)
    data, *numbers = zip(*(row.parts or (None, None, None) for row in rows), strict=True)
    floats = [build.float_lists(*_joined(arrays, np.float32), mask) for arrays in numbers]
    told = [
        pa.array([row.told.get(name) for row in rows], layout.QUANTIZED.field(name).type)
        for name in ("scheme", "length", "row_length")
    ]
    return build.structs(layout.QUANTIZED, [*told, _binaries(data, valid), *floats], mask)


def _binaries(arrays: Sequence[Array | None], valid: Array) -> pa.Array:
    return build.binaries(*_joined(arrays, np.uint8), build.bitmap(valid))


def _joined(arrays: Sequence[Array | None], kind: Any) -> tuple[Array, Array]:
    """Return the offsets of arrays behind one another, and all of them as one."""
    there = [np.empty(0, kind) if array is None else array for array in arrays]
    values = there[0] if len(there) == 1 else np.concatenate(there)
    return build.offsets_of(np.array([array.size for array in there], np.int64)), values


class ParquetSink(Sink):
    """A Parquet file whose layers are known beforehand, written a row group at a time, so that a killed run can go on.

    Parameters
    ----------
    metadata : mapping of str to str
        Of the file.
    compression : {"uncompressed", "lz4", "snappy", "zstd"}

    Raises
    ------
    InputValueError
        If there is no such compression.
    """

    name = "parquet"
    takes = "every scheme"

    def __init__(self, metadata: Mapping[str, str] | None = None, compression: str = "uncompressed") -> None:
        check_compression(compression)
        self.metadata, self.compression = dict(metadata or {}), compression

    def refusal(self, layer: Layer) -> str | None:
        """Return why a layer is not written: bytes of a dtype that nobody knows are not."""
        return unknown_dtype(layer, (*DTYPE_BITS, *GGML_NAMES))

    def tensors(self, layer: Layer) -> list[Spec]:
        """Return what a layer takes: codes, scales and zero points, or its bytes; before compression."""
        if layer.scheme is None:
            n_bytes = _plain_bytes("F32" if layer.is_float else layer.dtype, layer.shape)
        else:
            n_bytes = layer.scheme.n_bytes(math.prod(layer.shape), layer.row_length or 0)
        return [Spec(layer.name, "", (), n_bytes)]

    def size(self, specs: Sequence[Spec]) -> int:
        """Return the bytes of all layers, before compression."""
        return sum(spec.n_bytes for spec in specs)

    def writer(self, staging: Staging, chosen: Plan, parts: Sequence[Part], identity: str) -> Writer:
        """Begin to write row groups, or go on behind those of a killed run."""
        staging.n_bytes = self.size(chosen.specs)
        left_out = [] if any(part.chunk is not None for part in parts) else list(CHUNK_NAMES)
        left_out += [] if any(layer.form == "raw" for layer in chosen.layers) else [RAW.name]
        order = [(part.tensor.name, part.start) for part in parts]
        fields = (*layout.LAYER_FIELDS, *layout.CHUNK_FIELDS, LAYER_TABLE.field("quantized"), RAW)
        schema = pa.schema([field for field in fields if field.name not in left_out])
        kept = staging.begin(identity)
        file = GroupFile(staging.out, schema, about(self.metadata), kept, self.compression)
        return _GroupWriter(staging, file, order, kept)


class _GroupWriter(Writer):
    """Rows in the order of the source: one that comes early waits for those before it, and for its row group."""

    def __init__(
        self,
        staging: Staging,
        file: GroupFile,
        order: Sequence[tuple[str, int]],
        kept: Sequence[dict[str, Any]],
    ) -> None:
        self._staging, self._file = staging, file
        self.rows = [told for group in kept for told in group["rows"]]
        self._order = deque(order[len(self.rows) :])
        self._early: dict[tuple[str, int], _Row] = {}
        self._group: list[_Row] = []
        self._size = 0

    def add(self, told: dict[str, Any], row: Row) -> None:
        """Take a row; row groups that are full are written."""
        self._early[row.name, row.start] = _stored(told, row)
        while self._order and self._order[0] in self._early:
            coming = self._early.pop(self._order.popleft())
            if self._group and self._size + coming.n_decoded > ROW_GROUP_BYTES:
                self._write()
            self._group.append(coming)
            self._size += coming.n_decoded

    def _write(self) -> None:
        table = _table(self._group).select(self._file.schema.names).cast(self._file.schema)
        self._staging.keep({"rows": [row.told for row in self._group], **self._file.write(table)})
        self._group, self._size = [], 0

    def finish(self) -> None:
        """Write the last row group, and check that the chunks of the file are layers."""
        if self._group:
            self._write()
        self._file.close()
        with QuantizedFile(self._staging.out) as file:
            file.layers  # noqa: B018 - the check


def _plain_bytes(dtype: str | None, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor that is stored as it came; also of ggml's blocks that have no scheme."""
    if dtype in DTYPE_BITS:
        return math.prod(shape) * DTYPE_BITS[dtype] // 8
    kind = GGML_TYPES[GGML_NAMES[str(dtype)]]
    return math.prod(shape) // kind.block * kind.n_bytes


def from_options(options: Options) -> ParquetSink:
    """Return the sink of a command, whose file says what it was made of, and how."""
    return ParquetSink(told_of(options.source, options.recipe), options.compression or "uncompressed")
