"""How many bytes of a source an engine holds: it is given more when it has let go of some."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from aq2_pipeline.io.tables.reused import Reused

if TYPE_CHECKING:
    from aq2_pipeline.weights import Array

__all__ = ["InFlight"]

#: Bytes that an engine may hold before it is made to wait. Polars' streaming engine reads about fourteen batches ahead
#: of a slow query: 1.5 GB of a model with rows of 64 MB.
LIMIT = 1 << 28
#: Seconds without a byte let go, after which the engine is taken to want everything, as `collect` does.
PATIENCE = 0.5


class InFlight:
    """The arrays of one query that are still held."""

    def __init__(self) -> None:
        self._memory = Reused()
        self._held = 0
        self._changed = threading.Condition()
        self._patient = True

    def empty(self, n: int, dtype: Any) -> Array:
        """Return an array of any content, which counts until nobody holds it."""
        array = self._memory.empty(n, dtype)
        with self._changed:
            self._held += array.nbytes
        weakref.finalize(array, self._let_go, array.nbytes).atexit = False
        return array

    def _let_go(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until little enough is held, or it is clear that more is wanted all the same."""
        with self._changed:
            while self._patient and self._held > LIMIT:
                held = self._held
                self._changed.wait(PATIENCE)
                self._patient = self._held < held
