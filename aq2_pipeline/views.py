"""Arrow's binary views, which Polars holds bytes in, as spans of one window over their buffers, without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.windows import window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["VIEW_BYTES", "spans"]

#: What a view takes, and the bytes that it holds by itself.
VIEW_BYTES = 16
_MOST_INLINE = 12


def spans(views: Array, buffers: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Find the bytes of views.

    Parameters
    ----------
    views : uint8 array
        `VIEW_BYTES` a row.
    buffers : sequence of uint8 arrays
        What the longer ones are in.

    Returns
    -------
    (uint8 array, int64 array, int64 array)
        A window over all of it, and where each row begins and ends there; -1 where
        a view is not in its buffer.

    Notes
    -----
    A view is an int32 length, and then up to 12 bytes, or the first four bytes
    and two int32, the buffer and the offset in it (Arrow columnar format,
    "Variable-size Binary View Layout").
    """
    told = views.view("<i4").reshape(-1, 4)
    lengths = told[:, 0].astype(np.int64)
    inline = lengths <= _MOST_INLINE
    parts = [views, *buffers]
    part = np.where(inline, 0, told[:, 2].astype(np.int64) + 1)
    known = (part >= 0) & (part < len(parts)) & (lengths >= 0)
    part[~known] = 0
    starts = np.where(inline, np.arange(4, views.size, VIEW_BYTES), told[:, 3])
    sizes = np.array([one.size for one in parts], np.int64)
    known &= (starts >= 0) & (starts + lengths <= sizes[part])
    values, firsts = window(parts)
    starts = np.where(known, starts + firsts[part], -1)
    return values, starts, np.where(known, starts + lengths, -1)
