"""Codes of 32 weights in 16 bytes, and a fifth bit of each in four more.

Byte j holds the low four bits of weight j's code in its low half and those of
weight j + 16's in its high half; bit j of the little-endian 32-bit word before
them is the fifth bit of weight j (ggml-common.h, block_q4_0 and block_q5_0).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.lanes import load, packed, splat, store, to, unpacked, where

_NIBBLE, _FOUR, _FIFTH = np.int32(15), np.int32(4), np.int32(16)


@helper
def store_nibbles(data: Any, at: Any, low: Any, high: Any) -> None:
    """Write 32 codes of 4 bits, int32 in two vectors."""
    store(data, at, to(low | (high << _FOUR), np.uint8))


@helper
def nibbles(data: Any, at: Any) -> Any:
    """Return 32 codes of 4 bits as two vectors of int32."""
    both = to(load(data, at), np.int32)
    return both & _NIBBLE, both >> _FOUR


@helper
def store_five_bits(data: Any, at: Any, low: Any, high: Any) -> None:
    """Write 32 codes of 5 bits, int32 in two vectors."""
    fifths = packed(low > _NIBBLE) | packed(high > _NIBBLE) << 16
    for i in range(4):
        data[at + i] = np.uint8((fifths >> (8 * i)) & 255)
    store_nibbles(data, at + 4, low & _NIBBLE, high & _NIBBLE)


@helper
def five_bits(data: Any, at: Any) -> Any:
    """Return 32 codes of 5 bits as two vectors of int32."""
    low, high = nibbles(data, at + 4)
    none, fifth = splat(np.int32(0)), splat(_FIFTH)
    first = np.int64(data[at]) | np.int64(data[at + 1]) << 8
    second = np.int64(data[at + 2]) | np.int64(data[at + 3]) << 8
    return low | where(unpacked(first), fifth, none), high | where(unpacked(second), fifth, none)
