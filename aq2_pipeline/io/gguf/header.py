"""The header of a GGUF file, versions 2 and 3, checked before a byte of a tensor is read.

Stricter than ggml's own reader and than the package `gguf`, which hangs on 64
bytes that claim a long array. Numbers are Python integers throughout, and each
count and length is held against the bytes that are left before anything is read
or looped over.
"""

from __future__ import annotations

import math
import operator
import struct
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aq2_pipeline.io.gguf.cursor import Cursor
from aq2_pipeline.io.gguf.types import ARRAY, GGML_TYPES, REMOVED_TYPES, STRING, VALUE_NAMES, VALUE_TYPES
from aq2_pipeline.io.gguf.values import KeyValue
from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import Stamp, bad_file, stamp_of
from aq2_pipeline.io.tables.parts import Tensor

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

__all__ = [
    "ALIGNMENT_KEY",
    "DEFAULT_ALIGNMENT",
    "MAGIC",
    "MAX_KEY_BYTES",
    "MAX_RANK",
    "VERSIONS",
    "Header",
    "is_alignment",
    "read_header",
]

MAGIC = b"GGUF"
#: Version 3 added big-endian files to version 2, and nothing else.
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
#: ggml's GGML_MAX_DIMS.
MAX_RANK = 4
#: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a key has at most 2^16-1 bytes.
MAX_KEY_BYTES = 2**16 - 1

_LENGTH, _KIND, _COUNTS, _ARRAY_HEAD = (struct.Struct(form) for form in ("<Q", "<I", "<4sIQQ", "<IQ"))
#: By rank: the axes, the type, and the offset of the data.
_INFOS = [struct.Struct(f"<{rank}QIQ") for rank in range(MAX_RANK + 1)]
#: The most bytes of what is said of a tensor beside its name: the name's length, the rank and the rest.
_MOST_INFO = 8 + 4 + _INFOS[MAX_RANK].size
#: The bytes of the shortest key-value and of the shortest tensor: a key of one byte, an empty name and one axis.
_LEAST_KEY_VALUE, _LEAST_TENSOR = 8 + 1 + 4 + 1, 8 + 4 + 8 + 4 + 8


