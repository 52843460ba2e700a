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
    own = _median(side.call, setting)
    rate = f"{side.n_weights / own / 1e9:.2f} weights/ns" if own else "-"
    found = [f"{side.label}: {1e3 * own:.2f} ms, {rate}, threads={setting.threads}; of that"]
    phases = dict(side.phases)
    if side.values is not None:
        phases = {"one read of as many weights, one thread": kernels.read_pass(side.values)} | phases
    for label, call in phases.items():
        taken = _median(call, setting)
        found.append(f"  {label}: {1e3 * taken:.2f} ms ({taken / own:.0%})")
    if side.n_written:
        found += _fresh_memory(side.n_written, setting)
    if side.python:
        found += ["  Python's own time, this thread, by cProfile:", *_own_times(side.call)]
    return found


def _median(call, setting):
    return statistics.median(timing.turns([call], setting)[0])


def _own_times(call, n=5):
    """Return the functions that spend most, by cProfile, this thread's only."""
    profile = cProfile.Profile()
    profile.runcall(call)
    stats = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:n]
    lines = []
    for (file, _line, name), (_, n_calls, own, _, _) in rows:
        where = name if file.startswith("~") else f"{Path(file).name}:{name}"
        lines.append(f"    {own / max(stats.total_tt, 1e-12):4.0%} {1e3 * own:8.2f} ms {n_calls:6} calls  {where}")
    return lines


def _fresh_memory(n_bytes, setting):
    """Write as much as the output into memory that is there, and into memory that the kernel has to find first."""
    there = kernels.touched(n_bytes, np.uint8)

    def fresh():
        np.empty(n_bytes, np.uint8).fill(1)

    old, new = (statistics.median(t) for t in timing.turns([lambda: there.fill(1), fresh], setting))
    size = f"  writing the output's {n_bytes / 1e6:.1f} MB"
    return [f"{size}: {1e3 * old:.2f} ms into touched memory, {1e3 * new:.2f} ms into fresh memory"]
