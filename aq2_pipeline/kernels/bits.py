"""Tricks on the bits of floats, each named once, each a NumPy function with an overload that emits it.

Measured with Numba 0.68 on an AVX-512 core, float32 in cache: `max(m, abs(x))`
does not vectorise (1.8 values/ns); an integer maximum over the sign-masked bits
does (20 values/ns), and NaN and infinity show as `>= INFINITY_BITS` in the same
pass. Adding `ROUND` leaves the nearest integer, ties to even, in the low bits,
exactly, for |x| < 2**22, without a branch or a conversion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from aq2_pipeline.kernels._jit import helper

MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY_BITS = np.int32(0x7F800000)
SMALLEST_NORMAL = np.float32(2.0**-126)
LARGEST = np.float32(np.finfo(np.float32).max)
ROUND = np.float32(1.5 * 2**23)
ROUND_BITS = np.int32(np.float32(1.5 * 2**23).view(np.int32))


def bits_of(x: Any) -> Any:
    """Return the bits of a float32 as an int32."""
    return np.float32(x).view(np.int32)


def float_of(bits: Any) -> Any:
    """Return the float32 that an int32's bits spell."""
    return np.int32(bits).view(np.float32)


def keep_subnormals() -> Any:
    """Switch off flush-to-zero in this thread; return the old state for `restore_subnormals`.

    Another library may have switched it on (`torch.set_flush_denormal`), and
    then a subnormal weight would get another code. NumPy's own state is the
    interpreter's and is left alone.
    """
    return np.int32(0)


def restore_subnormals(state: Any) -> None:
    """Put back what `keep_subnormals` returned."""


def _bitcast(source: Any, target: Any) -> Any:
    @intrinsic
    def cast(_typing: Any, _value: Any) -> Any:
        def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), emit

    return cast


_float_to_int = _bitcast(types.float32, types.int32)
_int_to_float = _bitcast(types.int32, types.float32)

#: Bits 6 (denormals are zero) and 15 (flush to zero) of x86's MXCSR.
_FLUSHING = 1 << 15 | 1 << 6


def _control_word(write: bool) -> Any:  # noqa: FBT001 - a two-sided register access
    """Return an intrinsic that reads (or writes) the SSE control word; nothing elsewhere.

    On other CPUs flush-to-zero is off unless a thread asks for it, and no
    library that this project meets does.
    """

    @intrinsic
    def access(_typing: Any, _state: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            if "x86_64" not in builder.module.triple:
                return args[0]
            word = builder.alloca(ir.IntType(32))
            builder.store(args[0], word)
            pointer = builder.bitcast(word, ir.IntType(8).as_pointer())
            name = "llvm.x86.sse.ldmxcsr" if write else "llvm.x86.sse.stmxcsr"
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            builder.call(function, [pointer])
            return builder.load(word)

        return types.int32(types.int32), emit

    return access


_read_control = _control_word(write=False)
_write_control = _control_word(write=True)


# Numba compares an overload's parameters with its implementation's, annotations included.


@overload(bits_of)
def _bits_of(x: Any) -> Any:
    if x != types.float32:
        return None

    def emit(x: Any) -> Any:
        return _float_to_int(x)

    return emit


@overload(float_of)
def _float_of(bits: Any) -> Any:
    if not isinstance(bits, types.Integer):  # Numba widens int32 arithmetic to int64
        return None

    def emit(bits: Any) -> Any:
        return _int_to_float(np.int32(bits))

    return emit


@overload(keep_subnormals)
def _keep_subnormals() -> Any:
    clear = np.int32(~_FLUSHING)

    def emit() -> Any:
        state = _read_control(np.int32(0))
        _write_control(np.int32(state & clear))
        return state

    return emit


@overload(restore_subnormals)
def _restore_subnormals(state: Any) -> Any:
    del state

    def emit(state: Any) -> Any:
        _write_control(state)

    return emit


@helper
def extent(bits: Any) -> Any:
    """Return the bits of (min, max) of floats, widened to hold 0, by two integer maxima.

    Signed, the largest pattern is the largest float that is not negative;
    unsigned, it is the negative float of the largest magnitude. Both start from
    a zero. A NaN or an infinity shows as a magnitude of `INFINITY_BITS` or more.
    """
    low, high = np.uint32(1 << 31), np.int32(0)
    for j in range(bits.size):
        low = max(low, np.uint32(bits[j]))
        high = max(high, bits[j])
    return np.int32(low), high


@helper
def ordered(bits: Any) -> Any:
    """Map float bits to integers in the floats' order; its own inverse."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & MAGNITUDE))
