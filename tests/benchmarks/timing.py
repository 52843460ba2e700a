"""Clocks: two sides take turns, so that a busy neighbour hits both; a ratio is the median of the turns' ratios."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """How a row is run.

    Attributes
    ----------
    threads : int
        Threads that both sides may use.
    quick : bool
        Tiny sizes: to see that a row runs, not what it takes.
    runs : int
        Turns.
    shortest : float
        Seconds that a turn lasts at least; a shorter call is repeated in it.
    """

    threads: int
    quick: bool
    runs: int
    shortest: float


def seconds(call, repeats=1):
    """Return what one call takes; a result dies before the next call, the last after the clock has stopped."""
    result = None
    start = time.perf_counter()
    for _ in range(repeats):
        del result  # as in `timeit`: two results at once are twice the memory, and fresh pages
        result = call()
    taken = time.perf_counter() - start
    del result
    return taken / repeats


def repeats_of(call, setting):
    """Return how often a call is repeated in a turn; it has run then, and is warm."""
    seconds(call)
    if not setting.shortest:
        return 1
    return max(1, min(10_000, int(setting.shortest / max(seconds(call), 1e-9)) + 1))


def turns(calls, setting):
    """Return one list of seconds for each call, measured in turns that go forth and back.

    The collector of cycles is off meanwhile, as in `timeit`.
    """
    repeats = [repeats_of(call, setting) for call in calls]
    times = [[] for _ in calls]
    order = list(range(len(calls)))
    gc.collect()
    gc.disable()
    try:
        for _ in range(setting.runs):
            for k in order:
                times[k].append(seconds(calls[k], repeats[k]))
            order.reverse()
    finally:
        gc.enable()
    return times


def ratios(above, below):
    """Return (median, least, largest) of the turns' ratios."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(found), min(found), max(found)
