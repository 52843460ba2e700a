"""How a peer is measured: it is missing, or does equal work, or the row fails."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks import sides, timing, workloads
from tests.benchmarks.measures import check_equal, compare
from tests.benchmarks.results import MissingError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Weights of the sample on which the peer's decoded values are checked: rows of 4,096.
N_CHECKED_ROWS = 128


@dataclass(frozen=True)
class Bound:
    """No weight may be off by more than `factor` times the largest magnitude of its group; 0 is one group for all."""

    group: int
    factor: float

    def check(self, weights, decoded, label):
        """Raise where a weight is further off."""
        groups = weights.reshape(-1, self.group or weights.size)
        allowed = self.factor * np.abs(groups).max(axis=1, keepdims=True) * 1.001
        off = np.abs(decoded.reshape(groups.shape) - groups)
        assert (off <= allowed).all(), f"{label} is off by {float((off / allowed).max()):.2f} times its format's bound"


@dataclass
class Running:
    """A peer with its input.

    Attributes
    ----------
    call : callable
        What the clock measures.
    decoded : callable
        `decoded(result)` -> (weights, decoded weights), groups along the last axis.
    close : callable
    note : str
        What was chosen for it.
    codes : callable, optional
        `codes(result)`: buffers of the bytes that ours gives, too.
    """

    call: Callable[[], Any]
    decoded: Callable[[Any], tuple[Any, Any]]
    close: Callable[[], None] = lambda: None
    note: str = ""
    codes: Callable[[Any], list] | None = None


def fastest(n, blocks, variant):
    """Return the fastest of `variant(block)`: how much a peer takes at once decides what stays in the cache.

    Parameters
    ----------
    n : int
        What there is to take.
    blocks : tuple of int
        What to try; blocks that take everything are one.
    variant : callable
        `variant(block) -> Running`.
    """
    tried = {block: variant(block) for block in sorted({min(block, n) for block in blocks})}
    if len(tried) > 1:
        taken = {}
        for block, running in tried.items():
            timing.seconds(running.call)  # compiles, and touches
            taken[block] = min(timing.seconds(running.call) for _ in range(2))
        best = min(taken, key=taken.get)
    else:
        best = next(iter(tried))
    for block, running in tried.items():
        if block != best:
            running.close()
    tried[best].note = f"of {', '.join(f'{b:,}' for b in tried)} at once, {best:,} was the fastest"
    return tried[best]


@dataclass(frozen=True)
class Peer:
    """A row of the table of peers.

    Attributes
    ----------
    name, label : str
    packages : tuple of str
        Modules that it needs; the first one's distribution is in `distribution`.
    start : callable
        `start(weights, threads) -> Running`; weights are float32[n_rows, 4096].
    bound : Bound
    bar : float
        How many times as long as ours it must take.
    scheme : str
        Ours.
    work : str
        The workload.
    into : bool
        Whether it writes into memory that is there; then ours is the kernel, which does so too, else `quantize`.
    ours : callable, optional
        The side to compare with, if another.
    config, differs : str
        How it is run; what is not the same work.
    """

    name: str
    label: str
    packages: tuple[str, ...]
    start: Callable[..., Running]
    bound: Bound
    distribution: str = ""
    bar: float = 3.0
    scheme: str = "int4_g128"
    work: str = "M"
    into: bool = False
    ours: Any = None
    config: str = ""
    differs: str = ""


def require(peer):
    """Import what a peer needs; missing says why."""
    for package in peer.packages:
        try:
            importlib.import_module(package)
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            msg = f"{package}: {str(error).splitlines()[0]}"
            raise MissingError(msg) from error


@dataclass(frozen=True)
class Against:
    """Time of a peer over ours."""

    peer: Peer

    def __call__(self, setting, bar):
        """Check on a sample, then measure."""
        peer = self.peer
        require(peer)
        work = workloads.workload(peer.work, setting)
        weights = workloads.values(work, setting).reshape(-1, 4096)
        self._check(weights[:N_CHECKED_ROWS], setting.threads)
        with ExitStack() as stack:
            make = peer.ours or (sides.kernel if peer.into else sides.python)(peer.work, peer.scheme)
            ours = make(setting)
            stack.callback(ours.close)
            running = peer.start(weights, setting.threads)
            stack.callback(running.close)
            theirs = sides.Side(peer.label, running.call, work.n_weights, running.codes)
            check_equal(ours, theirs)
            outcome = compare(ours, theirs, setting, bar)
            outcome.notes += [running.note] if running.note else []
            return outcome

    def _check(self, sample, n_threads):
        running = self.peer.start(sample, n_threads)
        try:
            weights, decoded = running.decoded(running.call())
            self.peer.bound.check(np.ascontiguousarray(weights), np.ascontiguousarray(decoded), self.peer.label)
        finally:
            running.close()
