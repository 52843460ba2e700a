"""A model file as a layer table, whatever its format: a format lists tensors, and here their bytes become columns."""

from __future__ import annotations

import hashlib
import math
from contextlib import ExitStack
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import polars as pl
import pyarrow as pa

from aq2_pipeline import build, layout, schemes
from aq2_pipeline.errors import Aq2Error, EngineError, InputTypeError, InputValueError
from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.io.paths import Stamp, bad_file, open_regular, stamp_of
from aq2_pipeline.io.tables.collecting import collector_paused
from aq2_pipeline.io.tables.dtypes import BLOCK_DTYPES, decoded, is_float, numpy_dtype, scheme_of_dtype
from aq2_pipeline.io.tables.parts import Part, Tensor, batches_of, parts_of
from aq2_pipeline.io.tables.reused import Reused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from io import FileIO
    from pathlib import Path

    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array

__all__ = ["BATCH_BYTES", "READ_BYTES", "Form", "Opened", "Source"]

#: Bytes of weights that the rows of one batch hold at the most; a larger row stands alone. Polars' streaming engine
#: holds about fourteen batches at once.
BATCH_BYTES = 1 << 24
#: Bytes that one read takes at the most, so that an interrupt is answered between two.
READ_BYTES = 1 << 24
#: What every block format's blocks divide.
SUPER_BLOCK = 256
#: A Polars Binary value has a 32-bit length.
MAX_BINARY_BYTES = 2**32 - 1


class Form(NamedTuple):
    """What a table has of a tensor: the column's name, and its type in Arrow and in Polars."""

    column: str
    arrow: pa.DataType
    polars: pl.DataType


_QUANTIZED = pl.Struct(
    {
        "scheme": pl.String(),
        "length": pl.Int64(),
        "row_length": pl.Int64(),
        "quantized_data": pl.Binary(),
        "scales": pl.List(pl.Float32()),
        "zero_points": pl.List(pl.Float32()),
    }
)
#: `weights` as float32, or `raw` as the bytes of the file; `quantized`, the same bytes as a `QUANTIZED` struct.
FORMS = {
    "weights": Form("weights", layout.FLOATS, pl.List(pl.Float32())),
    "raw": Form("weights", pa.large_binary(), pl.Binary()),
    "quantized": Form("quantized", layout.QUANTIZED, _QUANTIZED),
}


class Opened:
    """The files of a source while they are read, one open at a time; a file that has changed is an error."""

    def __init__(self, source: Source) -> None:
        self.source = source
        #: What a format keeps between two reads, such as how far it has come in a compressed tensor.
        self.state: Any = None
        #: Makes the arrays that batches hold.
        self.empty: Callable[[int, Any], Array] = Reused().empty
        self._stack = ExitStack()
        self._number: int | None = None
        self._file: FileIO

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def file_of(self, number: int) -> FileIO:
        """Return one of the files, open; the one before is closed."""
        if number != self._number:
            self._stack.close()
            self._file = self._stack.enter_context(open_regular(self.source.files[number]))
            self._number = number
        return self._file

    def read(self, tensor: Tensor, begin: int, target: Array) -> None:
        """Fill a uint8 array from a tensor's file: read, not mapped, so that a file that shrinks is an error."""
        self.check(tensor)
        file, path = self.file_of(tensor.file), self.source.files[tensor.file]
        file.seek(begin)
        at = 0
        while at < target.size:
            try:
                n_read = file.readinto(memoryview(target[at : at + READ_BYTES].data))
            except OSError as error:  # which knows a number, and no name
                error.filename = error.filename or str(path)
                raise
            if not n_read:
                raise bad_file(path, f"the data ends {target.size - at} bytes early", layer=tensor.name)
            at += n_read
        self.check(tensor)

    def check(self, tensor: Tensor) -> None:
        """Raise a FormatError if the file of a tensor has changed since it was listed."""
        if stamp_of(self.file_of(tensor.file)) != self.source.stamps[tensor.file]:
            path = self.source.files[tensor.file]
            raise bad_file(path, "the file has changed since its header was read", "scan it again", tensor.name)

    def runs(self, parts: Sequence[Part]) -> list[tuple[int, int]]:
        """Return the ranges of parts that batches must not go beyond."""
        return [(0, len(parts))]

    def floats(self, parts: Sequence[Part]) -> Array | None:
        """Return the weights of parts of one run where they are; None where they must be read."""
        del parts
        return None


