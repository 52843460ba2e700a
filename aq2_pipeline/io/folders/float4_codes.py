"""E2M1 floats in groups with a scale of a byte each, from our rows and ggml's blocks to dense rows of nibbles."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aq2_pipeline.errors import InputValueError

if TYPE_CHECKING:
    from aq2_pipeline.stored import Quantized
    from aq2_pipeline.weights import Array

__all__ = ["GROUPS", "Float4", "float4_of"]

#: Scheme -> weights a group.
GROUPS = {"mxfp4": 32, "nvfp4": 16, "nvfp4_tensor": 16}
#: E4M3's 1, and its NaN; what E8M0 has as NaN, and E4M3 with its sign.
_ONE, _NAN, _ALL_ONES = 0x38, 0x7F, 0xFF
#: The sign bits of both nibbles of a byte.
_SIGNS = 0x88


class Float4(NamedTuple):
    """A row of E2M1 codes.

    Attributes
    ----------
    codes : uint8 array
        Two a byte, the first in the low half.
    scales : uint8 array
        One a group: E8M0 of `mxfp4`, else E4M3.
    scale : float32
        That of the row; 1 of those that have none.
    """

    codes: Array
    scales: Array
    scale: np.float32


def float4_of(held: Quantized, layer: str) -> Float4:
    """Return the codes and scales of a row; zero groups have the scale 1, and codes of 0 with their signs.

    Raises
    ------
    InputValueError
        Naming the layer and the group whose scale is a NaN elsewhere.
    """
    if held.scheme.name == "mxfp4":
        blocks = held.data.reshape(-1, 17)
        _refuse(blocks[:, 0] == _ALL_ONES, "E8M0", layer)
        return Float4(_paired(blocks[:, 1:]), blocks[:, 0], np.float32(1))
    if held.scheme.name == "nvfp4":
        blocks = held.data.reshape(-1, 36)
        scales = blocks[:, :4].reshape(-1)
        _refuse(scales == _ALL_ONES, "E4M3", layer)
        scales = scales & 127  # ggml reads no sign, and 127 as 0
        codes = _paired(blocks[:, 4:].reshape(-1, 8))
        return _without_zeros(codes.reshape(-1, 8), np.where(scales == _NAN, 0, scales), np.float32(1))
    groups = held.data.reshape(-1, 9)
    _refuse(groups[:, 0] & 127 == _NAN, "E4M3", layer)
    scale = held.scales[0] if held.scales.size else np.float32(1)
    zero = scale == 0
    return _without_zeros(groups[:, 1:], groups[:, 0] * np.uint8(not zero), np.float32(1) if zero else scale)


def _refuse(bad: Array, kind: str, layer: str) -> None:
    if bad.any():
        group = int(bad.argmax())
        error = InputValueError(f"the {kind} scale of group {group} is a NaN in other software")
        raise error.at(layer=layer, position=group)


def _paired(halves: Array) -> Array:
    """Return codes side by side that ggml has half a group apart."""
    low, high = halves & 15, halves >> 4
    n = halves.shape[1] // 2
    codes = np.empty_like(halves)
    codes[:, :n] = low[:, 0::2] | low[:, 1::2] << 4
    codes[:, n:] = high[:, 0::2] | high[:, 1::2] << 4
    return codes


def _without_zeros(codes: Array, scales: Array, scale: np.float32) -> Float4:
    zeros = scales & 127 == 0
    if zeros.any():
        scales, codes = np.where(zeros, _ONE, scales).astype(np.uint8), codes.copy()
        codes[zeros] &= _SIGNS
    return Float4(codes, scales, scale)
