"""Searched scales for symmetric integers: the codes of `kernels.integer`, of which a search may use the lowest, too.

`mse` is the search of `kernels.grouped`; `hqq` is what H. Badri and A. Shaji,
"Half-Quadratic Quantization", comes to where only a scale is free (torchao's
scale-only variant): least-squares steps from the scale of the largest magnitude.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from aq2_pipeline.kernels import integer
from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import ROUND
from aq2_pipeline.kernels.grouped import Kind, finders, method_kernels
from aq2_pipeline.kernels.lanes import maximum, minimum, to

#: Bits -> the scales that `mse` tries, as `kernels.searches` has them: wider codes want fewer weights beyond them.
GRIDS = {
    2: (14, 0.3, 0.06),
    3: (14, 0.45, 0.045),
    4: (12, 0.62, 0.04),
    5: (14, 0.74, 0.022),
    6: (14, 0.84, 0.013),
    7: (14, 0.91, 0.008),
    8: (14, 0.95, 0.004),
}


def signed_kernels(bits: int) -> Any:
    """Return the kernels of one width: `encode_<method>` and `error_<method>`, and those for an importance."""
    lowest, highest = np.float32(-(2 ** (bits - 1))), np.float32(2 ** (bits - 1) - 1)

    @helper
    def nearest(x: Any) -> Any:
        return minimum(maximum((x + ROUND) - ROUND, lowest), highest)

    @helper
    def code_of(x: Any) -> Any:
        return to(nearest(x) - lowest, np.int32)

    top = -float(lowest)
    kind = Kind(f"signed{bits}", bits, top - 1, top, code_of, None, nearest, symmetric=False, group_at=2,
                grid=GRIDS[bits])  # fmt: skip
    codes, find = finders(kind)
    made = method_kernels(codes, {"mse": find["search"], "hqq": find["refit"]})
    return SimpleNamespace(decode=getattr(integer, f"decode{bits}"), **made)


signed2, signed3, signed4, signed5, signed6, signed7, signed8 = map(signed_kernels, range(2, 9))
