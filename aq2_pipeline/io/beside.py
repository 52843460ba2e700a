"""Reading ahead and writing behind: what waits for a disk goes on beside the kernels, in order."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

__all__ = ["Behind", "read_ahead", "writing_behind"]

T = TypeVar("T")


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
            helper.shutdown()
        finally:
            helper.shutdown()  # again, where an interrupt came into the first


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
    """One job at a time on a thread of its own; the next begins when it is done."""

    def __init__(self, helper: ThreadPoolExecutor) -> None:
        self._helper = helper
        self._at_work: Future[T] | None = None

    def begin(self, job: Callable[[], T]) -> T | None:
        """Wait for the job before, begin this one, and return what that one did, if there was one."""
        done = self.finish()
        self._at_work = _begun(self._helper, job)
        return done

    def finish(self) -> T | None:
        """Wait for the job at work, and return what it did; its error is raised here."""
        at_work, self._at_work = self._at_work, None
        return None if at_work is None else at_work.result()


@contextmanager
def writing_behind() -> Iterator[Behind[Any]]:
    """Give a `Behind`; when the block ends, however it does, nothing runs any more."""
    with _helper("aq2-write") as helper:
        yield Behind(helper)
