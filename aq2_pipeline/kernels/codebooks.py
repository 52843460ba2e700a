"""Codes that stand for values at uneven distances: NF4, and small floats.

NF4 is the table of T. Dettmers et al., "QLoRA" (arXiv 2305.14314), Appendix E, as
bitsandbytes has it: sixteen quantiles of a normal distribution between -1 and 1,
with an exact 0. A weight gets the next value; between two of them the midpoint,
rounded to float32, decides, and belongs to the lower.

FP4 is E2M1, FP8 E4M3 (without infinities) or E5M2: to the nearest, ties to even,
with the largest finite value, 6, 448 or 57344, for the largest magnitude.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.grouped import Kind, grouped_kernels
from aq2_pipeline.kernels.integer import measure
from aq2_pipeline.kernels.lanes import splat, where
from aq2_pipeline.kernels.minifloats import E2M1, E4M3, E5M2, float8_code, float8_value, rounded_to_float8

__all__ = ["NF4", "fp4", "fp8_e4m3", "fp8_e5m2", "measure", "nf4"]

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_VALUES = tuple(np.float32(value) for value in NF4)
_MIDPOINTS = tuple(np.float32((np.float64(a) + np.float64(b)) / 2) for a, b in itertools.pairwise(_VALUES))


@helper
def nf4_code(x: Any) -> Any:
    """Return the index of the value next to each lane."""
    found = splat(np.int32(0))
    for k in range(15):
        found = where(x > _MIDPOINTS[k], splat(np.int32(k + 1)), found)
    return found


@helper
def nf4_value(codes: Any) -> Any:
    """Return the value of each index."""
    found = splat(_VALUES[0])
    for k in range(1, 16):
        found = where(codes == np.int32(k), splat(_VALUES[k]), found)
    return found


@helper
def nf4_nearest(x: Any) -> Any:
    """Return the value next to each lane."""
    found = splat(_VALUES[0])
    for k in range(15):
        found = where(x > _MIDPOINTS[k], splat(_VALUES[k + 1]), found)
    return found


nf4 = grouped_kernels(Kind("nf4", 4, 1.0, 1.0, nf4_code, nf4_value, nf4_nearest, symmetric=False))


def small_float(name: str, bits: int, form: Any) -> Any:
    """Return the kernels of a form of floats."""

    @helper
    def code_of(x: Any) -> Any:
        return float8_code(x, form)

    @helper
    def value_of(codes: Any) -> Any:
        return float8_value(codes, form)

    @helper
    def nearest(x: Any) -> Any:
        return rounded_to_float8(x, form)

    top = float(form.largest)
    return grouped_kernels(Kind(name, bits, top, top, code_of, value_of, nearest, symmetric=True, specials=bits == 8))


fp4, fp8_e4m3, fp8_e5m2 = (
    small_float(*each) for each in (("fp4", 4, E2M1), ("fp8_e4m3", 8, E4M3), ("fp8_e5m2", 8, E5M2))
)
