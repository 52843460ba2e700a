"""What a row does when it runs: a ratio of two sides, a peak of memory, a cold start, a flat cost."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aq2_pipeline
from tests.benchmarks import kernels, profiles, sides, timing, workloads
from tests.benchmarks.results import MissingError, Outcome, Timing

if TYPE_CHECKING:
    from collections.abc import Callable


def check_equal(ours, other):
    """Fail where two sides that show their bytes differ in them."""
    if ours.codes is None or other.codes is None:
        return
    found = [sides.digest(side.codes(side.call())) for side in (ours, other)]
    assert found[0] == found[1], f"{ours.label} and {other.label} do not give the same bytes"


@dataclass(frozen=True)
class Ratio:
    """Time of ours over time of the other; the other way round where the bar is a gain."""

    ours: Callable[[timing.Setting], Any]
    other: Callable[[timing.Setting], Any]

    def __call__(self, setting, bar):
        """Measure."""
        with ExitStack() as stack:
            made = []
            for factory in (self.ours, self.other):
                made.append(factory(setting))
                stack.callback(made[-1].close)
            check_equal(*made)
            return compare(*made, setting, bar)


def compare(ours, other, setting, bar, sqnr=None):
    """Return the outcome of two sides' turns; a missed bar brings its profile."""
    times = timing.turns([ours.call, other.call], setting)
    above, below = times if bar.sign == "<=" else reversed(times)
    outcome = Outcome(*timing.ratios(above, below), sqnr=sqnr)
    for side, found in zip((ours, other), times, strict=True):
        outcome.timings.append(Timing(side.label, statistics.median(found), side.n_weights))
    if setting.quick or not bar.met(outcome.value, sqnr):
        outcome.profile = profiles.explain(ours, setting)
        outcome.profile += [] if sqnr is None else [f"  its SQNR: {sqnr:.3f} dB"]
    return outcome


@dataclass(frozen=True)
class Speedup:
    """One thread against two, of the same work."""

    side: Callable[..., Any]

    def __call__(self, setting, bar):
        """Measure."""
        if setting.threads < 2:
            msg = "one core"
            raise MissingError(msg)
        two, one = self.side(n_threads=2)(setting), self.side(n_threads=1)(setting)
        check_equal(two, one)
        return compare(two, one, setting, bar)


@dataclass(frozen=True)
class Flatness:
    """The largest cost of a weight over the least, over columns of 1M to 400M weights."""

    kind: str

    def __call__(self, setting, _bar):
        """Measure."""
        works = workloads.sizes(setting)
        calls = [self._call(work, setting) for work in works]
        times = timing.turns(calls, setting)
        medians = [statistics.median(t) for t in times]
        cost = [t / work.n_weights for t, work in zip(medians, works, strict=True)]
        timings = [Timing(f"{self.kind}, {w.name}", t, w.n_weights) for w, t in zip(works, medians, strict=True)]
        series = {self.kind: [(w.n_weights, t) for w, t in zip(works, medians, strict=True)]}
        profile = [f"{w.name}: {1e9 * c:.3f} ns a weight" for w, c in zip(works, cost, strict=True)]
        flatness = max(cost) / min(cost)  # of medians: a turn's own would be the noise of its noisiest size
        return Outcome(flatness, flatness, flatness, timings, series, profile)

    def _call(self, work, setting):
        if self.kind == "kernel":
            lengths = workloads.lengths(work)
            return kernels.encoder(workloads.values(work, setting), lengths, "int4_g128", setting.threads)
        column = workloads.column(work, setting)
        return lambda: aq2_pipeline.quantize(column, 4, threads=setting.threads)
