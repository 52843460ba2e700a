"""One array over the memory of several, so that kernels read and write many buffers in one job, without a copy.

A window begins at the lowest address of its parts and ends behind the highest.
What lies between them belongs to others: a window is only touched within its
parts, by spans, and never as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["window"]


class _Memory:
    """Memory by its address, which keeps what owns it alive."""

    def __init__(self, address: int, n: int, dtype: np.dtype[Any], parts: Sequence[Any], *, writable: bool) -> None:
        self.parts = parts
        self.__array_interface__ = {
            "version": 3,
            "data": (address, not writable),
            "shape": (n,),
            "typestr": dtype.str,
        }


def window(parts: Sequence[Array], *, writable: bool = False) -> tuple[Array, Array]:
    """Return an array over several contiguous arrays of one dtype, and where each begins in it.

    Parameters
    ----------
    parts : sequence of arrays
        They are kept alive by the window. An empty one begins at 0.
    writable : bool
        Whether the window may be written.

    Returns
    -------
    (array, int64 array)

    Raises
    ------
    ValueError
        If the parts are not a whole number of elements apart.

    Examples
    --------
    >>> a, b = np.arange(3.0), np.arange(5.0)
    >>> whole, starts = window([a, b])
    >>> whole[starts[1] : starts[1] + 5]
    array([0., 1., 2., 3., 4.])
    """
    dtype = parts[0].dtype
    sizes = np.array([part.size for part in parts], np.int64)
    used = sizes > 0
    starts = np.zeros(len(parts), np.int64)
    if not used.any():
        return np.empty(0, dtype), starts
    addresses = np.array([part.__array_interface__["data"][0] for part in parts], np.int64)
    first = int(addresses[used].min())
    apart = addresses[used] - first
    if np.any(apart % dtype.itemsize):
        msg = "the parts are not a whole number of elements apart"
        raise ValueError(msg)
    starts[used] = apart // dtype.itemsize
    n = int((starts[used] + sizes[used]).max())
    return np.asarray(_Memory(first, n, dtype, parts, writable=writable)), starts
