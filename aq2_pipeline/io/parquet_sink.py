"""Layer tables as Parquet files: codes as they are, chunk by chunk, and what was left alone as it came."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aq2_pipeline import layout, schemes
from aq2_pipeline.io.chunks import Part, StoredLayer, joined
from aq2_pipeline.io.dtypes import DTYPE_BITS
from aq2_pipeline.io.gguf_types import GGML_NAMES, GGML_TYPES
from aq2_pipeline.io.parquet import RAW, QuantizedFile, write_quantized
from aq2_pipeline.io.rows import readable, rows_of
from aq2_pipeline.io.sinks import Sink, check_target, described
from aq2_pipeline.io.staging import OutFile, Piece, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aq2_pipeline.io.rows import Row
    from aq2_pipeline.io.sinks import Layer, Progress
    from aq2_pipeline.io.staging import Staging
    from aq2_pipeline.io.targets import Options
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
    path = Path(target)
    write_quantized((one.drop(left_out) for one in _tables(table, path, progress)), target, metadata)


def _tables(given: Any, path: Path, progress: Progress | None) -> Iterator[pa.Table]:
    """Yield rows as they are stored; in the end their layers are checked, before the file has its name."""
    parts_told: list[Part] = []
    for row in rows_of(given, "sink_parquet"):
        held = row.quantized
        parts = None if held is None else (held.data, held.scales, held.zero_points)
        raw = None if held is not None else row.raw
        if held is None and raw is None and row.weights is not None:
            raw = row.weights.view(np.uint8)
            row = row._replace(dtype="F32")  # noqa: PLW2901 - floats of any width come as float32
        parts_told.append(_told(row))
        yield _table(described(row), parts, raw)
        if progress is not None:
            progress(row.name, sum(part.nbytes for part in parts) if parts else 0 if raw is None else raw.nbytes)
    joined(parts_told, path)


def _told(row: Row) -> Part:
    """Return what the layers of a file are checked by."""
    held, shape = row.quantized, list(row.shape)
    stored = StoredLayer(row.name, shape, row.dtype, None, 0, 0)
    if held is not None:
        stored = stored._replace(scheme=held.scheme.name, length=held.length, row_length=held.row_length)
    cut = row.chunk is not None
    return Part(stored, cut, row.start if cut else None, [*row.tensor_shape] if cut else None)


def _table(told: Mapping[str, Any], parts: Sequence[Array] | None, raw: Array | None) -> pa.Table:
    """Return a row of a Parquet file."""
    chunk = [told.get(field.name) for field in layout.CHUNK_FIELDS]
    columns = {
        "layer_name": pa.array([told["layer_name"]], layout.TEXT),
        "shape": pa.array([told["shape"]], layout.INTS),
        "dtype": pa.array([told["dtype"]], layout.TEXT),
        **{f.name: pa.array([value], f.type) for f, value in zip(layout.CHUNK_FIELDS, chunk, strict=True)},
        "quantized": _struct(told, parts),
        "raw": pa.nulls(1, RAW.type) if raw is None else _binary(raw),
    }
    return pa.table(columns)


def _struct(told: Mapping[str, Any], parts: Sequence[Array] | None) -> pa.Array:
    if parts is None:
        return pa.nulls(1, layout.QUANTIZED)
    data, *numbers = parts
    floats = [pa.Array.from_buffers(pa.float32(), array.size, [None, pa.py_buffer(array)]) for array in numbers]
    lists = [pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values) for values in floats]
    fields = [
        pa.array([told["scheme"]], layout.TEXT),
        *(pa.array([told[name]], pa.int64()) for name in ("length", "row_length")),
        _binary(data),
        *(values.cast(layout.FLOATS) for values in lists),
    ]
    return pa.StructArray.from_arrays(fields, fields=list(layout.QUANTIZED))


def _binary(data: Array) -> pa.Array:
    ends = np.array([0, data.size], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(data)])


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
        known = layer.scheme is not None or layer.is_float or layer.dtype in DTYPE_BITS or layer.dtype in GGML_NAMES
        return None if known else f"tensors of {layer.dtype} are not written"

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
        write_quantized((_gathered(staging, told).drop(left_out) for told in rows), staging.made, self.metadata)
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


def _gathered(staging: Staging, told: dict[str, Any]) -> pa.Table:
    name, start = told["layer_name"], told.get("start", 0)
    size = math.prod(told["shape"])
    if "scheme" not in told:
        n_bytes = staging.specs[f"{name}/raw"].n_bytes
        n_whole = math.prod(told.get("tensor_shape", told["shape"]))
        begin, end = (n_bytes * n // max(n_whole, 1) for n in (start, start + size))
        return _table(told, None, staging.read(f"{name}/raw", begin, end - begin))
    scheme = schemes.parse(told["scheme"])
    before = _before(scheme, told.get("tensor_shape", told["shape"]), start, told["row_length"])
    sizes = scheme.sizes(told["length"], told["row_length"])
    parts = [
        staging.read(f"{name}/{part}", begin * item, n * item)
        for part, item, begin, n in zip(_PARTS, _ITEM_BYTES, before, sizes, strict=True)
    ]
    return _table(told, [parts[0], parts[1].view(np.float32), parts[2].view(np.float32)], None)


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
