"""NumPy's .npz archives as lazy layer tables: stored arrays are read in place, deflated ones a piece at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.limits import OverLimitError, limits
from aq2_pipeline.io.npz.header import Header, read_npy
from aq2_pipeline.io.npz.inflating import Inflated, first_bytes
from aq2_pipeline.io.npz.members import DEFLATED, Member, list_members
from aq2_pipeline.io.paths import bad_file, open_regular, source_path, stamp_of
from aq2_pipeline.io.tables.collecting import collector_paused
from aq2_pipeline.io.tables.dtypes import decoded, numpy_dtype
from aq2_pipeline.io.tables.frames import lazy_frame
from aq2_pipeline.io.tables.parts import Tensor
from aq2_pipeline.io.tables.source import READ_BYTES, Opened, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    import polars as pl

    from aq2_pipeline.io.paths import Stamp
    from aq2_pipeline.io.tables.parts import Part
    from aq2_pipeline.weights import Array

__all__ = ["NpzSource", "open_npz", "scan_npz"]

#: Bytes between two runs of a column that are read rather than jumped over: a read takes as long as so many.
_NEAR = 1 << 14


class Spelling(NamedTuple):
    """How an array is stored, where that is not as its tensor is.

    Attributes
    ----------
    member : Member
    item_bytes : int
    swap : int
        The bytes of its big-endian numbers; 0 where they are little-endian.
    fortran : bool
        Whether its first axis is the fastest.
    """

    member: Member
    item_bytes: int
    swap: int
    fortran: bool


class NpzSource(Source):
    """The arrays of an archive.

    Parameters
    ----------
    path : Path
    stamp : (int, int)
    tensors : sequence of Tensor
        Their places are counted in the file, or in a deflated member once it is inflated.
    spellings : dict of str to Spelling
        Of those that are not stored as they are read.
    """

    def __init__(self, path: Path, stamp: Stamp, tensors: Sequence[Tensor], spellings: dict[str, Spelling]) -> None:
        super().__init__(path, [path], [stamp], tensors, {}, "scan_npz")
        self._spellings = spellings

    def read(self, opened: Opened, part: Part, offset: int, target: Array) -> None:
        """Fill a uint8 array with bytes of a part; with all of them where its first axis is the fastest."""
        spelling = self._spellings.get(part.tensor.name)
        if spelling is None:
            super().read(opened, part, offset, target)
        elif not spelling.fortran:
            self._stored(opened, part.tensor, part.begin + offset, target)
            _to_little(target, spelling.swap)
        else:
            rows = target.view(f"V{spelling.item_bytes}").reshape(_rows_of(part), -1)
            for columns, block in self._columns(opened, part, spelling):
                rows[:, columns] = block.T

    def _convert(self, opened: Opened, part: Part, values: Array) -> None:
        """Decode another float dtype; column by column where the first axis is the fastest."""
        spelling = self._spellings.get(part.tensor.name)
        if spelling is None or not spelling.fortran:
            super()._convert(opened, part, values)
            return
        rows, dtype = values.reshape(_rows_of(part), -1), part.tensor.dtype
        lost: list[tuple[int, float]] = []
        for columns, block in self._columns(opened, part, spelling):
            source = np.ascontiguousarray(block).view(numpy_dtype(dtype))
            floats = decoded(source.reshape(-1), dtype).reshape(source.shape)
            rows[:, columns] = floats.T
            wrong = np.argwhere(np.isinf(floats) & np.isfinite(source)) if dtype == "F64" else ()
            lost += [
                (int(row) * rows.shape[1] + int(columns[column]), source[column, row]) for column, row in wrong[:1]
            ]
        if lost:
            at, value = min(lost)
            raise self._too_large(part, at, float(value))

    def _columns(self, opened: Opened, part: Part, spelling: Spelling) -> Iterator[tuple[Array, Array]]:
        """Yield indices of all axes but the first, and a part's elements there: a row an index, as void, little-endian.

        An index has its elements side by side in the file. Where a part has few
        of them the others are jumped over.
        """
        tensor, item = part.tensor, spelling.item_bytes
        n_first, inner = tensor.shape[0], math.prod(tensor.shape[1:])
        first, n = part.start // inner, _rows_of(part)
        begin, span = (0, n_first) if (n_first - n) * item <= _NEAR else (first, n)
        step = max(READ_BYTES // (span * item), 1)
        piece = np.empty((min(step, inner), span * item), np.uint8)
        for start in range(0, inner, step):
            block = piece[: min(step, inner - start)]
            if span == n_first:
                self._stored(opened, tensor, tensor.begin + start * span * item, block.reshape(-1))
            else:
                for k, target in enumerate(block, start):
                    self._stored(opened, tensor, tensor.begin + (k * n_first + begin) * item, target)
            _to_little(block.reshape(-1), spelling.swap)
            places = np.unravel_index(np.arange(start, start + len(block)), tensor.shape[1:], order="F")
            columns = np.ravel_multi_index(places, tensor.shape[1:])
            yield columns, block.view(f"V{item}")[:, first - begin : first - begin + n]

    def _stored(self, opened: Opened, tensor: Tensor, begin: int, target: Array) -> None:
        """Fill a uint8 array with the bytes from a place on as the archive has them, inflated."""
        member = self._spellings[tensor.name].member
        if member.method != DEFLATED:
            opened.read(tensor, begin, target)
            return
        inflated = opened.state
        if inflated is None or inflated.member is not member or inflated.at > begin:
            inflated = opened.state = Inflated(member, lambda at, block: opened.read(tensor, at, block))
        try:
            inflated.fill(begin, target)
        except FormatError:
            raise
        except ValueError as error:
            raise bad_file(self.path, str(error), "the file is damaged", tensor.name) from None


def _rows_of(part: Part) -> int:
    return part.size // math.prod(part.tensor.shape[1:])


def _to_little(data: Array, width: int) -> None:
    """Turn the bytes of big-endian numbers round."""
    if width:
        data.view(f"u{width}").byteswap(inplace=True)


def scan_npz(source: Any, *, raw: bool = False, chunk_weights: int | None = None) -> pl.LazyFrame:
    """Return the arrays of an .npz file as a lazy layer table.

    Parameters
    ----------
    source : str or Path
        A regular file as `numpy.savez` and `numpy.savez_compressed` write it.
    raw : bool
        Give `weights` as Binary, little-endian bytes in the order of the last axis,
        for schemes such as ``'int4_g64@f16'``; of any dtype.
    chunk_weights : int, optional
        The most weights of a row: longer arrays are cut along their first axis,
        and come as chunk rows, with the columns ``chunk``, ``start`` and
        ``tensor_shape``. Of an array that is compressed and in Fortran order
        each chunk inflates all of it.

    Returns
    -------
    LazyFrame
        ``layer_name: String, shape: List(Int64), dtype: String`` (F32, I64, ...),
        ``weights: List(Float32)``, a row an array, in the order of the archive;
        the name is the member's without ``.npy``. F16 is exact, F64 is rounded;
        `weights` of other dtypes are null. What safetensors has no dtype for is
        called as in NumPy: S3, U5, M8[ns], V2 (which NumPy writes for bfloat16:
        ``raw=True`` and ``@bf16`` read it). Big-endian numbers and Fortran order
        are turned round. Arrays are read when a query wants `weights`, a batch
        of rows at a time, and only those of the rows that it keeps.

    Raises
    ------
    FormatError
        If the file is not what it claims to be, or has arrays of Python objects,
        which are pickles, or structured ones; where data is read and is damaged,
        or has changed since.
    InputValueError
        Where an F64 value does not fit float32, when its array is read.
    OSError
        If the file is missing or may not be read.

    Notes
    -----
    The checksum of a compressed array is checked, that of a stored one is not:
    its bytes are read in place.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from aq2_pipeline import scan_npz
    >>> with TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/m.npz", w=np.ones((2, 3), np.float16))
    ...     scan_npz(f"{folder}/m.npz").collect().rows()
    [('w', [2, 3], 'F16', [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
    """
    return lazy_frame(open_npz(source), "raw" if raw else "weights", chunk_weights)


def open_npz(source: Any) -> Source:
    """Return the arrays of an .npz file, their headers checked."""
    path = source_path(source, "scan_npz", reads=(".npz",))
    tensors: dict[str, Tensor] = {}
    spellings: dict[str, Spelling] = {}
    with open_regular(path) as file, collector_paused():
        stamp = stamp_of(file)
        if not stamp[0]:
            raise bad_file(path, "the file is empty")
        for member, start in list_members(file, path, stamp[0]):
            try:
                name, header = _name_of(member), _header(file, member, start)
            except ValueError as error:
                hint = error.hint if isinstance(error, OverLimitError) else None
                raise bad_file(path, str(error), hint, member.name) from None
            if name in tensors:
                raise bad_file(path, "a second member has the name", layer=name)
            at = header.n_bytes + (0 if member.method == DEFLATED else member.begin)
            tensors[name] = Tensor(name, header.dtype, header.shape, at, at + member.size - header.n_bytes)
            if member.method == DEFLATED or header.swap or header.fortran:
                spellings[name] = Spelling(member, header.item_bytes, header.swap, header.fortran)
    return NpzSource(path, stamp, list(tensors.values()), spellings)


def _name_of(member: Member) -> str:
    name = member.name.removesuffix(".npy")
    if name == member.name:
        msg = "the member is no .npy array"
        raise ValueError(msg)
    most = limits().name_bytes
    if len(name.encode()) > most:
        msg = f"the name has {len(name.encode())} bytes; at most {most} are read"
        raise OverLimitError(msg, "name_bytes")
    return name


def _header(file: FileIO, member: Member, start: bytes) -> Header:
    """Return the header of a member, whose size is what the header says."""

    def first(n: int) -> bytes:
        stored = start
        n_wanted = min(n if member.method != DEFLATED else 2 * n + _NEAR, member.end - member.begin)
        if len(stored) < n_wanted and (member.method != DEFLATED or len(first_bytes(stored, n)) < n):
            file.seek(member.begin)
            stored = file.read(n_wanted) or b""
        return first_bytes(stored, n) if member.method == DEFLATED else stored[:n]

    header = read_npy(b"" if member.method == DEFLATED else start, first)
    n_bytes = header.n_bytes + math.prod(header.shape) * header.item_bytes
    if member.size != n_bytes:
        shape = list(header.shape)
        msg = f"the shape {shape} of {header.dtype} takes {n_bytes} bytes with its header, the member has {member.size}"
        raise ValueError(msg)
    taken, n = limits(), member.end - member.begin
    if member.size > max(taken.inflated_bytes, taken.inflation * n):
        msg = f"{n} compressed bytes claim to be {member.size}; at most {taken.inflation} times as many are read"
        raise OverLimitError(msg, "inflation")
    return header
