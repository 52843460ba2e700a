"""How far two versions of the same weights are apart: sums that add up over chunks and layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from aq2_pipeline import threads

if TYPE_CHECKING:
    from aq2_pipeline.weights import Array

__all__ = ["Difference", "decibels", "difference", "of_sums"]

#: Weights that one call into the kernel takes: a whole number of its blocks, 4 ms.
_SLICE = 1 << 22
#: Beyond this ratio of their squares, the product of both is lost in the rounding of the sums.
_RESOLVED = 2.0**-60


@dataclass(frozen=True)
class Difference:
    """Sums over pairs of values, w of the first and d of the second.

    Attributes
    ----------
    size : int
    error, weight, other : float
        The sums of (w - d)^2, w^2 and d^2.
    max_abs : float
        The largest |w - d|.
    """

    size: int = 0
    error: float = 0.0
    weight: float = 0.0
    other: float = 0.0
    max_abs: float = 0.0

    def __add__(self, more: Difference) -> Difference:
        return Difference(
            self.size + more.size,
            self.error + more.error,
            self.weight + more.weight,
            self.other + more.other,
            max(self.max_abs, more.max_abs) if not math.isnan(more.max_abs) else more.max_abs,
        )

    @property
    def mse(self) -> float | None:
        """The mean squared error; None of nothing."""
        return self.error / self.size if self.size else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to noise in decibels, +inf where nothing differs; None of nothing."""
        return decibels(self.weight, self.error) if self.size else None

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between both; 1 where nothing differs, None of nothing, or of one as good as zero."""
        if not self.size:
            return None
        if not self.error:
            return 1.0
        smaller, larger = sorted((self.weight, self.other))
        if not smaller or smaller < _RESOLVED * larger:
            return None
        found = (self.weight + self.other - self.error) / (2 * math.sqrt(self.weight) * math.sqrt(self.other))
        return found if math.isnan(found) else max(-1.0, min(1.0, found))  # sums round


def decibels(signal: float, noise: float) -> float:
    """Return signal to noise in decibels of the sums of their squares; +inf without noise."""
    if not noise:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio else -math.inf


def difference(values: Array, others: Array, n_threads: int | None = None) -> Difference:
    """Compare two float32 arrays of the same size; the sums do not depend on the threads.

    A value that is not finite in either makes them NaN or infinite.
    """
    from aq2_pipeline.kernels import differences, moments  # noqa: PLC0415 - kernels load at their first use

    starts = range(0, values.size, _SLICE)
    sums = np.zeros((len(starts), moments.N_ERROR_SUMS))
    lanes = np.zeros((len(starts), moments.N_ERROR_SUMS * moments.N_LANES))
    first, second = np.ascontiguousarray(values).view(), np.ascontiguousarray(others).view()
    first.flags.writeable = second.flags.writeable = False
    tasks = [
        [partial(differences.difference, first[a : a + _SLICE], second[a : a + _SLICE], lanes[k], sums[k])]
        for k, a in enumerate(starts)
    ]
    threads.run(tasks, n_threads)
    sizes = [min(_SLICE, values.size - start) for start in starts]
    return sum(map(of_sums, sizes, sums), Difference())


def of_sums(size: int, sums: Array) -> Difference:
    """Return the difference of so many pairs, of the sums of `kernels.moments`."""
    error, weight, other, largest = map(float, sums)
    return Difference(size, error, weight, other, error if math.isnan(error) else largest)  # comparisons pass over NaN
