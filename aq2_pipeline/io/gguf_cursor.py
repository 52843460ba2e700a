"""The bytes of a header, read in order by bounded reads, each held against the size of the file first."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from aq2_pipeline.io.paths import bad_file, stamp_of

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    from aq2_pipeline.errors import FormatError

__all__ = ["MAX_HEADER_BYTES", "Cursor"]

MAX_HEADER_BYTES = 100_000_000
#: Bytes that one read takes at the least.
_STEP = 1 << 20
_LENGTH = struct.Struct("<Q")


class Cursor:
    """The bytes of a header, which are kept; `at` is where the next ones are.

    Parameters
    ----------
    file : FileIO
        Unbuffered; its position changes.
    path : Path
        What messages call it.
    """

    def __init__(self, file: FileIO, path: Path) -> None:
        self.file, self.path, self.stamp = file, path, stamp_of(file)
        self.size, self.buffer, self.at = self.stamp[0], bytearray(), 0
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
        if end > MAX_HEADER_BYTES:
            raise bad_file(self.path, f"the header has {end} bytes or more; at most {MAX_HEADER_BYTES} are read")
        while len(self.buffer) < end:
            more = self.file.read(max(end - len(self.buffer), _STEP))
            if not more:
                raise bad_file(self.path, f"the file ends after {len(self.buffer)} bytes, in its header")
            self.buffer += more

    def look_ahead(self, n: int) -> None:
        """Have the next n bytes in the buffer, or all that are left."""
        self.load(min(self.at + n, self.size))

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

    def error(self, what: str, fault: str, layer: str | None = None) -> FormatError:
        """Return the error of what is said here."""
        return bad_file(self.path, f"at byte {self.at}: {what} {fault}", "the file is cut or damaged", layer)
