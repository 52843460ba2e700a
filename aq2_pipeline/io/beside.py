"""Reading ahead and writing behind: what waits for a disk goes on beside the kernels, in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

__all__ = ["Behind", "read_ahead", "writing_behind"]

T = TypeVar("T")
#: Jobs that wait at the most, beside the one at work.
_MOST_WAITING = 1


@contextmanager
def read_ahead(items: Generator[T]) -> Iterator[Iterator[T]]:
    """Give the items of a generator, the next of which is made on a thread of its own while one is used.

    What making an item raises comes where that item would. When the block ends, however
    it does, nothing runs any more, and the generator is closed.
    """
    try:
        with _helper("aq2-read") as helper:
            yield _taken(items, helper)
    finally:
        items.close()


@contextmanager
def _helper(name: str) -> Iterator[ThreadPoolExecutor]:
    helper = ThreadPoolExecutor(1, name)
    try:
        yield helper
    finally:
        try:
            helper.shutdown(cancel_futures=True)
        finally:
            helper.shutdown(cancel_futures=True)  # again, where an interrupt came into the first


def _begun(helper: ThreadPoolExecutor, job: Callable[[], T]) -> Future[T]:
    """Begin a job; a thread that cannot start, because of what its stack takes, is a MemoryError."""
    try:
        return helper.submit(job)
    except RuntimeError as error:
        raise MemoryError(*error.args) from None


def _taken(items: Iterator[T], helper: ThreadPoolExecutor) -> Iterator[T]:
    def make() -> list[T]:
        return list(islice(items, 1))

    coming = _begun(helper, make)
    while made := coming.result():
        coming = _begun(helper, make)
        yield made.pop()  # nothing here holds it when the next is asked for


class Behind(Generic[T]):
    """Jobs on a thread of its own, one after the other; a few may wait."""

    def __init__(self, helper: ThreadPoolExecutor) -> None:
        self._helper = helper
        self._waiting: deque[Future[T]] = deque()

    def begin(self, job: Callable[[], T]) -> list[T]:
        """Take a job, once few enough wait, and return what those before it did that are done by now."""
        done = []
        while self._waiting and (len(self._waiting) > _MOST_WAITING or self._waiting[0].done()):
            done.append(self._waiting.popleft().result())
        self._waiting.append(_begun(self._helper, job))
        return done

    def finish(self) -> list[T]:
        """Wait for all jobs, and return what they did; the error of one is raised here."""
        done = []
        while self._waiting:
            done.append(self._waiting.popleft().result())
        return done


@contextmanager
def writing_behind() -> Iterator[Behind[Any]]:
    """Give a `Behind`; when the block ends, however it does, nothing runs any more, and what waits is not begun."""
    with _helper("aq2-write") as helper:
        yield Behind(helper)
