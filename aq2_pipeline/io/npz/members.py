"""The members of a zip file: where their bytes are, checked against the file and one another.

The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (6.3), sections 4.3.7 (local headers),
4.3.12 (the directory), 4.3.14 to 4.3.16 (its end) and 4.5.3 (64-bit sizes).
"""

from __future__ import annotations

import os
from itertools import pairwise
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import bad_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

__all__ = ["DEFLATED", "STORED", "Member", "list_members"]

STORED, DEFLATED = 0, 8
#: Bytes of a member's data that are read with its header.
AHEAD = 256
#: Bytes that are read at once where members are small: a read takes as long as so many.
_WINDOW = 1 << 14

_LOCAL = Struct("<4s22x2H")
_ENTRY = Struct("<4s4x2H4x3L3H8xL")
_END = Struct("<4s4H2LH")
_END_64, _LOCATOR_64 = Struct("<4s12x2L4Q"), Struct("<4sLQL")
_LARGE, _MANY = 0xFFFFFFFF, 0xFFFF
#: A name in UTF-8, sizes behind the data, and how hard it was compressed: https://en.wikipedia.org/wiki/ZIP_(file_format)
_UTF_8, _FLAGS = 0x800, 0x80E


class Member(NamedTuple):
    """A member of a zip file.

    Attributes
    ----------
    name : str
    method : int
        STORED or DEFLATED.
    crc : int
        The CRC-32 of its data.
    begin, end : int
        Where its bytes are, as they are stored.
    size : int
        Its bytes, when they are not compressed.
    """

    name: str
    method: int
    crc: int
    begin: int
    end: int
    size: int


def list_members(file: FileIO, path: Path, size: int) -> Iterator[tuple[Member, bytes]]:
    """Yield the members in the order of the directory, and how their bytes begin.

    Parameters
    ----------
    file : FileIO
        Unbuffered; its position stays.
    path : Path
        What messages call it.
    size : int
        Its bytes.

    Raises
    ------
    FormatError
        Naming the member where one is at fault; two that share bytes, once all are listed.
    """
    begin, end, count = _directory(file, path, size)
    directory = _read(file, begin, end - begin)
    at, spans, window = 0, [], _Window(file)
    for _ in range(count):
        entry, local, at = _entry(path, directory, at)
        told = window.read(local, min(_LOCAL.size + len(entry.spelling) + AHEAD, max(begin - local, 0)))
        member = _located(path, entry, told, local, begin)
        spans.append((local, member.end, member.name))
        yield member, told[member.begin - local :][: member.end - member.begin]
    if at != len(directory):
        raise bad_file(path, f"{len(directory) - at} bytes follow the last entry of the directory")
    spans.sort()
    for (_, stop, before), (start, _, name) in pairwise(spans):
        if start < stop:
            raise bad_file(path, f"its bytes overlap with those of {before[:64]!r}", layer=name)


class _Window:
    """What was read last of a file: small members follow one another, and many are in one read.

    Parameters
    ----------
    file : FileIO
    """

    def __init__(self, file: FileIO) -> None:
        self._file, self._at, self._text = file, 0, b""

    def read(self, at: int, n: int) -> bytes:
        """Return bytes of a place as `_read` does."""
        skipped = at - self._at
        if not 0 <= skipped <= len(self._text) - n:
            is_near = 0 <= skipped < _WINDOW
            self._at, self._text = at, _read(self._file, at, max(n, _WINDOW) if is_near else n)
            skipped = 0
        return self._text[skipped : skipped + n]


def _read(file: FileIO, at: int, n: int) -> bytes:
    """Return bytes of a place; less only where the file ends, which the caller sees as what is wrong."""
    text = b""
    while len(text) < n and (more := os.pread(file.fileno(), n - len(text), at + len(text))):
        text += more
    return text


def _directory(file: FileIO, path: Path, size: int) -> tuple[int, int, int]:
    """Return where the directory begins and ends, and how many members it has."""
    n = min(size, _END.size + _MANY)
    tail = _read(file, size - n, n)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise bad_file(path, "the file is no zip archive, or is cut: it has no directory", "an .npz file is one")
    _, disk, first_disk, here, count, n_bytes, begin, n_comment = _END.unpack_from(tail, at)
    if at + _END.size + n_comment != len(tail):
        raise bad_file(path, f"{len(tail) - at - _END.size - n_comment} bytes follow the zip archive")
    end = size - n + at
    if _LARGE in {n_bytes, begin} or _MANY in {here, count}:
        told = disk, first_disk, here, count, n_bytes, begin, end
        disk, first_disk, here, count, n_bytes, begin, end = _end_64(file, end) or told
    if disk or first_disk or here != count:
        raise bad_file(path, "zip archives of several parts are not read")
    taken = limits()
    if n_bytes > taken.header_bytes or count > taken.tensors:
        reason = f"the directory claims {count} members in {n_bytes} bytes"
        reason = f"{reason}; at most {taken.tensors} in {taken.header_bytes} are read"
        raise bad_file(path, reason, to_change("tensors" if count > taken.tensors else "header_bytes"))
    if begin + n_bytes != end or count * _ENTRY.size > n_bytes:
        reason = f"the directory claims {count} members in the bytes {begin} to {begin + n_bytes}; it ends at {end}"
        raise bad_file(path, reason, "the file is cut, or has something before or behind the archive")
    return begin, end, count


