"""safetensors files as lazy layer tables: Polars asks for columns and rows, and only their bytes are read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from aq2_pipeline import build, layout
from aq2_pipeline.errors import EngineError, InputValueError
from aq2_pipeline.floats import float32_of
from aq2_pipeline.io.headers import Header, Tensor, bad_file, open_regular, read_header, source_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from aq2_pipeline.weights import Array

__all__ = ["BATCH_BYTES", "SafetensorsFile", "scan_safetensors"]

#: Bytes of weights that the layers of one batch hold at the most; a larger layer stands alone.
BATCH_BYTES = 1 << 26
#: Bytes that one read takes at the most, so that an interrupt is answered between two.
READ_BYTES = 1 << 24
#: A Polars Binary value has a 32-bit length.
MAX_BINARY_BYTES = 2**32 - 1

_NUMPY = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_SCHEMA = {"layer_name": pl.String(), "shape": pl.List(pl.Int64), "dtype": pl.String()}


def scan_safetensors(source: Any, *, raw: bool = False) -> pl.LazyFrame:
    """Return a safetensors file as a lazy layer table.

    Parameters
    ----------
    source : str or Path
        A regular file; its header is checked at once.
    raw : bool
        Give `weights` as Binary, the little-endian bytes of the file, for
        schemes such as ``'int4_g64@bf16'``.

    Returns
    -------
    LazyFrame
        ``layer_name: String, shape: List(Int64), dtype: String`` (F32, BF16,
        I64, ...), ``weights: List(Float32)``, a row a tensor, in the order of
        the file's data. F16 and BF16 are exact, F64 is rounded; `weights` of
        other dtypes are null. Tensors are read when a query wants `weights`,
        a batch of layers at a time, and only those of the rows that it keeps.

    Raises
    ------
    FormatError
        If the file is not what it claims to be; here, or where its data is read
        and the file has changed since.
    InputValueError
        Where an F64 value does not fit float32, when its layer is read.
    ImportError
        Without the extra ``[files]``.
    OSError
        If the file is missing or may not be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from aq2_pipeline import scan_safetensors
    >>> with TemporaryDirectory() as folder:
    ...     save_file({"w": np.ones((2, 3), np.float16)}, f"{folder}/m.safetensors")
    ...     scan_safetensors(f"{folder}/m.safetensors").collect().rows()
    [('w', [2, 3], 'F16', [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
    """
    file = SafetensorsFile(source, raw=raw)
    detail = str(file.path)
    return register_io_source(
        file.frames,
        schema=file.schema,
        explain_name="safetensors",
        explain_detail=detail if detail.isprintable() else repr(detail),
    )


class SafetensorsFile:
    """One file, its header checked, whose layers are read in batches.

    Parameters
    ----------
    source : str or Path
    raw : bool
        As `scan_safetensors` takes them.

    Attributes
    ----------
    path : Path
    raw : bool
    header : Header
    """

    def __init__(self, source: Any, *, raw: bool = False) -> None:
        self.path: Path = source_path(source)
        self.raw = raw
        with open_regular(self.path) as file:
            self.header: Header = read_header(file, self.path)
        _ask_library(self.path)

    @property
    def schema(self) -> pl.Schema:
        """The columns of the layer table."""
        return pl.Schema({**_SCHEMA, "weights": pl.Binary() if self.raw else pl.List(pl.Float32)})

    def frames(
        self,
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        """Yield the table as Polars asks for it: see `polars.io.plugins.register_io_source`.

        Polars 2.1 means the first `n_rows` rows of the file, of which it wants
        those that meet the predicate.
        """
        tensors: Sequence[Tensor] = self.header.tensors[:n_rows]
        roots = set(predicate.meta.root_names()) if predicate is not None else set()
        wanted = self.schema.names() if with_columns is None else with_columns
        if predicate is not None and "weights" not in roots:  # decide before anything is read
            listing = pl.DataFrame(_listing(tensors)).with_row_index("__aq2_row")
            tensors = [tensors[row] for row in listing.filter(predicate)["__aq2_row"]]
            predicate = None
        with_weights = "weights" in wanted or "weights" in roots
        frame = self.schema.to_frame().select(wanted)
        for batch in self.batches(tensors, with_weights=with_weights, max_rows=batch_size):
            frame = pl.DataFrame(batch)
            frame = (frame if predicate is None else frame.filter(predicate)).select(wanted)
            yield frame
        if not tensors:
            yield frame

    def batches(
        self, tensors: Sequence[Tensor] | None = None, *, with_weights: bool = True, max_rows: int | None = None
    ) -> Iterator[pa.Table]:
        """Yield layers, at most `BATCH_BYTES` of weights at a time.

        Parameters
        ----------
        tensors : sequence of Tensor, optional
            Those to read; default all.
        with_weights : bool
            Without, no tensor is read, and the column `weights` is not there.
        max_rows : int, optional
            The most rows a batch.

        Yields
        ------
        pyarrow.Table
        """
        chosen = self.header.tensors if tensors is None else tensors
        sizes = [self._size(tensor) if with_weights else 0 for tensor in chosen]
        cuts = _cut(sizes, max_rows or len(chosen) or 1)
        if not with_weights:
            yield from (_listing(chosen[a:b]) for a, b in cuts)
            return
        with open_regular(self.path) as file:
            for a, b in cuts:
                yield self._layers(file, chosen[a:b])  # no name holds it when the next is read

    def _layers(self, file: FileIO, tensors: Sequence[Tensor]) -> pa.Table:
        self._check_unchanged(file)
        weights = self._bytes(file, tensors) if self.raw else self._floats(file, tensors)
        self._check_unchanged(file)
        return _listing(tensors).append_column("weights", weights)

    def _size(self, tensor: Tensor) -> int:
        """Return the bytes that the tensor takes in the column `weights`."""
        if tensor.dtype not in _NUMPY:
            return 0
        return tensor.n_bytes if self.raw else 4 * tensor.n_weights

    def _check_unchanged(self, file: FileIO) -> None:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != self.header.stamp:
            raise bad_file(self.path, "the file has changed since its header was read", "scan it again")

    def _floats(self, file: FileIO, tensors: Sequence[Tensor]) -> pa.Array:
        offsets = build.offsets_of(np.array([tensor.n_weights for tensor in tensors], np.int64))
        values = np.empty(offsets[-1], np.float32)
        for tensor, begin, end in zip(tensors, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if tensor.dtype == "F32":
                self._read(file, tensor, tensor.begin, values[begin:end].view(np.uint8))
            elif tensor.dtype in _NUMPY:
                self._convert(file, tensor, values[begin:end])
        return build.float_lists(offsets, values, build.bitmap(_valid(tensors)))

    def _convert(self, file: FileIO, tensor: Tensor, values: Array) -> None:
        """Read a tensor of another float dtype piece by piece, so that it is never there twice."""
        kind = np.dtype(_NUMPY[tensor.dtype])
        step = READ_BYTES // kind.itemsize
        piece = np.empty(min(step, values.size), kind)
        for begin in range(0, values.size, step):
            target = values[begin : begin + step]
            source = piece[: target.size]
            self._read(file, tensor, tensor.begin + begin * kind.itemsize, source.view(np.uint8))
            target[:] = float32_of(source, "bf16" if tensor.dtype == "BF16" else None)
            if tensor.dtype != "F64":
                continue
            lost = np.flatnonzero(np.isinf(target) & np.isfinite(source))
            if lost.size:
                value, position = float(source[lost[0]]), begin + int(lost[0])
                error = InputValueError(f"the value {value!r} does not fit float32", "scale or clip the weights")
                raise error.at(function="scan_safetensors", layer=tensor.name, position=position, value=value)

    def _bytes(self, file: FileIO, tensors: Sequence[Tensor]) -> pa.Array:
        sizes = [self._size(tensor) for tensor in tensors]
        for tensor, size in zip(tensors, sizes, strict=True):
            if size > MAX_BINARY_BYTES:
                error = EngineError(f"the tensor has {size} bytes, a Polars Binary value at most {MAX_BINARY_BYTES}")
                raise error.at(function="scan_safetensors", layer=tensor.name)
        offsets = build.offsets_of(np.array(sizes, np.int64))
        data = np.empty(offsets[-1], np.uint8)
        for tensor, size, begin in zip(tensors, sizes, offsets[:-1].tolist(), strict=True):
            self._read(file, tensor, tensor.begin, data[begin : begin + size])
        return build.binaries(offsets, data, build.bitmap(_valid(tensors)))

    def _read(self, file: FileIO, tensor: Tensor, offset: int, target: Array) -> None:
        """Fill a uint8 array from the file: read, not mapped, so that a file that shrinks is an error, not a signal."""
        file.seek(offset)
        at = 0
        while at < target.size:
            n_read = file.readinto(memoryview(target[at : at + READ_BYTES].data))
            if not n_read:
                raise bad_file(self.path, f"the data ends {target.size - at} bytes early", layer=tensor.name)
            at += n_read


def _ask_library(path: Path) -> None:
    """Have the format's own library check the header too.

    Raises
    ------
    ImportError
        If it is not installed.
    FormatError
        If it finds what we did not.
    """
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - an extra
    except ImportError:
        msg = "safetensors files need the extra [files]: pip install 'aq2-pipeline[files]'"
        raise ImportError(msg) from None
    try:
        with safe_open(path, framework="np", backend="pread"):
            pass
    except SafetensorError as error:
        raise bad_file(path, f"the safetensors library refuses it: {error}") from None


def _cut(sizes: Sequence[int], max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of tensors that make a batch."""
    first = n_bytes = 0
    for k, size in enumerate(sizes):
        if k > first and (n_bytes + size > BATCH_BYTES or k - first >= max_rows):
            yield first, k
            first, n_bytes = k, 0
        n_bytes += size
    if first < len(sizes):
        yield first, len(sizes)


def _listing(tensors: Sequence[Tensor]) -> pa.Table:
    columns = [
        pa.array([tensor.name for tensor in tensors], layout.TEXT),
        pa.array([tensor.shape for tensor in tensors], layout.INTS),
        pa.array([tensor.dtype for tensor in tensors], layout.TEXT),
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(layout.LAYER_FIELDS))


def _valid(tensors: Sequence[Tensor]) -> Array:
    return np.array([tensor.dtype in _NUMPY for tensor in tensors], bool)