class Header(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    tensors : tuple of Tensor
        In the order of their data; axes slowest first, which is GGUF's order reversed.
    key_values : tuple of KeyValue
        In the order of the file.
    alignment : int
        Of the tensors' data, in bytes.
    version : int
    data_at : int
        Where the data begins.
    stamp : tuple of int
        The size in bytes and the time of change (ns), to notice a file that changes.
    """

    tensors: tuple[Tensor, ...]
    key_values: tuple[KeyValue, ...]
    alignment: int
    version: int
    data_at: int
    stamp: Stamp


#: Name, number of the type, shape, offset of the data from where all data begins, and bytes. There may be a million:
#: the collector of garbage lets go of tuples that hold only strings and numbers, which halves the time.
_Info = tuple[str, int, tuple[int, ...], int, int]


def read_header(file: FileIO | BytesIO, path: Path) -> Header:
    """Read and check the header of an open file, or of one in memory.

    Parameters
    ----------
    file : FileIO or BytesIO
        Unbuffered; its position changes.
    path : Path
        What messages call it.

    Raises
    ------
    FormatError
        Naming the file, and the tensor where one is at fault.

    Notes
    -----
    The magic, the version, the numbers of tensors and of key-values; these,
    then what each tensor is, then padding and their data:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    stamp = (file.getbuffer().nbytes, 0) if isinstance(file, BytesIO) else stamp_of(file)
    cursor = Cursor(file, path, stamp)
    version, n_tensors, n_key_values = _counts(cursor)
    entries: dict[str, KeyValue] = {}
    for k in range(n_key_values):
        entry = _key_value(cursor, k)
        if entry.key in entries:
            first = list(entries).index(entry.key)
            raise bad_file(path, f"the key {entry.key[:64]!r} is there twice, as key-values {first} and {k}")
        entries[entry.key] = entry
    alignment = _alignment(path, entries.get(ALIGNMENT_KEY))
    most = limits().name_bytes
    infos = [_info(cursor, k, most) for k in range(n_tensors)]
    _check_unique(path, infos)
    data_at = -(-cursor.at // alignment) * alignment
    tensors = _placed(path, infos, alignment, data_at, cursor.size)
    return Header(tensors, tuple(entries.values()), alignment, version, data_at, cursor.stamp)


def _counts(cursor: Cursor) -> tuple[int, int, int]:
    """Return the version, and the numbers of tensors and of key-values."""
    path, size = cursor.path, cursor.size
    cursor.load(min(size, _COUNTS.size))
    begins = bytes(cursor.buffer[:8])
    if begins[:4] != MAGIC:
        what = f"begins with {begins[:4]!r}, not with {MAGIC!r}" if size else "is empty"
        raise bad_file(path, f"the file {what}", "it is no GGUF file")
    _, version, n_tensors, n_key_values = _COUNTS.unpack_from(cursor.buffer, cursor.take(_COUNTS.size, "the header"))
    if version not in VERSIONS:
        if int.from_bytes(begins[4:], "big") in VERSIONS:
            raise bad_file(path, "the file is big-endian", "write it again with gguf-py's gguf_convert_endian.py")
        hint = "versions 2 and 3 are read" + ("; llama.cpp of 2023 converts version 1" if version == 1 else "")
        raise bad_file(path, f"the file claims GGUF version {version}", hint)
    if n_tensors * _LEAST_TENSOR > cursor.left or n_key_values * _LEAST_KEY_VALUE > cursor.left:
        told = f"{n_tensors} tensors and {n_key_values} key-values"
        raise bad_file(path, f"the header claims {told}, {cursor.left} bytes are left", "the file is cut or damaged")
    taken = limits()
    if n_tensors > taken.tensors:
        reason = f"the header names {n_tensors} tensors; at most {taken.tensors} are read"
        raise bad_file(path, reason, to_change("tensors"))
    if n_key_values > taken.key_values:
        reason = f"the header has {n_key_values} key-values; at most {taken.key_values} are read"
        raise bad_file(path, reason, to_change("key_values"))
    return version, n_tensors, n_key_values


def _key_value(cursor: Cursor, k: int) -> KeyValue:
    what = f"the key of key-value {k}"
    n = cursor.length(what)
    if not 1 <= n <= MAX_KEY_BYTES:
        raise cursor.error(what, f"has {n} bytes; 1 to {MAX_KEY_BYTES} are read")
    begin = cursor.take(n, what)
    key = _decoded(cursor, begin, n, what)
    what = f"the value of {key[:64]!r}"
    (kind,) = _KIND.unpack_from(cursor.buffer, cursor.take(4, what))
    begin = cursor.at
    if kind == STRING:
        cursor.take(cursor.length(what), what)
    elif kind == ARRAY:
        _skip_array(cursor, what)
    else:
        cursor.take(_item_bytes(cursor, kind, what), what)
    return KeyValue(key, kind, cursor.bytes(begin, cursor.at))


def _decoded(cursor: Cursor, begin: int, n: int, what: str) -> str:
    try:
        return cursor.buffer[begin : begin + n].decode()
    except UnicodeDecodeError as error:
        raise bad_file(cursor.path, f"at byte {begin + error.start}: {what} is not UTF-8") from None


def _item_bytes(cursor: Cursor, kind: int, what: str) -> int:
    """Return the bytes of a number of a value's type."""
    if kind not in VALUE_TYPES:
        cursor.at -= 4
        raise cursor.error(what, f"has the unknown type {kind}")
    return np.dtype(VALUE_TYPES[kind].dtype).itemsize


def _skip_array(cursor: Cursor, what: str) -> None:
    """Go over an array, once it is known to fit; a vocabulary has 250,000 strings, so that their loop is bare."""
    element, n = _ARRAY_HEAD.unpack_from(cursor.buffer, cursor.take(_ARRAY_HEAD.size, what))
    if element == ARRAY:
        raise cursor.error(what, "is an array of arrays, which ggml does not read either")
    item = 8 if element == STRING else _item_bytes(cursor, element, what)
    if n * item > cursor.left:
        raise cursor.error(what, f"claims {n} items, {cursor.left} bytes are left")
    if element != STRING:
        cursor.take(n * item, what)
        return
    at, loaded, unpack, buffer = cursor.at, len(cursor.buffer), _LENGTH.unpack_from, cursor.buffer
    for k in range(n):
        begin = at + 8
        if begin > loaded:
            cursor.at = at
            cursor.take(8, what)
            loaded = len(buffer)
        at = begin + unpack(buffer, at)[0]
        if at > cursor.size:
            cursor.at = begin - 8
            raise cursor.error(what, f"has a string {k} that claims {at - begin} bytes, {cursor.left - 8} are left")
    cursor.take(at - cursor.at, what)


def is_alignment(alignment: int) -> bool:
    """Whether data may be aligned so."""
    return 1 <= alignment <= limits().alignment and not alignment & (alignment - 1)


def _alignment(path: Path, entry: KeyValue | None) -> int:
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.kind != VALUE_NAMES["u32"]:
        raise bad_file(path, f"{ALIGNMENT_KEY} is of the type {VALUE_TYPES[entry.kind].name}, not u32")
    alignment: int = entry.value
    if not is_alignment(alignment):
        reason = f"{ALIGNMENT_KEY} is {alignment}, no power of two up to {limits().alignment}"
        raise bad_file(path, reason, to_change("alignment") if alignment and not alignment & (alignment - 1) else None)
    return alignment


def _info(cursor: Cursor, k: int, most: int) -> _Info:
    """Read and check what is said of a tensor, but for where its data is."""
    path, buffer, at = cursor.path, cursor.buffer, cursor.at
    if at + _MOST_INFO + most > len(buffer):
        cursor.look_ahead(_MOST_INFO + most)
    try:
        (n,) = _LENGTH.unpack_from(buffer, at)
        if n > most:
            what, fault = f"the name of tensor {k}", f"has {n} bytes; at most {most} are read"
            raise cursor.error(what, fault, None, to_change("name_bytes"))
        (rank,) = _KIND.unpack_from(buffer, at + 8 + n)
        name = _decoded(cursor, at + 8, n, "the name of a tensor")
        if not 1 <= rank <= MAX_RANK:
            raise bad_file(path, f"the tensor has {rank} axes; 1 to {MAX_RANK} are read", layer=name)
        form = _INFOS[rank]
        *axes, number, offset = form.unpack_from(buffer, at + 12 + n)
    except struct.error:
        cursor.load(min(at + _MOST_INFO + most, cursor.size))  # the limit is what is in the way, or the file ends
        what = f"tensor {k}"
        raise cursor.error(what, f"takes more than the {cursor.left} bytes that are left") from None
    cursor.at = at + 12 + n + form.size
    shape = tuple(axes[::-1])
    if 0 in shape:
        raise bad_file(path, f"the shape {list(shape)} has an axis of 0", layer=name)
    kind = GGML_TYPES.get(number)
    if kind is None:
        removed = REMOVED_TYPES.get(number)
        what = f"removed type {removed} ({number})" if removed else f"unknown type {number}"
        hint = "quantize it again with a llama.cpp of today" if removed else "it is of a newer or another ggml"
        raise bad_file(path, f"the tensor has the {what}", hint, name)
    if axes[0] % kind.block:
        reason = f"{kind.name} takes rows of a multiple of {kind.block} weights, these have {axes[0]}"
        raise bad_file(path, reason, layer=name)
    return name, number, shape, offset, math.prod(axes) // kind.block * kind.n_bytes


def _check_unique(path: Path, infos: list[_Info]) -> None:
    if len({name for name, *_ in infos}) == len(infos):
        return
    numbers: dict[str, int] = {}
    for k, (name, *_) in enumerate(infos):
        first = numbers.setdefault(name, k)
        if first != k:
            raise bad_file(path, f"two tensors, {first} and {k}, have this name", layer=name)


def _placed(path: Path, infos: list[_Info], alignment: int, data_at: int, size: int) -> tuple[Tensor, ...]:
    """Return tensors in the order of their data, each within the file and none over another."""
    room = size - data_at
    end, before, tensors = 0, "", []
    for name, number, shape, offset, n_bytes in sorted(infos, key=operator.itemgetter(3)):
        if offset % alignment:
            raise bad_file(path, f"its data begins at {offset}, no multiple of {alignment}", layer=name)
        if offset + n_bytes > room:
            reason = f"its {n_bytes} bytes at {offset} are not within the {max(room, 0)} bytes of data"
            raise bad_file(path, reason, "the file is cut or damaged", name)
        if offset < end:
            raise bad_file(path, f"its data begins at {offset}, inside that of {before[:64]!r}", layer=name)
        end, before = offset + n_bytes, name
        kind = GGML_TYPES[number]
        tensors.append(Tensor(name, kind.name, shape, data_at + offset, data_at + end, 0, kind.block))
    return tuple(tensors)
