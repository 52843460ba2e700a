"""Integer schemes on their way to other layouts: codes in rows of whole words, scales in other floats.

Our codes are a stream of bits, the lowest first, in which each group begins at a
byte. Where the groups of a matrix row fill their bytes, the row's bytes are a
dense row of words already; else codes are taken out and put together again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aq2_pipeline.errors import InputValueError

if TYPE_CHECKING:
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.stored import Quantized
    from aq2_pipeline.weights import Array

__all__ = [
    "SCALE_DTYPES",
    "Integers",
    "codes_of",
    "integers_of",
    "pack",
    "recoded",
    "rounded",
    "rounded_scales",
    "unpack",
    "without_zeros",
]

#: What scales may be stored in.
SCALE_DTYPES = ("F32", "F16", "BF16")
_NAME = re.compile(r"int([2-8])_(?:g([0-9]+)|channel|tensor)(_asym)?")
_SMALLEST_NORMAL = np.float32(2.0**-126)
#: Weights that are coded again at a time; the rows of a block are a multiple of 8, so that it begins at a byte.
_BLOCK = 1 << 18


class Integers(NamedTuple):
    """What the name of an integer scheme says.

    Attributes
    ----------
    bits : int
    group : int
        Weights; 0 for a matrix row, -1 for the tensor.
    asymmetric : bool
    """

    bits: int
    group: int
    asymmetric: bool

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes."""
        return 1 << (self.bits - 1)


def integers_of(scheme: Scheme | None) -> Integers | None:
    """Return what the scheme is, if it is one of integers without a rotation."""
    match = _NAME.fullmatch(scheme.name) if scheme is not None else None
    if match is None or scheme is None:
        return None
    return Integers(int(match[1]), scheme.group, bool(match[3]))