def _end_64(file: FileIO, end: int) -> tuple[int, ...] | None:
    """Return what the end of a directory says in 64 bits if it does, and where the directory ends."""
    locator = _read(file, end - _LOCATOR_64.size, _LOCATOR_64.size) if end >= _LOCATOR_64.size else b""
    if locator[:4] == b"PK\x06\x07":
        _, _, at, _ = _LOCATOR_64.unpack(locator)
        told = _read(file, at, _END_64.size) if at + _END_64.size + _LOCATOR_64.size <= end else b""
        if told[:4] == b"PK\x06\x06":
            _, disk, first_disk, here, count, n_bytes, begin = _END_64.unpack(told)
            return disk, first_disk, here, count, n_bytes, begin, at
    return None


class _Entry(NamedTuple):
    name: str
    spelling: bytes
    method: int
    crc: int
    n_stored: int
    size: int


def _entry(path: Path, directory: bytes, at: int) -> tuple[_Entry, int, int]:
    """Return what the directory says of a member, where its local header is, and where the next entry is."""
    if directory[at : at + 4] != b"PK\x01\x02" or at + _ENTRY.size > len(directory):
        raise bad_file(path, f"byte {at} of the directory begins no entry")
    _, flags, method, crc, n_stored, size, n_name, n_extra, n_comment, local = _ENTRY.unpack_from(directory, at)
    at += _ENTRY.size
    text = directory[at : at + n_name]
    extra = directory[at + n_name : at + n_name + n_extra]
    at += n_name + n_extra + n_comment
    if at > len(directory):
        raise bad_file(path, "the last entry of the directory is cut")
    try:
        name = text.decode("utf-8" if flags & _UTF_8 else "cp437")
    except UnicodeDecodeError:
        raise bad_file(path, f"the member's name {text[:64]!r} is not UTF-8") from None
    if _LARGE in {n_stored, size, local}:
        size, n_stored, local = _sizes_64(path, extra, (size, n_stored, local), name)
    if flags & ~_FLAGS:
        raise bad_file(path, f"the member is encrypted or patched (flags {flags:#x})", layer=name)
    if method not in (STORED, DEFLATED):
        raise bad_file(path, f"the compression {method} is not read", "store or deflate it", name)
    if method == STORED and n_stored != size:
        raise bad_file(path, f"a stored member has {n_stored} bytes, and {size}", layer=name)
    return _Entry(name, text, method, crc, n_stored, size), local, at


def _sizes_64(path: Path, extra: bytes, told: tuple[int, ...], name: str) -> list[int]:
    """Return sizes of which those that do not fit 32 bits are in an extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, n = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1:
            field = extra[at + 4 : at + 4 + n]
            wide = [int.from_bytes(field[k : k + 8], "little") for k in range(0, len(field) // 8 * 8, 8)]
            if len(wide) >= told.count(_LARGE):
                return [wide.pop(0) if size == _LARGE else size for size in told]
        at += 4 + n
    raise bad_file(path, "the member says that it is large, and not how large", layer=name)


def _located(path: Path, entry: _Entry, told: bytes, local: int, directory: int) -> Member:
    """Return a member with the place of its bytes, which its local header knows, and which is before the directory."""
    begin = end = directory
    if len(told) >= _LOCAL.size:
        magic, n_name, n_extra = _LOCAL.unpack_from(told)
        if magic == b"PK\x03\x04" and told[_LOCAL.size : _LOCAL.size + n_name] == entry.spelling:
            begin = local + _LOCAL.size + n_name + n_extra
            end = begin + entry.n_stored
    if end > directory or begin == directory:
        reason = f"byte {local} does not begin the member, of {entry.n_stored} bytes before the directory"
        raise bad_file(path, reason, "the file is cut, or another", entry.name)
    return Member(entry.name, entry.method, entry.crc, begin, end, entry.size)