class Source:
    """The tensors of a model, read in batches.

    Parameters
    ----------
    path : Path
        What the user gave.
    files : sequence of Path
        The files that hold the tensors.
    stamps : sequence of (int, int)
        Of each file when it was listed.
    tensors : sequence of Tensor
        In the order of the table.
    metadata : mapping of str to object
        The model's own; its values are strings, but in GGUF, where they are read when they are asked for.
    function : str
        The public function that errors name.
    native : bool
        Whether the format holds quantized tensors, so that its table has the column `quantized`.
    opened : type of Opened
        How its files are read.
    """

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        stamps: Sequence[Stamp],
        tensors: Sequence[Tensor],
        metadata: Mapping[str, Any],
        function: str,
        *,
        native: bool = False,
        opened: type[Opened] = Opened,
    ) -> None:
        self.path, self.files, self.stamps, self.tensors = path, tuple(files), tuple(stamps), tuple(tensors)
        self.metadata, self.function, self.native = metadata, function, native
        self._opened = opened

    def read(self, opened: Opened, part: Part, offset: int, target: Array) -> None:
        """Fill a uint8 array with bytes of a part; formats that compress or spread them have their own way."""
        opened.read(part.tensor, part.begin + offset, target)

    def holds_weights(self, tensor: Tensor) -> bool:
        """Whether the tensor is of floats, or of codes that decode to them."""
        return is_float(tensor.dtype)

    def scheme_of(self, tensor: Tensor) -> str | None:
        """Return the scheme that a tensor's bytes are in; None where they are in none."""
        return scheme_of_dtype(tensor.dtype)

    def is_stored(self, tensor: Tensor) -> bool:  # noqa: ARG002 - most formats have no names without data
        """Whether there is more of the tensor than its name."""
        return True

    #: Whether the rows of the table are cut as the file has it.
    has_own_chunks = False

    def held_as(self, tensor: Tensor) -> str:
        """Return what a person reads of how a tensor is stored: its scheme, else its dtype."""
        scheme = self.scheme_of(tensor)
        return tensor.dtype if scheme is None or scheme.upper() == tensor.dtype else scheme

    def row_length(self, tensor: Tensor, scheme: Scheme) -> int:  # noqa: ARG002 - a file may say another
        """Return the weights of a matrix row of a tensor that is in a scheme."""
        return tensor.shape[-1] if len(tensor.shape) > 1 else tensor.size

    def fingerprint(self) -> str:
        """Return what the source is told by, without reading it: its files' sizes and times, and its tensors."""
        told = repr((self.stamps, self.tensors)).encode()
        return hashlib.sha256(told).hexdigest()

    def parts(self, chunk_weights: int | None = None) -> list[Part]:
        """Return the rows of the table.

        Raises
        ------
        InputTypeError, InputValueError
            If `chunk_weights` is no number of weights.
        """
        if chunk_weights is None:
            sizes = [math.prod(tensor.shape) for tensor in self.tensors]
            with collector_paused():
                return list(map(Part, self.tensors, repeat(0), sizes))
        if not isinstance(chunk_weights, int) or isinstance(chunk_weights, bool):
            msg = f"{self.function}: chunk_weights is a {type(chunk_weights).__name__}"
            raise InputTypeError(msg, "give the most weights of a row, or None")
        if chunk_weights < 1:
            msg = f"{self.function}: chunk_weights is {chunk_weights}"
            raise InputValueError(msg, "a row has at least one weight")
        return [part for tensor in self.tensors for part in parts_of(tensor, chunk_weights)]

    def schema(self, form: str, *, chunked: bool = False) -> pa.Schema:
        """Return the columns of the layer table."""
        chunks = layout.CHUNK_FIELDS if chunked else ()
        column = FORMS[form]
        return pa.schema([*layout.LAYER_FIELDS, *chunks, pa.field(column.column, column.arrow)])

    def batches(
        self,
        parts: Sequence[Part],
        form: str | None = "weights",
        *,
        chunked: bool = False,
        max_rows: int | None = None,
        max_bytes: int | None = None,
        empty: Callable[[int, Any], Array] | None = None,
    ) -> Iterator[pa.Table]:
        """Yield rows of the layer table, a batch at a time.

        Parameters
        ----------
        parts : sequence of Part
            The rows to read.
        form : {"weights", "raw", "quantized"}, optional
            What to read of them; None reads nothing, and the column is not there.
        chunked : bool
            Whether the columns that say which part of a layer a row is are there.
        max_rows, max_bytes : int, optional
            The most rows of a batch, and the most bytes of its weights unless one row has more; default `BATCH_BYTES`.
        empty : callable, optional
            Makes the array, of a size and dtype, that each batch's weights or bytes lie in; default `Reused.empty`.
        """
        sizes = [0 if form is None else self._size(part, form) for part in parts]
        limits = (max_bytes or BATCH_BYTES, max_rows or len(parts) or 1)
        if form is None:
            yield from (listing(parts[a:b], chunked=chunked) for a, b in batches_of(sizes, *limits))
            return
        with self._opened(self) as opened:
            opened.empty = empty or opened.empty
            for first, stop in opened.runs(parts) if form == "weights" else [(0, len(parts))]:
                for a, b in batches_of(sizes[first:stop], *limits):
                    rows = parts[first + a : first + b]
                    yield self._table(opened, rows, form, chunked)  # no name holds it when the next is read

    def _table(self, opened: Opened, parts: Sequence[Part], form: str, chunked: bool) -> pa.Table:  # noqa: FBT001
        read = {"weights": self._weights, "raw": self._raw, "quantized": self._quantized}[form]
        return listing(parts, chunked=chunked).append_column(FORMS[form].column, read(opened, parts))

    def _size(self, part: Part, form: str) -> int:
        """Return the bytes that a row takes in the column."""
        if form == "raw":
            return part.n_bytes
        if form == "quantized":
            return part.n_bytes if scheme_of_dtype(part.tensor.dtype) else 0
        return 4 * part.size if is_float(part.tensor.dtype) else 0

    def _raw(self, opened: Opened, parts: Sequence[Part]) -> pa.Array:
        offsets, data = self._bytes(opened, parts, [part.n_bytes for part in parts])
        # Strings and the like are listed, and have no bytes of their own.
        told = np.array([part.n_bytes > 0 or not part.size for part in parts], bool)
        return build.binaries(offsets, data, build.bitmap(told))

    def _bytes(self, opened: Opened, parts: Sequence[Part], sizes: Sequence[int]) -> tuple[Array, Array]:
        for part, size in zip(parts, sizes, strict=True):
            if size > MAX_BINARY_BYTES:
                error = EngineError(
                    f"the tensor has {size} bytes, a Polars Binary value at most {MAX_BINARY_BYTES}",
                    "chunk_weights= cuts it into rows",
                )
                raise error.at(function=self.function, layer=part.tensor.name)
        offsets = build.offsets_of(np.array(sizes, np.int64))
        data = opened.empty(int(offsets[-1]), np.uint8)
        for part, begin, end in zip(parts, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if end > begin:
                self.read(opened, part, 0, data[begin:end])
        return offsets, data

    def _quantized(self, opened: Opened, parts: Sequence[Part]) -> pa.Array:
        """Return the bytes of blocks and floats as they are, and null for what is neither."""
        schemes = [scheme_of_dtype(part.tensor.dtype) for part in parts]
        valid = np.array([scheme is not None for scheme in schemes], bool)
        offsets, data = self._bytes(opened, parts, [self._size(part, "quantized") for part in parts])
        mask, none = build.bitmap(valid), np.zeros(len(parts) + 1, np.int64)
        lengths = [part.size if ok else None for part, ok in zip(parts, valid, strict=True)]
        row_lengths = [part.tensor.shape[-1] if len(part.tensor.shape) > 1 else part.size for part in parts]
        empty = build.float_lists(none, np.empty(0, np.float32), mask)
        fields = [
            pa.array(schemes, layout.TEXT),
            pa.array(lengths, pa.int64()),
            pa.array([n if ok else None for n, ok in zip(row_lengths, valid, strict=True)], pa.int64()),
            build.binaries(offsets, data, mask),
            empty,
            empty,
        ]
        return build.structs(layout.QUANTIZED, fields, mask)

    def _weights(self, opened: Opened, parts: Sequence[Part]) -> pa.Array:
        valid = np.array([is_float(part.tensor.dtype) for part in parts], bool)
        sizes = [part.size if ok else 0 for part, ok in zip(parts, valid, strict=True)]
        offsets = build.offsets_of(np.array(sizes, np.int64))
        there = opened.floats(parts)
        if there is not None:
            return build.float_lists(offsets, there, None)
        values = opened.empty(int(offsets[-1]), np.float32)
        for part, begin, end in zip(parts, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if end == begin:
                continue
            if part.tensor.dtype == "F32":
                self.read(opened, part, 0, values[begin:end].view(np.uint8))
            elif part.tensor.dtype in BLOCK_DTYPES:
                self._decode(opened, part, values[begin:end])
            else:
                self._convert(opened, part, values[begin:end])
        return build.float_lists(offsets, values, build.bitmap(valid))

    def _decode(self, opened: Opened, part: Part, values: Array) -> None:
        """Decode blocks, some matrix rows at a time."""
        row = part.tensor.shape[-1] if len(part.tensor.shape) > 1 else SUPER_BLOCK
        step = max(READ_BYTES // (4 * row), 1) * row
        for begin in range(0, values.size, step):
            target = values[begin : begin + step]
            piece = Part(part.tensor, part.start + begin, part.start + begin + target.size, 0)
            try:
                floats = FUNCTIONS["dequantize"](self._quantized(opened, [piece]))
            except Aq2Error as error:
                if error.position is None:
                    raise error.at(function=self.function, layer=part.tensor.name, row=None) from None
                block = (piece.start + error.position) // schemes.parse(BLOCK_DTYPES[part.tensor.dtype]).block
                path = self.files[part.tensor.file]
                raise bad_file(path, f"block {block}: {error.reason}", error.hint, part.tensor.name) from None
            target[:] = floats.values.to_numpy()

    def _convert(self, opened: Opened, part: Part, values: Array) -> None:
        """Read elements of another float dtype piece by piece, so that they are never there twice."""
        dtype = part.tensor.dtype
        kind = numpy_dtype(dtype)
        step = READ_BYTES // kind.itemsize
        piece = np.empty(min(step, values.size), kind)
        for begin in range(0, values.size, step):
            target = values[begin : begin + step]
            source = piece[: target.size]
            self.read(opened, part, begin * kind.itemsize, source.view(np.uint8))
            target[:] = decoded(source, dtype)
            if dtype == "F64":
                self._check_fits(source, target, part, begin)

    def _check_fits(self, source: Array, target: Array, part: Part, begin: int) -> None:
        lost = np.flatnonzero(np.isinf(target) & np.isfinite(source))
        if lost.size:
            raise self._too_large(part, begin + int(lost[0]), float(source[lost[0]]))

    def _too_large(self, part: Part, at: int, value: float) -> Aq2Error:
        error = InputValueError(f"the value {value!r} does not fit float32", "scale or clip the weights")
        return error.at(function=self.function, layer=part.tensor.name, position=part.start + at, value=value)


def listing(parts: Sequence[Part], *, chunked: bool = False) -> pa.Table:
    """Return what a table says of rows without their weights."""
    tensors = [part.tensor for part in parts]
    columns = [
        build.strings([tensor.name for tensor in tensors]),
        build.integer_lists([part.shape for part in parts] if chunked else [tensor.shape for tensor in tensors]),
        build.strings([tensor.dtype for tensor in tensors]),
    ]
    if not chunked:
        return pa.Table.from_arrays(columns, schema=pa.schema(layout.LAYER_FIELDS))
    whole = [part.chunk is None for part in parts]
    columns += [
        pa.array([part.chunk for part in parts], pa.int32()),
        pa.array([None if one else part.start for one, part in zip(whole, parts, strict=True)], pa.int64()),
        pa.array([None if one else part.tensor.shape for one, part in zip(whole, parts, strict=True)], layout.INTS),
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema([*layout.LAYER_FIELDS, *layout.CHUNK_FIELDS]))
