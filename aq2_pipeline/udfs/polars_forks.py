"""What a fork leaves of Polars: pools without threads, for which a query waits for ever.

A child of a process in which Polars has begun its threads can still do simple eager
work, but its first lazy query or sort hangs, before this package is called. So it is
refused while it is built. A child of a process that only imported Polars begins
threads of its own, and works.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from aq2_pipeline.errors import EngineError

__all__ = ["refuse_after_fork"]

#: How Polars names the threads of its pools; Linux keeps 15 characters.
_THREADS = ("polars-0", "async-executor", "tokio-rt-worker")


class _Threads:
    """Whether Polars has begun its threads, looked up before a fork, and whether a fork has taken them away."""

    def __init__(self) -> None:
        self.begun = False
        self.lost = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self.look, after_in_child=self.inherit)

    def look(self) -> None:
        """See whether they are there; where the system does not tell, they are taken to be."""
        names = []
        try:
            for task in Path("/proc/self/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                    names.append((task / "comm").read_text())
        except OSError:
            self.begun = True
        else:
            self.begun = any(name.startswith(_THREADS) for name in names)

    def inherit(self) -> None:
        """Remember, in the child, that they are gone."""
        self.lost |= self.begun


_threads = _Threads()


def refuse_after_fork(name: str) -> None:
    """Raise where a query could wait for ever.

    Parameters
    ----------
    name : str
        The function that is asked for.

    Raises
    ------
    EngineError
        In a child that was forked when Polars had threads.
    """
    if _threads.lost:
        msg = "this process was forked from one in which Polars had begun its threads, and they are gone"
        hint = (
            'begin processes with multiprocessing.get_context("spawn"), or call '
            f"aq2_pipeline.{name} with pyarrow or NumPy columns; https://docs.pola.rs/user-guide/misc/multiprocessing/"
        )
        raise EngineError(msg, hint).at(function=f"aq2_{name}")
