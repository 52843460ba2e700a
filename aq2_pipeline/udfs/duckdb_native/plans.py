"""What bodies without Python read: schemes by number, calls as they were bound, sizes that are known.

Everything here lives as long as the process: engine threads hold addresses of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from aq2_pipeline.functions import Function

_BOUND: dict[tuple[Any, ...], Any] = {}

def bound(function: Function, kinds: tuple[Any, ...], scheme: str | None) -> int:
    key = (function.name, kinds, scheme)
    if key not in _BOUND:
        _BOUND[key] = np.zeros(8, np.int64)
    return int(_BOUND[key].ctypes.data)
