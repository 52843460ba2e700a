"""The helper threads of this process: few, shared, and never more at work than the limit.

Kernels release the GIL and are cut into slices, so that an interrupt is answered
between two of them. An engine's own threads call in at the same time; callers
and helpers together never exceed the limit, and a caller that finds it reached,
or no room for another thread, works alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from aq2_pipeline.cores import n_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["run", "set_limit", "thread_limit"]

#: The threads that the pool has at the most; a higher limit queues the rest, which then find little left to do.
_MOST_HELPERS = 256
_limit: int | None = None


def set_limit(n: int | None) -> None:
    """Set the number of threads that may work at once in this process; None goes back to the default."""
    global _limit  # noqa: PLW0603 - a setting of the process
    _limit = n


def thread_limit() -> int:
    """Return the number of threads that may work at once.

    That is what `set_threads` says, else `AQ2_NUM_THREADS`, else the cores that
    this process may use: its affinity, and the quota of its control groups.
    """
    if _limit is not None:
        return _limit
    asked = os.environ.get("AQ2_NUM_THREADS", "").strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if asked:
        _warn_of(asked)
    return n_cores()


@functools.cache
def _warn_of(asked: str) -> None:
    """Warn, once, of a setting that is none; a query must not fail for it in the middle."""
    msg = f"AQ2_NUM_THREADS={asked!r} is no number of threads from 1; the cores of this process are used"
    warnings.warn(msg, RuntimeWarning, stacklevel=2)


class _Pool:
    """The pool of one process; a forked child gets a fresh one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        #: Each call at work -> its threads: one dict entry, which an interrupt finds whole or not at all.
        self.working: dict[_Run, int] = {}

    @property
    def n_working(self) -> int:
        """Callers and helpers at work."""
        return sum(self.working.values())

    def enter(self, run: _Run, limit: int) -> None:
        """Count a call in, and send it the helpers that it may have."""
        with self.lock:
            helpers = max(0, min(limit - self.n_working - 1, len(run.left) - 1))
            self.working[run] = 1 + helpers
            if helpers and self.executor is None:
                self.executor = ThreadPoolExecutor(_MOST_HELPERS, thread_name_prefix="aq2")
            executor = self.executor
        if executor is not None:
            with contextlib.suppress(RuntimeError):  # no room for a thread's stack: the caller works without it
                for _ in range(helpers):
                    executor.submit(run.help)


class _Run:
    """The tasks of one call, and the helpers inside them."""

    def __init__(self, tasks: Iterable[Sequence[Callable[[], None]]]) -> None:
        self.left = deque(tasks)
        self.stopped = False
        self.n_inside = 0
        self.changed = threading.Condition()
        self.errors: list[BaseException] = []

    def drain(self) -> None:
        """Take tasks until none is left."""
        while not self.stopped:
            try:
                task = self.left.popleft()
            except IndexError:
                return
            for step in task:
                if self.stopped:
                    return
                step()

    def help(self) -> None:
        """Do a helper's share; a helper that comes late finds nothing to do, and nobody waits for it."""
        with self.changed:
            if self.stopped or not self.left:
                return
            self.n_inside += 1
        try:
            self.drain()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self.stopped = True
            self.errors.append(error)
        finally:
            with self.changed:
                self.n_inside -= 1
                self.changed.notify_all()

    def wait(self) -> None:
        """Wait until no helper is inside."""
        with self.changed:
            while self.n_inside:
                self.changed.wait()


_pool = _Pool()


def _fresh_pool() -> None:
    global _pool  # noqa: PLW0603 - a child inherits no threads
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_pool)


def run(tasks: Iterable[Sequence[Callable[[], None]]], threads: int | None = None) -> None:
    """Run every task, in any order, on the caller's thread and free helpers.

    Parameters
    ----------
    tasks : iterable of sequences of callables
        Tasks are independent; the steps of one run in order, on one thread,
        each at most a fifth of a second long.
    threads : int, optional
        The most threads to use, the caller's included; default `thread_limit()`.

    Raises
    ------
    BaseException
        What a step raised, or the interrupt, once no step is running any more.
    """
    this, pool = _Run(tasks), _pool
    try:
        pool.enter(this, threads or thread_limit())
        this.drain()
        this.wait()
    except BaseException:
        this.stopped = True
        this.errors.clear()
        raise
    finally:
        try:
            this.wait()  # again, where an interrupt came into the first
        finally:
            pool.working.pop(this, None)
    if this.errors:
        raise this.errors.pop()  # popped: its traceback must not lead back to it
