"""Deflated bytes read a piece at a time, onwards from where the last read ended."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from aq2_pipeline.io.npz.members import Member
    from aq2_pipeline.weights import Array

__all__ = ["Inflated", "first_bytes"]

_COMPRESSED_BYTES = 1 << 16
_PIECE = 1 << 18


def first_bytes(compressed: bytes, n: int) -> bytes:
    """Return at most the first so many bytes of what begins so.

    Raises
    ------
    ValueError
        If it is not deflated.
    """
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(compressed, n)
    except zlib.error as error:
        raise ValueError(str(error)) from None


class Inflated:
    """A deflated member.

    Parameters
    ----------
    member : Member
    read : callable
        Fill a uint8 array with the file's bytes from a place on.
    """

    def __init__(self, member: Member, read: Callable[[int, Array], None]) -> None:
        self.member, self.at = member, 0
        self._read, self._next = read, member.begin
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._pending, self._crc = b"", 0

    def fill(self, begin: int, target: Array) -> None:
        """Fill a uint8 array from a place on that is not before the last read's end.

        Raises
        ------
        ValueError
            If the bytes are not deflated, are too few or too many, or not those of the checksum.
        """
        try:
            while self.at < begin:
                self._piece(begin - self.at)
            done = 0
            while done < target.size:
                piece = self._piece(target.size - done)
                target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
                done += len(piece)
            if self.at == self.member.size:
                self._check_end()
        except zlib.error as error:
            raise ValueError(str(error)) from None

    def _piece(self, n: int) -> bytes:
        """Return the next bytes, at most so many."""
        while True:
            waiting = self._more()
            piece = self._inflater.decompress(waiting, min(n, _PIECE))
            self._pending = self._inflater.unconsumed_tail
            if piece:
                break
            if self._inflater.eof or not waiting:
                msg = f"the compressed data ends {self.member.size - self.at} bytes early"
                raise ValueError(msg)
        self.at += len(piece)
        self._crc = zlib.crc32(piece, self._crc)
        return piece

    def _more(self) -> bytes:
        """Return compressed bytes that wait, or the next ones of the file."""
        if not self._pending and self._next < self.member.end:
            block = np.empty(min(_COMPRESSED_BYTES, self.member.end - self._next), np.uint8)
            self._read(self._next, block)
            self._next += block.size
            self._pending = block.tobytes()
        return self._pending

    def _check_end(self) -> None:
        is_whole = True
        while is_whole and not self._inflater.eof:
            waiting = self._more()
            is_whole = not self._inflater.decompress(waiting, 1) and bool(waiting)
            self._pending = self._inflater.unconsumed_tail
        if not is_whole or self._next != self.member.end or self._inflater.unused_data:
            msg = "the compressed data does not end with its last byte"
            raise ValueError(msg)
        if self._crc != self.member.crc:
            msg = "the data does not have its checksum"
            raise ValueError(msg)
