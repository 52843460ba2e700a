"""Memory of batches that nobody holds any more, for the next: fresh pages cost twice what reading into them does."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aq2_pipeline import build

if TYPE_CHECKING:
    from aq2_pipeline.weights import Array

__all__ = ["Reused"]

#: Less than that is not worth keeping.
_LEAST_BYTES = 1 << 20


class Reused:
    """Blocks of memory for the batches of one reader.

    A block is free once its array, every view of it and every Arrow array over it are
    gone. So many are kept as were held at the same time, and none for an array that
    is larger, or smaller than half of it.
    """

    def __init__(self) -> None:
        self._free: list[Array] = []

    def empty(self, n: int, dtype: Any) -> Array:
        """Return an array of any content."""
        n_bytes = n * np.dtype(dtype).itemsize
        if n_bytes < _LEAST_BYTES:
            return build.empty(n, dtype)
        block = self._block(n_bytes)
        held = pa.py_buffer(block)  # views of views hold this, too, unlike an array
        weakref.finalize(held, self._free.append, block).atexit = False
        return np.frombuffer(held, dtype, n)

    def _block(self, n_bytes: int) -> Array:
        while self._free:
            block = self._free.pop()
            if n_bytes <= block.size <= 2 * n_bytes:
                return block
        return build.empty(n_bytes, np.uint8)
