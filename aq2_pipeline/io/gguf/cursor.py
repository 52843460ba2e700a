"""The bytes of a header, read in order by bounded reads, each held against the size of the file first."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import bad_file

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from aq2_pipeline.errors import FormatError
    from aq2_pipeline.io.paths import Stamp

__all__ = ["Cursor"]

#: Bytes that one read takes at the least.
_STEP = 1 << 20
_LENGTH = struct.Struct("<Q")


class Cursor:
    """The bytes of a header, which are kept; `at` is where the next ones are.

    Parameters
    ----------
    file : BinaryIO
        Unbuffered; its position changes.
    path : Path
        What messages call it.
    stamp : tuple of int
        Its size in bytes, and the time of its change.
    """

    def __init__(self, file: BinaryIO, path: Path, stamp: Stamp) -> None:
        self.file, self.path, self.stamp = file, path, stamp
        self.size, self.buffer, self.at = self.stamp[0], bytearray(), 0
        self.most = limits().header_bytes
        file.seek(0)

    @property
    def left(self) -> int:
        """The bytes of the file from here on."""
        return self.size - self.at

    def take(self, n: int, what: str, layer: str | None = None) -> int:
        """Go over n bytes, which are in the buffer then; return where they begin."""
        begin, end = self.at, self.at + n
        if end > len(self.buffer):
            if end > self.size:
                raise self.error(what, f"takes {n} bytes, {self.left} are left", layer)
            self.load(end)
        self.at = end
        return begin

    def load(self, end: int) -> None:
        """Read on until the buffer holds the file up to some byte."""
        if end > self.most:
            reason = f"the header has {end} bytes or more; at most {self.most} are read"
            raise bad_file(self.path, reason, to_change("header_bytes"))
        while len(self.buffer) < end:
            n = len(self.buffer)
            more = self.file.read(min(max(end - n, _STEP), self.most - n))
            if not more:
                raise bad_file(self.path, f"the file ends after {len(self.buffer)} bytes, in its header")
            self.buffer += more

    def look_ahead(self, n: int) -> None:
        """Have the next n bytes in the buffer, or all that are left of the file or of the limit."""
        self.load(min(self.at + n, self.size, self.most))

    def length(self, what: str) -> int:
        """Return a count of bytes that follow, which are in the file."""
        (n,) = _LENGTH.unpack_from(self.buffer, self.take(8, what))
        if n > self.left:
            self.at -= 8
            raise self.error(what, f"claims {n} bytes, {self.left - 8} are left")
        return int(n)

    def bytes(self, begin: int, end: int) -> bytes:
        """Return a copy of bytes gone over."""
        return bytes(memoryview(self.buffer)[begin:end])

    def error(
        self, what: str, fault: str, layer: str | None = None, hint: str = "the file is cut or damaged"
    ) -> FormatError:
        """Return the error of what is said here."""
        return bad_file(self.path, f"at byte {self.at}: {what} {fault}", hint, layer)
