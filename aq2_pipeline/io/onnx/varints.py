"""Numbers that a file has as packed varints, a few at a time: an index of places, and NumPy for the bytes between."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aq2_pipeline.weights import Array

    #: Fill a uint8 array with the bytes from a place on.
    Read = Callable[[int, Array], None]

__all__ = ["Packed", "index_of", "numbers_of"]

#: Numbers between two places that the index has.
STRIDE = 1 << 16
#: Bytes of the file that are decoded at a time: about 40 times as much memory.
BLOCK = 1 << 17
_MAX_BYTES = 10
_LAST = 0x80


class Packed(NamedTuple):
    """Varints of a file.

    Attributes
    ----------
    begin, end : int
        Where they are.
    n : int
        How many there should be.
    """

    begin: int
    end: int
    n: int


def _blocks(read: Read, begin: int, end: int) -> Iterator[tuple[int, Array]]:
    for at in range(begin, end, BLOCK):
        block = np.empty(min(BLOCK, end - at), np.uint8)
        read(at, block)
        yield at, block


def index_of(read: Read, packed: Packed) -> Array:
    """Return where every `STRIDE`-th number begins.

    Raises
    ------
    ValueError
        If there are not as many numbers as there should be.
    """
    found = [np.array([packed.begin], np.int64)]
    seen, last = 0, 0
    for at, block in _blocks(read, packed.begin, packed.end):
        ends = np.flatnonzero(block < _LAST)
        found.append(at + 1 + ends[(-seen - 1) % STRIDE :: STRIDE])
        seen, last = seen + ends.size, int(block[-1])
    if last >= _LAST:
        msg = "the data ends in the middle of a number"
        raise ValueError(msg)
    if seen != packed.n:
        msg = f"the data has {seen} numbers, the shape takes {packed.n}"
        raise ValueError(msg)
    return np.concatenate(found)


def numbers_of(read: Read, packed: Packed, index: Array, first: int, n: int) -> Iterator[Array]:
    """Yield `n` numbers from the `first` on, as uint64, some at a time.

    Raises
    ------
    ValueError
        If a number has more than 64 bits.
    """
    skipped, at = first % STRIDE, int(index[first // STRIDE])
    n += skipped
    while n:
        block = np.empty(min(BLOCK, packed.end - at), np.uint8)
        read(at, block)
        ends = np.flatnonzero(block < _LAST)[:n]
        if not ends.size:
            msg = "a number has more than 64 bits"
            raise ValueError(msg)
        values = _values(block, ends)
        n -= ends.size
        at += int(ends[-1]) + 1
        yield values[min(skipped, values.size) :]
        skipped = max(skipped - values.size, 0)


def _values(block: Array, ends: Array) -> Array:
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    sizes = ends - starts + 1
    values = (block[starts] & 0x7F).astype(np.uint64)
    longest = int(sizes.max())
    if longest > _MAX_BYTES or (longest == _MAX_BYTES and (block[ends[sizes == _MAX_BYTES]] > 1).any()):
        msg = "a number has more than 64 bits"
        raise ValueError(msg)
    for k in range(1, longest):
        more = np.flatnonzero(sizes > k)
        values[more] |= (block[starts[more] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
    return values
