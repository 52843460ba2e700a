"""Signals that stop the command: each becomes an exception, and none is lost.

Python runs a signal's handler wherever the main thread is. If that is the callback of a weak reference or a
`__del__`, nothing can catch what the handler raises: Python prints "Exception ignored in" and goes on, as if nobody
had asked it to stop. Imports have such callbacks. So what was dropped there is raised again, a moment later.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TERMINATED", "stopping"]

#: The exit code of a process that SIGTERM ended.
TERMINATED = 128 + signal.SIGTERM
_RAISED_BY = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
#: Seconds until what was dropped is raised again: callbacks are over by then, nobody has noticed.
_SOON = 0.01


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Make SIGTERM a SystemExit(143), which unwinds; raise it, and a KeyboardInterrupt, again where it was dropped.

    For the main thread of a process that is the command's own: what is set stays set after the block.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.unraisablehook = _raise_again
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # nothing is left to stop


def _raise_again(dropped: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose exception nothing could catch; tell of other exceptions as ever."""
    number = _RAISED_BY.get(dropped.exc_type)
    if number is None or threading.current_thread() is not threading.main_thread():  # handlers run in the main one
        sys.__unraisablehook__(dropped)
        return
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
    signal.setitimer(signal.ITIMER_REAL, _SOON)
