"""The header of a safetensors file, checked before a byte of a tensor is read.

Stricter than the format's own library: a header begins with ``{``, keys are
unique, ranks and names are bounded. Numbers are Python integers throughout, so
that no product or sum of a hostile header wraps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import Stamp, bad_file, stamp_of
from aq2_pipeline.io.safetensors.entries import parse_entries

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    from aq2_pipeline.errors import FormatError
    from aq2_pipeline.io.tables.parts import Tensor

__all__ = ["Header", "read_header"]

_ZIP_MAGIC, _GGUF_MAGIC = b"PK\x03\x04", b"GGUF"


class Header(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    tensors : tuple of Tensor
        In the order of their data.
    metadata : dict of str to str
        The file's own ``__metadata__``.
    stamp : tuple of int
        The size in bytes and the time of change (ns), to notice a file that changes.
    """

    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]
    stamp: Stamp


def read_header(file: FileIO, path: Path) -> Header:
    """Read and check the header of an open file.

    Parameters
    ----------
    file : FileIO
        Unbuffered; its position changes.
    path : Path
        What messages call it.

    Raises
    ------
    FormatError
        Naming the file, and the tensor where one is at fault.

    Notes
    -----
    An uint64 (little-endian) header size, that many bytes of JSON, then the
    tensors' bytes without holes: https://github.com/huggingface/safetensors#format
    """
    stamp = stamp_of(file)
    size = stamp[0]
    if size < 8:  # noqa: PLR2004 - the bytes of the header's size; files of /proc have none
        raise bad_file(path, "the file is empty" if not size else f"the file ends after {size} bytes, in its header")
    file.seek(0)
    start = file.read(9) or b""
    n_header = int.from_bytes(start[:8], "little")
    if n_header > size - 8 or start[8:] != b"{":
        raise _not_safetensors(path, start, n_header, size)
    most = limits().header_bytes
    if n_header > most:
        reason = f"the header claims {n_header} bytes; at most {most} are read"
        raise bad_file(path, reason, to_change("header_bytes"))
    data_at = 8 + n_header
    tensors, metadata = parse_entries(_text(file, path, n_header), path, data_at, size)
    if any(before.end != after.begin for before, after in pairwise(tensors)):
        tensors.sort(key=_span)
    _check_cover(path, tensors, data_at, size)
    return Header(tuple(tensors), metadata, stamp)


def _text(file: FileIO, path: Path, n_header: int) -> str:
    """Return the header as text."""
    file.seek(8)
    text = b""
    while len(text) < n_header and (more := file.read(n_header - len(text))):
        text += more
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_file(path, f"the header is not UTF-8: byte {error.start}") from None


def _not_safetensors(path: Path, start: bytes, n_header: int, size: int) -> FormatError:
    """Say what a file is whose first bytes cannot be those of a header."""
    if start.startswith(_ZIP_MAGIC):
        return bad_file(path, "the file is a zip archive", "torch's zip files are pickles: convert it to safetensors")
    if start.startswith(_GGUF_MAGIC):
        return bad_file(path, "the file is GGUF, not safetensors")
    if start.startswith((b"PAR1", b"ARROW1")):
        return bad_file(path, "the file is Parquet or Arrow, not safetensors", "read it with Polars or DuckDB")
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return bad_file(path, "pickle formats are not read", "convert it to safetensors where you trust it")
    if n_header > size - 8:
        return bad_file(path, f"the header claims {n_header} bytes, the file has {size}", "the file is cut, or another")
    return bad_file(path, "the header is no JSON object", "expected '{' as its first byte")


def _span(tensor: Tensor) -> tuple[int, int]:
    return tensor.begin, tensor.end


def _check_cover(path: Path, tensors: list[Tensor], data_at: int, size: int) -> None:
    """Check that the tensors follow one another without hole, overlap or tail."""
    at, before = data_at, None
    for tensor in tensors:
        if tensor.begin != at:
            what = "a hole" if tensor.begin > at else f"an overlap with {before!r}"
            raise bad_file(path, f"its bytes begin at {tensor.begin - data_at} after {what}", layer=tensor.name)
        at, before = tensor.end, tensor.name
    if at != size:
        raise bad_file(path, f"{size - at} bytes follow the last tensor", "the file is cut, or has a tail", before)
