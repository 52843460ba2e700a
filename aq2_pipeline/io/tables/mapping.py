"""Files mapped into memory: float32 tensors are columns where they are, without a copy.

A file that shrinks while a column of it lives takes the process down (SIGBUS):
this is for files that nobody else writes, and only on request.
"""

from __future__ import annotations

import mmap
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from aq2_pipeline.io.tables.source import Opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aq2_pipeline.io.tables.parts import Part
    from aq2_pipeline.io.tables.source import Source
    from aq2_pipeline.weights import Array

__all__ = ["Mapped"]


class Mapped(Opened):
    """The files of a source, one mapped at a time; what cannot be taken where it is, is read."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._mapped: tuple[int, Array] | None = None

    def runs(self, parts: Sequence[Part]) -> list[tuple[int, int]]:
        """Return ranges of parts that are one piece of a map, or that are read."""
        breaks = [k for k, (before, after) in enumerate(pairwise(parts), 1) if not _follows(before, after)]
        return list(pairwise([0, *breaks, len(parts)])) if parts else []

    def floats(self, parts: Sequence[Part]) -> Array | None:
        """Return the weights of a run where they are; None where they must be read."""
        if not parts or not _is_plain(parts[0]) or any(not _follows(*two) for two in pairwise(parts)):
            return None
        number, begin = parts[0].tensor.file, parts[0].begin
        self.check(parts[0].tensor)
        if self._mapped is None or self._mapped[0] != number:  # pages stay as long as arrays over them
            content = mmap.mmap(self.file_of(number).fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped = number, np.frombuffer(content, np.uint8)
        end = parts[-1].begin + parts[-1].n_bytes
        return self._mapped[1][begin:end].view(np.float32)


def _is_plain(part: Part) -> bool:
    """Whether its bytes are float32 as kernels take them: maps begin at pages, so its place in the file decides."""
    return part.tensor.dtype == "F32" and part.begin % 4 == 0


def _follows(before: Part, after: Part) -> bool:
    if not _is_plain(before) or not _is_plain(after):
        return _is_plain(before) == _is_plain(after)
    return before.tensor.file == after.tensor.file and before.begin + before.n_bytes == after.begin
