"""Protocol buffers read where they lie: which fields a message has and where their bytes are, in a window of a file.

Values are never collected, so that a message of many gigabytes takes no memory,
and messages are entered by who knows them, never by recursion.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aq2_pipeline.io.paths import bad_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

    from aq2_pipeline.errors import FormatError

__all__ = ["BYTES", "VARINT", "Field", "Wire"]

#: Wire types: https://protobuf.dev/programming-guides/encoding/#structure. Groups (3, 4) are older than ONNX.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED32: 4, FIXED64: 8}
_MAX_TAG = 2**32 - 1
_MAX_VARINT_BYTES = 10
#: Enough for a tag and a length, so that both are in the window.
_MARGIN = 2 * _MAX_VARINT_BYTES
#: Small, as most fields are passed over: the next one that matters is often megabytes away.
_WINDOW = 1 << 14

#: Number, wire type, and the value with 0 or where the bytes begin and end.
Field = tuple[int, int, int, int]


class Wire:
    """A file of one message.

    Parameters
    ----------
    file : FileIO
        Unbuffered; its position stays.
    path : Path
        What messages call it.
    size : int
        Its bytes.
    """

    def __init__(self, file: FileIO, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._number = file.fileno()
        self._base, self._usable, self._data = 0, -1, b""

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message between two places.

        Raises
        ------
        FormatError
            Naming the place of a field that is not whole, or not in the message.
        """
        at = begin
        while at < end:
            if not 0 <= at - self._base <= self._usable:
                self._move(at)
            data, base, first = self._data, self._base, at
            i = at - base
            tag = data[i]
            i += 1
            if tag > 0x7F:  # noqa: PLR2004 - one byte is the rule, and a call takes three times as long
                tag, i = self._varint(i - 1)
            number, kind = tag >> 3, tag & 7
            if kind in (VARINT, BYTES):
                value = data[i]
                i += 1
                if value > 0x7F:  # noqa: PLR2004
                    value, i = self._varint(i - 1)
                at = base + i
                if kind == BYTES:
                    value, at = at, at + value
            elif kind in _FIXED:
                value, at = base + i, base + i + _FIXED[kind]
            else:
                raise self.error(first, f"the wire type {kind} is not one of ONNX")
            if not number or tag > _MAX_TAG:
                raise self.error(first, f"there is no field with the number {number}")
            if at > end:
                raise self.error(first, f"the field {number} ends at byte {at}, its message at {end}")
            yield number, kind, value, at if kind else 0

    def read(self, begin: int, end: int) -> bytes:
        """Return some bytes; who asks knows that they are few."""
        i, n = begin - self._base, end - begin
        if i >= 0 and i + n <= self._usable:
            return self._data[i : i + n]
        text = b""
        while len(text) < n:
            more = os.pread(self._number, n - len(text), begin + len(text))
            if not more:
                raise self.error(begin, f"the file ends {n - len(text)} bytes early")
            text += more
        return text

    def text(self, begin: int, end: int, limit: int, what: str, *hint: str) -> str:
        """Return UTF-8 of at most so many bytes; the hint is that of more."""
        if end - begin > limit:
            raise self.error(begin, f"{what} has {end - begin} bytes; at most {limit} are read", *hint)
        try:
            return self.read(begin, end).decode()
        except UnicodeDecodeError:
            raise self.error(begin, f"{what} is not UTF-8") from None

    def varints(self, begin: int, end: int, limit: int, what: str) -> list[int]:
        """Return packed varints of at most so many bytes."""
        if end - begin > limit:
            raise self.error(begin, f"{what} has {end - begin} bytes; at most {limit} are read")
        values = []
        while begin < end:
            self._move(begin)
            value, i = self._varint(0)
            begin += i
            values.append(value)
        if begin > end:
            raise self.error(end, f"{what} ends in the middle of a number")
        return values

    def error(self, at: int, reason: str, hint: str = "the file is cut, or no ONNX model") -> FormatError:
        """Return the error of a place."""
        return bad_file(self.path, f"at byte {at}: {reason}", hint)

    def _move(self, at: int) -> None:
        """Put the window at a place; what is behind the end of the file is zeros."""
        n = min(_WINDOW + _MARGIN, self.size - at)
        data = os.pread(self._number, n, at)
        if len(data) < n:  # a read may be short
            self._usable = -1
            data = self.read(at, at + n)
        is_last = at + n == self.size
        self._data = data + bytes(_MARGIN) if is_last else data
        self._base, self._usable = at, n - 1 if is_last else n - _MARGIN

    def _varint(self, i: int) -> tuple[int, int]:
        """Return the number at a place of the window, and where it ends."""
        value = 0
        for k in range(_MAX_VARINT_BYTES):
            byte = self._data[i + k]
            value |= (byte & 0x7F) << 7 * k
            if byte <= 0x7F:  # noqa: PLR2004
                if value >> 64:
                    break
                return value, i + k + 1
        raise self.error(self._base + i, "a number has more than 64 bits")
