"""Layer tables as Parquet files: codes as they are, chunk by chunk, and what was left alone as it came."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from aq2_pipeline import build, layout, schemes
from aq2_pipeline.io.gguf.types import GGML_NAMES, GGML_TYPES
from aq2_pipeline.io.parquet.chunks import Part, StoredLayer, joined
from aq2_pipeline.io.parquet.file import RAW, ROW_GROUP_BYTES, QuantizedFile, write_quantized
from aq2_pipeline.io.tables.dtypes import DTYPE_BITS
from aq2_pipeline.io.tables.rows import readable, rows_of
from aq2_pipeline.io.writing.sinks import Sink, check_target, described, unknown_dtype
from aq2_pipeline.io.writing.staging import OutFile, Piece, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.targets import Options
    from aq2_pipeline.io.writing.sinks import Layer, Progress
    from aq2_pipeline.io.writing.staging import Staging
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array

__all__ = ["ParquetSink", "sink_parquet"]

_PARTS = ("data", "scales", "zero_points")
_ITEM_BYTES = (1, 4, 4)
#: Columns that are left out where no row has any.
_OPTIONAL = (*(field.name for field in layout.CHUNK_FIELDS), RAW.name)


def sink_parquet(
    given: Any,
    target: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
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
    progress : callable, optional
        Called with a layer's name and the bytes of its codes, row by row.

    Raises
    ------
    InputTypeError, FormatError, SchemeError
        Naming the layer; nothing is written then.
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
    check_target(Path(os.path.realpath(target)), folder=False)
    table, names = readable(given, "sink_parquet")
    optional = {field.name for field in layout.CHUNK_FIELDS}.intersection(names)
    optional |= {RAW.name} if {RAW.name, "weights"}.intersection(names) else set()
    left_out = [name for name in _OPTIONAL if name not in optional]
    write_quantized(_tables(_rows(table, Path(target), progress), left_out), target, metadata)


def _rows(given: Any, path: Path, progress: Progress | None) -> Iterator[_Row]:
    """Yield rows as they are stored; in the end their layers are checked, before the file has its name."""
    parts_told: list[Part] = []
    for row in rows_of(given, "sink_parquet"):
        held, told, raw = row.quantized, described(row), row.raw
        parts = None if held is None else (held.data, held.scales, held.zero_points)
        if held is None and row.weights is not None:  # floats of any width come as float32
            told["dtype"], raw = "F32", row.weights.view(np.uint8)
        parts_told.append(_told(row))
        made = _Row(told, parts, raw if parts is None else None)
        yield made
        if progress is not None:
            progress(row.name, made.n_bytes)
    joined(parts_told, path)


def _told(row: Row) -> Part:
    """Return what the layers of a file are checked by."""
    held, shape = row.quantized, list(row.shape)
    stored = StoredLayer(row.name, shape, row.dtype, None, 0, 0)
    if held is not None:
        stored = stored._replace(scheme=held.scheme.name, length=held.length, row_length=held.row_length)
    cut = row.chunk is not None
    return Part(stored, cut, row.start if cut else None, [*row.tensor_shape] if cut else None)


class _Row(NamedTuple):
    """A row of the file: what is said of it, and its codes, scales and zero points, or its bytes."""

    told: Mapping[str, Any]
    parts: Sequence[Array] | None
    raw: Array | None

    @property
    def n_bytes(self) -> int:
        """The bytes of its arrays."""
        return sum(part.nbytes for part in self.parts or ()) + (0 if self.raw is None else self.raw.nbytes)


def _tables(rows: Iterable[_Row], left_out: Sequence[str]) -> Iterator[pa.Table]:
    """Yield tables of rows that stand for about a row group of weights, without some columns."""
    pending: list[_Row] = []
    size = 0
    for row in rows:
        pending.append(row)
        size += row.told.get("length", row.n_bytes // 4)
        if 4 * size > ROW_GROUP_BYTES:
            yield _table(pending).drop(left_out)
            pending, size = [], 0
    if pending:
        yield _table(pending).drop(left_out)


def _table(rows: Sequence[_Row]) -> pa.Table:
    columns = {
        field.name: pa.array([row.told.get(field.name) for row in rows], field.type)
        for field in (*layout.LAYER_FIELDS, *layout.CHUNK_FIELDS)
    }
    columns["quantized"] = _structs(rows)
    columns[RAW.name] = _binaries([row.raw for row in rows], np.array([row.raw is not None for row in rows]))
    return pa.table(columns)


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
    return build.offsets_of(np.array([array.size for array in there], np.int64)), np.concatenate(there)


class ParquetSink(Sink):
    """A Parquet file whose layers are known beforehand: codes are gathered first, so that a killed run can go on.

    Parameters
    ----------
    metadata : mapping of str to str
        Of the file.
    """

    name = "parquet"
    takes = "every scheme"

    def __init__(self, metadata: Mapping[str, str] | None = None) -> None:
        self.metadata = dict(metadata or {})

    def refusal(self, layer: Layer) -> str | None:
        """Return why a layer is not written: bytes of a dtype that nobody knows are not."""
        return unknown_dtype(layer, (*DTYPE_BITS, *GGML_NAMES))

    def tensors(self, layer: Layer) -> list[Spec]:
        """Return what is gathered of a layer: codes, scales and zero points, or its bytes."""
        if layer.scheme is None:
            return [
                Spec(f"{layer.name}/raw", "", (), _plain_bytes("F32" if layer.is_float else layer.dtype, layer.shape))
            ]
        sizes = layer.scheme.sizes(math.prod(layer.shape), layer.row_length or 0)
        return [
            Spec(f"{layer.name}/{part}", "", (), size * item)
            for part, size, item in zip(_PARTS, sizes, _ITEM_BYTES, strict=True)
        ]

    def pieces(self, row: Row) -> Iterator[Piece]:
        """Yield them."""
        if row.quantized is None:
            raw = row.raw if row.weights is None else row.weights.view(np.uint8)
            if raw is not None:
                yield Piece(f"{row.name}/raw", row.start * raw.size // max(math.prod(row.shape), 1), raw)
            return
        held = row.quantized
        before = _before(held.scheme, row.tensor_shape, row.start, held.row_length)
        for part, item, begin in zip(_PARTS, _ITEM_BYTES, before, strict=True):
            array = held.data if part == "data" else getattr(held, part)
            yield Piece(f"{row.name}/{part}", begin * item, array)

    def files(self, specs: Sequence[Spec]) -> list[OutFile]:
        """Lay out what is gathered, at multiples of 4 bytes."""
        places, at = {}, 0
        for spec in specs:
            places[spec.name] = at
            at += -(-spec.n_bytes // 4) * 4
        return [OutFile("", b"", places, at)]

    def finish(self, staging: Staging) -> None:
        """Write the Parquet file of what was gathered, in the order of the layers."""
        staging.made = staging.folder / "made"  # what was gathered stays, for a run that is taken up
        order = {name: k for k, name in enumerate(dict.fromkeys(spec.rpartition("/")[0] for spec in staging.specs))}
        rows = sorted(staging.rows, key=lambda told: (order[told["layer_name"]], told.get("start", 0)))
        left_out = [] if any("chunk" in told for told in rows) else list(_OPTIONAL[:-1])
        left_out += [] if any("scheme" not in told for told in rows) else [RAW.name]
        gathered_rows = (_gathered(staging, told) for told in rows)
        write_quantized(_tables(gathered_rows, left_out), staging.made, self.metadata)
        with QuantizedFile(staging.made) as file:
            file.layers  # noqa: B018 - the check that chunks are layers


def _plain_bytes(dtype: str | None, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor that is stored as it came; also of ggml's blocks that have no scheme."""
    if dtype in DTYPE_BITS:
        return math.prod(shape) * DTYPE_BITS[dtype] // 8
    kind = GGML_TYPES[GGML_NAMES[str(dtype)]]
    return math.prod(shape) // kind.block * kind.n_bytes


