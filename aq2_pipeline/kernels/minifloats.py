"""Floats of eight bits and fewer: lanes rounded to them, their codes, and what codes spell.

A form has `mantissa_bits` behind the exponent, subnormals below 2**(1 - bias), and
a largest finite value, which larger ones become. All arithmetic is exact: to round
to the form's spacing at a value, 1.5 * 2**23 of these spacings are added and taken
away again, and float32 rounds the sum to the nearest, ties to even.

Sources: OCP 8-bit Floating Point Specification 1.0 (E4M3 has no infinities, and one
NaN; E5M2 is as IEEE 754 has it); OCP Microscaling Formats 1.0 (E2M1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.bits import MAGNITUDE
from aq2_pipeline.kernels.lanes import magnitude, maximum, minimum, reinterpreted, splat, where

_EXPONENT = np.int32(0x7F800000)
_INFINITY, _NAN = np.float32(np.inf), np.float32(np.nan)


class Form(NamedTuple):
    """A form of floats as kernels take it, as a constant."""

    #: How far a float32's bits are above those of the form; its sign, and the form's.
    shift: np.int32
    sign_shift: np.int32
    sign: np.int32
    #: 1.5 * 2**23 spacings of the values from 1 to 2.
    rounder: np.float32
    #: The smallest normal number, its bits, and its code.
    normal: np.float32
    normal_bits: np.int32
    normal_code: np.int32
    largest: np.float32
    #: What the first NaN would be as a number; larger ones are NaNs, and what lies between is infinite.
    first_nan: np.float32


def form(exponent_bits: int, mantissa_bits: int, largest: float, first_nan: float) -> Form:
    """Return the form of a sign, so many bits of exponent, biased by half of its range, and of mantissa."""
    shift, bias = 23 - mantissa_bits, 2 ** (exponent_bits - 1) - 1
    normal = np.float32(2.0 ** (1 - bias))
    return Form(
        shift=np.int32(shift),
        sign_shift=np.int32(31 - exponent_bits - mantissa_bits),
        sign=np.int32(1 << (exponent_bits + mantissa_bits)),
        rounder=np.float32(1.5 * 2**shift),
        normal=normal,
        normal_bits=np.int32(normal.view(np.int32)),
        normal_code=np.int32(1 << mantissa_bits),
        largest=np.float32(largest),
        first_nan=np.float32(first_nan),
    )


E4M3 = form(4, 3, 448, 480)
E5M2 = form(5, 2, 57344, 81920)
E2M1 = form(2, 1, 6, np.inf)


@helper
def rounded_size(size: Any, kind: Any) -> Any:
    """Return the nearest values of a form to what is not negative; the largest, where that is smaller."""
    limited = minimum(size, kind.largest)
    power = reinterpreted(reinterpreted(limited, np.int32) & _EXPONENT, np.float32)
    rounder = maximum(power, kind.normal) * kind.rounder
    return (limited + rounder) - rounder


@helper
def size_code(size: Any, kind: Any) -> Any:
    """Return the codes, as int32, of values of a form that are not negative."""
    subnormal = size < kind.normal
    pattern = reinterpreted(where(subnormal, size + kind.normal, size), np.int32)
    code = (pattern - kind.normal_bits) >> kind.shift
    return where(subnormal, code, code + kind.normal_code)


@helper
def size_of_code(code: Any, kind: Any) -> Any:
    """Return the numbers that codes without a sign spell; those beyond the largest as if they were numbers."""
    subnormal = code < kind.normal_code
    pattern = (where(subnormal, code, code - kind.normal_code) << kind.shift) + kind.normal_bits
    size = reinterpreted(pattern, np.float32)
    return where(subnormal, size - kind.normal, size)


@helper
def rounded_to_float8(vector: Any, kind: Any) -> Any:
    """Return the nearest values of a form, with their signs, that of a zero included."""
    size = reinterpreted(rounded_size(magnitude(vector), kind), np.int32)
    return reinterpreted(size | (reinterpreted(vector, np.int32) & ~MAGNITUDE), np.float32)


@helper
def float8_code(vector: Any, kind: Any) -> Any:
    """Return the codes, as int32, of the nearest values of a form to finite ones."""
    sign = (reinterpreted(vector, np.int32) >> kind.sign_shift) & kind.sign
    return size_code(rounded_size(magnitude(vector), kind), kind) | sign


@helper
def float8_value(code: Any, kind: Any) -> Any:
    """Return what codes, as int32 from 0, spell: numbers, infinities and NaNs."""
    size = size_of_code(code & ~kind.sign, kind)
    special = where(size < kind.first_nan, splat(_INFINITY), splat(_NAN))
    pattern = reinterpreted(where(size > kind.largest, special, size), np.int32)
    return reinterpreted(pattern | ((code & kind.sign) << kind.sign_shift), np.float32)
