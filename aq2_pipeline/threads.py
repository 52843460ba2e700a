"""The helper threads of this process: few, shared, and never more at work than the limit.

Kernels release the GIL and are cut into slices, so that an interrupt is answered
between two of them. An engine's own threads call in at the same time; callers
and helpers together never exceed the limit, and a caller that finds it reached
works alone.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["run", "thread_limit"]


def thread_limit() -> int:
    """Return the number of threads that may work at once: `AQ2_NUM_THREADS`, or the cores of this process."""
    asked = os.environ.get("AQ2_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Pool:
    """The pool of one process; a forked child gets a fresh one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.n_working = 0

    def enter(self, limit: int, wanted: int) -> tuple[int, ThreadPoolExecutor | None]:
        """Count the caller in; return the helpers that it may have, and where they run."""
        with self.lock:
            self.n_working += 1
            helpers = max(0, min(limit - self.n_working, wanted))
            self.n_working += helpers
            if not helpers:
                return 0, None
            if self.executor is None:
                self.executor = ThreadPoolExecutor(max_workers=max(limit, 64), thread_name_prefix="aq2")
            return helpers, self.executor

    def leave(self, n: int) -> None:
        """Count workers out."""
        with self.lock:
            self.n_working -= n


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
    left = deque(tasks)
    pool = _pool
    helpers, executor = pool.enter(threads or thread_limit(), len(left) - 1)
    stopped = threading.Event()
    futures = []
    try:
        if executor is not None:
            for _ in range(helpers):
                futures.append(executor.submit(_drain, left, stopped))  # noqa: PERF401 - an interrupt must not lose them
        _drain(left, stopped)
        wait(futures)
    except BaseException:
        stopped.set()
        raise
    finally:
        try:
            wait(futures)  # again, where an interrupt came into the first
        finally:
            pool.leave(1 + helpers)
    for future in futures:
        future.result()


def _drain(left: deque[Sequence[Callable[[], None]]], stopped: threading.Event) -> None:
    while True:
        try:
            task = left.popleft()
        except IndexError:
            return
        for step in task:
            if stopped.is_set():
                return
            try:
                step()
            except BaseException:
                stopped.set()
                raise
