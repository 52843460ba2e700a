"""Tensors of a file, and how long ones are cut into the rows of a layer table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["VECTOR_STEP", "Part", "Tensor", "batches_of", "parts_of"]

#: Chunks of a vector are so many weights long, or a multiple: what every block and the usual groups divide, so that
#: their codes are the whole vector's.
VECTOR_STEP = 256


class Tensor(NamedTuple):
    """One tensor of a model.

    Attributes
    ----------
    name : str
        Data, never a path.
    dtype : str
        As safetensors spells it (``F32``, ``BF16``, ``I64``, ...), or a block format of ggml's (``Q4_K``).
    shape : tuple of int
        The slowest axis first.
    begin, end : int
        Where its bytes are, counted from the start of its file.
    file : int
        Which of the source's files holds it.
    block : int
        The weights of a block; a vector is cut between blocks only. Rows are whole blocks.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    file: int = 0
    block: int = 1

    @property
    def n_bytes(self) -> int:
        """The bytes of its data."""
        return self.end - self.begin

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


class Part(NamedTuple):
    """A row of a layer table: a tensor, or a chunk of one.

    Attributes
    ----------
    tensor : Tensor
    start, stop : int
        Its elements.
    chunk : int or None
        Which of the tensor's chunks it is, counted from 0; None for the whole.
    """

    tensor: Tensor
    start: int
    stop: int
    chunk: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its own shape: the tensor's, but for the first axis."""
        if self.chunk is None:
            return self.tensor.shape
        return (self.size // math.prod(self.tensor.shape[1:]), *self.tensor.shape[1:])

    @property
    def size(self) -> int:
        """The number of its elements."""
        return self.stop - self.start

    @property
    def begin(self) -> int:
        """Where its bytes begin in its file; chunks begin at whole rows, and so at whole blocks."""
        if self.chunk is None:
            return self.tensor.begin
        return self.tensor.begin + self.tensor.n_bytes * self.start // self.tensor.size

    @property
    def n_bytes(self) -> int:
        """The bytes of its data."""
        if self.chunk is None:
            return self.tensor.n_bytes
        return self.tensor.n_bytes * self.size // self.tensor.size


def parts_of(tensor: Tensor, chunk_weights: int | None, rows: int = 1, unit: int = 1) -> list[Part]:
    """Cut a tensor along its first axis into chunks of at most so many elements.

    Chunks begin at multiples of `rows` indices, and have at least these; those
    of a vector at multiples of `unit` elements and of `VECTOR_STEP`. A tensor
    that is no longer is whole, and so is one without bytes (strings), and one of
    elements of less than a byte where a chunk would end within a byte.
    """
    size = tensor.size
    if chunk_weights is None or size <= chunk_weights or not tensor.n_bytes:
        return [Part(tensor, 0, size)]
    unit = rows * math.prod(tensor.shape[1:]) if len(tensor.shape) > 1 else math.lcm(unit, VECTOR_STEP)
    step = max(chunk_weights // unit, 1) * unit
    if step >= size or tensor.n_bytes * step % size:
        return [Part(tensor, 0, size)]
    return [Part(tensor, start, min(start + step, size), k) for k, start in enumerate(range(0, size, step))]


def batches_of(sizes: Sequence[int], max_bytes: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose sizes sum to at most so many bytes; a larger row stands alone."""
    first = n_bytes = 0
    for k, size in enumerate(sizes):
        if k > first and (n_bytes + size > max_bytes or k - first >= max_rows):
            yield first, k
            first, n_bytes = k, 0
        n_bytes += size
    if first < len(sizes):
        yield first, len(sizes)
