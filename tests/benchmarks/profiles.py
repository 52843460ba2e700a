"""What explains a side's time: where Python spends it, what a kernel takes beyond one read, what fresh memory costs."""

from __future__ import annotations

import cProfile
import pstats
import statistics
from pathlib import Path

import numpy as np

from tests.benchmarks import kernels, timing


def explain(side, setting):
    """Return lines of text about a side."""
    found = []
    if side.kind in ("kernel", "python", "sql") and side.values is not None:
        found += _beyond_the_read(side, setting)
    if side.kind == "decode":
        found += _rate(side, setting)
    if side.kind == "python":
        found += _own_times(side.call)
        if side.n_written:
            found += _fresh_memory(side.n_written, setting)
    return found


def _median(call, setting):
    return statistics.median(timing.turns([call], setting)[0])


def _rate(side, setting):
    taken = _median(side.call, setting)
    return [f"{side.label}: {side.n_weights / taken / 1e9:.2f} weights/ns on {setting.threads} threads"]


def _beyond_the_read(side, setting):
    """Compare with one pass over the same weights."""
    own, read = (statistics.median(t) for t in timing.turns([side.call, kernels.read_pass(side.values)], setting))
    rate = f"{side.n_weights / own / 1e9:.2f} weights/ns on {setting.threads} threads"
    floor = f"one read on one thread {1e3 * read:.2f} ms of {1e3 * own:.2f} ms"
    return [f"{side.label}: {rate}; {floor} ({read / own:.0%})"]


def _own_times(call, n=5):
    """Return the functions that spend most, by cProfile, this thread's only."""
    profile = cProfile.Profile()
    profile.runcall(call)
    stats = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:n]
    lines = []
    for (file, _line, name), (_, n_calls, own, _, _) in rows:
        where = name if file.startswith("~") else f"{Path(file).name}:{name}"
        lines.append(f"{own / max(stats.total_tt, 1e-12):4.0%} {1e3 * own:8.2f} ms {n_calls:6} calls  {where}")
    return lines


def _fresh_memory(n_bytes, setting):
    """Write as much as the output into memory that is there, and into memory that the kernel has to find first."""
    there = kernels.touched(n_bytes, np.uint8)

    def fresh():
        np.empty(n_bytes, np.uint8).fill(1)

    old, new = (statistics.median(t) for t in timing.turns([lambda: there.fill(1), fresh], setting))
    size = f"writing the output's {n_bytes / 1e6:.1f} MB"
    return [f"{size}: {1e3 * old:.2f} ms into touched memory, {1e3 * new:.2f} ms into fresh memory"]
