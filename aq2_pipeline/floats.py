"""Floats of other widths as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["float32_of"]

_SMALLEST_NORMAL = 2.0**-126
#: Values that a conversion takes at a time, so that it needs no second column.
_BLOCK = 1 << 18


def float32_of(raw: Array, dtype: str | None = None) -> Array:
    """Return floats as float32: exact from float16 and bfloat16 (`dtype` says which of 16 bits), rounded from float64.

    A float64 that does not fit becomes infinite; the result does not depend on the thread's flush-to-zero.
    """
    if dtype == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "f16":
        raw = raw.view(np.float16)
    narrow = np.empty(raw.size, np.float32)
    for start in range(0, raw.size, _BLOCK):
        block, target = raw[start : start + _BLOCK], narrow[start : start + _BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is found
            target[:] = block
        if raw.dtype == np.float64:
            _round_subnormals(block, target)
    return narrow


def _round_subnormals(wide: Array, narrow: Array) -> None:
    """Write the float32 subnormals by their bits: a thread that flushes to zero would lose them.

    The smallest is 2**-149; a subnormal's bits are its multiple of that.
    """
    small = np.flatnonzero((np.abs(wide) < _SMALLEST_NORMAL) & (wide != 0))
    if small.size:
        bits = np.rint(np.abs(wide[small]) * 2.0**149).astype(np.uint32)
        narrow.view(np.uint32)[small] = bits | np.signbit(wide[small]).astype(np.uint32) << 31
