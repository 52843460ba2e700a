"""The header of a safetensors file, checked before a byte of a tensor is read.

Stricter than the format's own library: a header begins with ``{``, keys are
unique, ranks and names are bounded. Numbers are Python integers throughout, so
that no product or sum of a hostile header wraps.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from aq2_pipeline.io.dtypes import DTYPE_BITS
from aq2_pipeline.io.parts import Tensor
from aq2_pipeline.io.paths import MAX_NAME_BYTES, Stamp, bad_file, stamp_of

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    from aq2_pipeline.errors import FormatError

__all__ = ["MAX_HEADER_BYTES", "Header", "read_header"]

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
MAX_RANK = 8
MAX_AXIS = 2**63 - 1

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
    file.seek(0)
    start = file.read(9) or b""
    if len(start) < 8:  # noqa: PLR2004 - the bytes of the header's size
        raise bad_file(path, "the file is empty" if not size else f"the file ends after {size} bytes, in its header")
    n_header = int.from_bytes(start[:8], "little")
    if n_header > size - 8 or start[8:] != b"{":
        raise _not_safetensors(path, start, n_header, size)
    if n_header > MAX_HEADER_BYTES:
        raise bad_file(path, f"the header claims {n_header} bytes; at most {MAX_HEADER_BYTES} are read")
    file.seek(8)
    text = b""
    while len(text) < n_header and (more := file.read(n_header - len(text))):
        text += more
    entries = _parsed(text, path)
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    if len(entries) > MAX_TENSORS:
        raise bad_file(path, f"the header names {len(entries)} tensors; at most {MAX_TENSORS} are read")
    data_at = 8 + n_header
    tensors = sorted((_tensor(path, name, entry, data_at, size) for name, entry in entries.items()), key=_span)
    _check_cover(path, tensors, data_at, size)
    return Header(tuple(tensors), metadata, stamp)


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


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise bad_file(path, f"the header is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise bad_file(path, "the header is nested too deep") from None
    except ValueError as error:
        raise bad_file(path, f"the header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise bad_file(path, "the header is no JSON object")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        msg = f"the key {twice[:64]!r} is there twice"
        raise ValueError(msg)
    return found


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON number"
    raise ValueError(msg)


def _metadata(entry: Any, path: Path) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise bad_file(path, "__metadata__ is not an object of strings")
    return entry


def _are_counts(values: Any, largest: int) -> bool:
    """Whether it is a list of integers in 0..largest; a plain loop, as a file may have a million such lists."""
    if type(values) is not list:
        return False
    for value in values:  # noqa: SIM110 - a generator takes twice as long
        if type(value) is not int or not 0 <= value <= largest:
            return False
    return True


def _tensor(path: Path, name: str, entry: Any, data_at: int, size: int) -> Tensor:
    """Check one entry of the header against the file's size."""
    try:
        n_name = len(name.encode())
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        raise bad_file(path, f"the tensor's name {name[:64]!r} is not Unicode") from None
    if n_name > MAX_NAME_BYTES:
        raise bad_file(path, f"a tensor's name has {n_name} bytes; at most {MAX_NAME_BYTES} are read", layer=name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad_file(path, "the entry does not have exactly dtype, shape and data_offsets", layer=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise bad_file(path, f"the dtype {str(dtype)[:64]!r} is unknown", f"one of {', '.join(DTYPE_BITS)}", name)
    if not _are_counts(shape, MAX_AXIS) or len(shape) > MAX_RANK:
        raise bad_file(path, f"the shape is not a list of at most {MAX_RANK} axes in 0..2^63-1", layer=name)
    if not _are_counts(offsets, size - data_at) or len(offsets) != 2:  # noqa: PLR2004 - begin and end
        told = str(offsets)[:64]
        raise bad_file(path, f"the data_offsets {told} are not within the {size - data_at} bytes of data", layer=name)
    begin, end = offsets
    if math.prod(shape) * DTYPE_BITS[dtype] != 8 * (end - begin):
        raise bad_file(path, f"the shape {shape} of {dtype} does not take the {end - begin} bytes it has", layer=name)
    return Tensor(name, dtype, tuple(shape), data_at + begin, data_at + end)


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