def unpack(data: Array, n: int, bits: int) -> Array:
    """Return the `n` codes of each row of bytes, one a byte."""
    n_eights = -(-n // 8)
    eights = np.zeros((len(data), n_eights, 8), np.uint8)
    eights[:, :, :bits] = _fitted(data, n_eights * bits).reshape(len(data), n_eights, bits)
    words = eights.view("<u8")
    codes = np.empty((len(data), n_eights, 8), np.uint8)
    for k in range(8):
        codes[:, :, k] = (words[:, :, 0] >> np.uint64(k * bits)) & np.uint64((1 << bits) - 1)
    return codes.reshape(len(data), 8 * n_eights)[:, :n]


def pack(codes: Array, bits: int, n_bytes: int) -> Array:
    """Return rows of codes as rows of so many bytes, dense from the lowest bit on, zeros behind."""
    n_rows, n = codes.shape
    words = np.zeros((n_rows, -(-n // 8)), "<u8")
    for k in range(min(8, n)):
        lane = codes[:, k::8]
        words[:, : lane.shape[1]] |= lane.astype(np.uint64) << np.uint64(k * bits)
    eights = words.view(np.uint8).reshape(n_rows, -1, 8)[:, :, :bits]
    return _fitted(eights.reshape(n_rows, -1), n_bytes)


def _fitted(rows: Array, n_bytes: int) -> Array:
    """Return rows of bytes cut off at, or filled up to, a length."""
    if rows.shape[1] >= n_bytes:
        return rows[:, :n_bytes]
    wide = np.zeros((len(rows), n_bytes), np.uint8)
    wide[:, : rows.shape[1]] = rows
    return wide


def without_zeros(held: Quantized, told: Integers) -> Quantized:
    """Return a row whose zero groups have the scale 1 and the codes of 0: other software divides by scales."""
    zeros = np.flatnonzero(held.scales == 0)
    if not zeros.size:
        return held
    scales, data = held.scales.copy(), held.data.copy()
    scales[zeros] = 1
    size = held.length // held.scales.size
    points, kept = np.full(zeros.size, told.middle, np.float32), held.zero_points
    if told.asymmetric:
        points, kept = np.rint(kept[zeros]), kept.copy()
        kept[zeros] = points
    groups = data.reshape(held.scales.size, -1)
    groups[zeros] = pack(np.repeat(points.astype(np.uint8)[:, None], size, 1), told.bits, groups.shape[1])
    return held._replace(data=data, scales=scales, zero_points=kept)


def codes_of(held: Quantized, told: Integers, columns: int, n_bytes: int) -> Array:
    """Return a row's codes, a row of `n_bytes` bytes for each row of the matrix.

    The groups divide the columns, or are matrix rows, or the tensor.
    """
    n_rows = held.length // columns
    group = told.group if 0 < told.group < columns else columns
    if group * told.bits % 8 == 0 or (group == columns and told.group >= 0):
        return _fitted(held.data.reshape(n_rows, -1), n_bytes)
    packed = np.empty((n_rows, n_bytes), np.uint8)
    step = max(_BLOCK // columns // 8, 1) * 8
    for first in range(0, n_rows, step):
        rows = min(step, n_rows - first)
        if told.group < 0:  # one run of bits
            begin, end = first * columns * told.bits // 8, -(-(first + rows) * columns * told.bits // 8)
            codes = unpack(held.data[None, begin:end], rows * columns, told.bits)
        else:
            size = columns // group * -(-group * told.bits // 8)
            runs = held.data[first * size : (first + rows) * size].reshape(rows * (columns // group), -1)
            codes = unpack(runs, group, told.bits)
        packed[first : first + rows] = pack(codes.reshape(rows, columns), told.bits, n_bytes)
    return packed


def rounded(numbers: Array, dtype: str, layer: str, what: str = "scale") -> tuple[Array, Array]:
    """Return float32 in another float, rounded half to even: as it is stored, and as float32 again.

    Raises
    ------
    InputValueError
        Naming the layer, and the group whose number does not fit.
    """
    stored: Array
    if dtype == "F32":
        stored = found = numbers
    elif dtype == "F16":
        with np.errstate(over="ignore", under="ignore"):
            stored = numbers.astype("<f2")
        found = stored.astype(np.float32)
    else:
        bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
        stored = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
        found = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    bad = np.flatnonzero(np.isinf(found))
    if bad.size:
        group, value = int(bad[0]), float(numbers.reshape(-1)[bad[0]])
        hint = "leave the layer alone" if dtype == "F32" else "take scale_dtype='F32'"
        error = InputValueError(f"the {what} of group {group}, {value!r}, does not fit {dtype}", hint)
        raise error.at(layer=layer, position=group, value=value)
    return stored, found


def rounded_scales(scales: Array, dtype: str, layer: str) -> tuple[Array, Array, Array]:
    """Return scales as they are stored, as float32 again, and whether each is of a zero group: those are 1.

    Raises
    ------
    InputValueError
        Naming the layer and the group, as `rounded` does.
    """
    _, found = rounded(np.where(_underflows(scales), np.float32(0), scales), dtype, layer)
    zeros = _underflows(found)
    return *rounded(np.where(zeros, np.float32(1), found), dtype, layer), zeros


def _underflows(scales: Array) -> Array:
    """Tell which scales make zero groups: their inverse may be no number."""
    return np.asarray(np.abs(scales) < _SMALLEST_NORMAL)


def recoded(weights: Array, told: Integers, scales: Array, offsets: Array, columns: int) -> Array:
    """Return the codes nearest to weights, `w / scale + offset`, as a row of `QUANTIZED` has them.

    Parameters
    ----------
    weights : float32 array
    told : Integers
    scales : float32 array
        One a group, none of them 0; infinite where the code is to be that of 0.
    offsets : float64 array
        The same; whole numbers where they are zero points.
    columns : int
    """
    n_rows, top = weights.size // columns, (1 << told.bits) - 1
    n_groups = columns // told.group if 0 < told.group < columns else 1
    shape = (1, 1) if told.group < 0 else (n_rows, n_groups)
    inverses = np.broadcast_to((1 / scales.astype(np.float64)).astype(np.float32).reshape(shape), (n_rows, n_groups))
    whole = np.rint(offsets)
    wholes, parts = (
        np.broadcast_to(array.astype(np.float32).reshape(shape), (n_rows, n_groups))
        for array in (whole, offsets - whole)
    )
    packed = []
    step = max(_BLOCK // columns // 8, 1) * 8  # whole bytes, where the matrix is one run of bits
    for first in range(0, n_rows, step):
        block = slice(first, first + step)
        steps = weights[first * columns : (first + step) * columns].reshape(-1, n_groups, columns // n_groups)
        with np.errstate(over="ignore"):
            steps = steps * inverses[block, :, None]
        steps += parts[block, :, None]
        np.rint(steps, out=steps)
        steps += wholes[block, :, None]
        np.clip(steps, 0, top, out=steps)
        codes = steps.astype(np.uint8).reshape((1, -1) if told.group < 0 else (-1, steps.shape[2]))
        packed.append(pack(codes, told.bits, -(-codes.shape[1] * told.bits // 8)).reshape(-1))
    return np.concatenate(packed)
