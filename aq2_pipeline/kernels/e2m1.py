"""E2M1, a float of four bits: 0, 0.5, 1, 1.5, 2, 3, 4 and 6, bit 3 the sign (OCP Microscaling Formats 1.0, 5.3.3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.lanes import magnitude, splat, where
from aq2_pipeline.kernels.minifloats import E2M1, float8_code, float8_value, rounded_size, size_of_code

#: The same codes for numbers twice as large: 0, 1, 2, 3, 4, 6, 8 and 12.
_DOUBLED = E2M1._replace(normal=np.float32(2), normal_bits=np.int32(1 << 30), largest=np.float32(12))

_ZERO, _EIGHT = np.float32(0), np.int32(8)
_1_4, _1_2, _3_4, _5_4, _7_4, _5_2 = (np.float32(k / 4) for k in (1, 2, 3, 5, 7, 10))
_FOUR, _SIX = np.float32(4), np.float32(6)


@helper
def rounded_to_e2m1(size: Any) -> Any:
    """Return the nearest values to what is not negative, ties to even; 6 of larger ones."""
    return rounded_size(size, E2M1)


@helper
def e2m1_code(vector: Any) -> Any:
    """Return the codes, as int32, of the nearest values, ties to even."""
    return float8_code(vector, E2M1)


@helper
def e2m1_value(code: Any) -> Any:
    """Return what codes, as int32, spell."""
    return float8_value(code, E2M1)


@helper
def doubled_value(code: Any) -> Any:
    """Return twice what codes spell; 0, without a sign, of both zeros."""
    size = size_of_code(code & np.int32(7), _DOUBLED)
    return where(code < _EIGHT, size, _ZERO - size)


@helper
def code_nearest_zero(x: Any, scale: Any) -> Any:
    """Return the codes of the multiples of a scale that are nearest to `x`; of two, that nearer to zero, and no -0.

    Exact, unlike a product with an inverse, because each bound is. Multiples
    that are infinite are out of reach: the bounds before them are infinite.
    """
    size = magnitude(x)
    code = where(size > _1_4 * scale, splat(np.int32(1)), splat(np.int32(0)))
    code = where(size > _3_4 * scale, splat(np.int32(2)), code)
    code = where(size > _5_4 * scale, splat(np.int32(3)), code)
    code = where(size > _7_4 * scale, splat(np.int32(4)), code)
    code = where(size > _5_2 * scale, splat(np.int32(5)), code)
    code = where(size > _FOUR * scale - _1_2 * scale, splat(np.int32(6)), code)
    code = where(size > _SIX * scale - scale, splat(np.int32(7)), code)
    return where(x < _ZERO - _1_4 * scale, code | _EIGHT, code)