def _before(scheme: Scheme, shape: Sequence[int], start: int, row_length: int) -> tuple[int, int, int]:
    """Return the bytes, scales and zero points of a layer before one of its chunks; a vector is one matrix row."""
    return scheme.sizes(start, start if len(shape) <= 1 else row_length) if start else (0, 0, 0)


def _gathered(staging: Staging, told: dict[str, Any]) -> _Row:
    name, start = told["layer_name"], told.get("start", 0)
    size = math.prod(told["shape"])
    if "scheme" not in told:
        n_bytes = staging.specs[f"{name}/raw"].n_bytes
        n_whole = math.prod(told.get("tensor_shape", told["shape"]))
        begin, end = (n_bytes * n // max(n_whole, 1) for n in (start, start + size))
        return _Row(told, None, staging.read(f"{name}/raw", begin, end - begin))
    scheme = schemes.parse(told["scheme"])
    before = _before(scheme, told.get("tensor_shape", told["shape"]), start, told["row_length"])
    sizes = scheme.sizes(told["length"], told["row_length"])
    parts = [
        staging.read(f"{name}/{part}", begin * item, n * item)
        for part, item, begin, n in zip(_PARTS, _ITEM_BYTES, before, sizes, strict=True)
    ]
    return _Row(told, [parts[0], parts[1].view(np.float32), parts[2].view(np.float32)], None)


def from_options(options: Options) -> ParquetSink:
    """Return the sink of a command, whose file says what it was made of, and how; nothing of the day."""
    told = repr([tensor[:3] for tensor in options.source.tensors]).encode()
    metadata = {
        "aq2.recipe": options.recipe,
        "aq2.source": options.source.path.name,
        "aq2.source_tensors_sha256": hashlib.sha256(told).hexdigest(),
    }
    texts = dict(options.source.metadata)
    if texts and all(isinstance(value, str) for value in texts.values()):
        metadata["aq2.source_metadata"] = json.dumps(texts, sort_keys=True)
    return ParquetSink(metadata)
