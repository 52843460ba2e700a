"""NVFP4 with one float32 scale for the whole row, as NVIDIA's format has it: E2M1 codes in groups of 16.

A group takes nine bytes: its scale, E4M3 (OCP; NaN is refused), and eight of codes,
byte j with that of weight 2 j in its low half and that of 2 j + 1 in its high half.
`scales` holds the row's scale, `max|w| / (6 * 448)`. In float32,

    group = e4m3 * scale,    weight = e2m1 * group.

compressed-tensors (nvfp4-pack-quantized) has the nine bytes apart, as `weight_scale`
and `weight_packed`, and the scale's inverse as `weight_global_scale`.

`reference` stores `e4m3((6 * 448) / max|w| * max|w of the group| / 6)`, and codes of
`w / group`, both rounded to the nearest, ties to even. `search` tries the E4M3 codes
beside that one, and keeps the smallest squared error of what is stored. A row whose
scale is below the smallest normal float32 is stored as zeros. `params` is empty, but
of a slice of a long row it is the whole row's extent, as `measure` finds it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import DECODE, ENCODE, ERROR, helper, kernel
from aq2_pipeline.kernels.bits import INFINITY_BITS, MAGNITUDE, SMALLEST_NORMAL, float_of
from aq2_pipeline.kernels.blocks.columns import SURELY, ZERO, inverse_or_zero, turn_16
from aq2_pipeline.kernels.blocks.frame import fill_batch, fill_weights, with_block
from aq2_pipeline.kernels.e2m1 import e2m1_code, e2m1_value, rounded_to_e2m1
from aq2_pipeline.kernels.grouped import extent_at
from aq2_pipeline.kernels.integer import first_bad, measure
from aq2_pipeline.kernels.lanes import (
    LANES,
    load,
    local,
    magnitude,
    maximum,
    minimum,
    only_read,
    splat,
    store,
    to,
    where,
)
from aq2_pipeline.kernels.minifloats import E4M3, float8_value, rounded_size, size_code, size_of_code
from aq2_pipeline.kernels.moments import BLOCK_SIZE, flushed, keep_wide_lanes, wide_lanes_of
from aq2_pipeline.kernels.staging import finite, lanes_from, store_lanes

__all__ = ["GROUP", "N_BYTES", "kernels", "measure"]

#: Weights and bytes of a group; a batch of them fills the lanes.
GROUP, N_BYTES, BATCH = 16, 9, 16
_SIZE, _SIZE_BYTES = BATCH * GROUP, BATCH * N_BYTES

_SIX, _HIGHEST, _LAST = np.float32(6), np.float32(6 * 448), np.int32(126)
_INFINITY, _NAN = np.float32(np.inf), np.int32(127)
_EXPONENT, _TWICE_253, _SMALLEST_POWER = np.int32(255 << 23), np.int32(253 << 23), np.int32(1 << 23)

#: Codes tried, from that of the reference on: scales that cut off the largest weight, or make it a 4 (half as large
#: again: five codes) rather than a 6.
_FROM, _TO = -2, 7


@helper
def row_scale(low: Any, high: Any) -> Any:
    """Return (scale, its inverse, power) from the bits of (min, max); a scale of -1 if they are not finite.

    The power of two brings the largest weight near 1: squares of what is lost neither
    overflow nor vanish, and products with it are exact.
    """
    size = max(high, np.int32(low & MAGNITUDE))
    if size >= INFINITY_BITS:
        return np.float32(-1), ZERO, ZERO
    scale = float_of(size) / _HIGHEST
    if scale < SMALLEST_NORMAL:
        return ZERO, ZERO, ZERO
    power = max(_TWICE_253 - (size & _EXPONENT), _SMALLEST_POWER)
    return scale, _HIGHEST / float_of(size), float_of(power)


@helper
def reference_codes(columns: Any, inverse: Any) -> Any:
    """Return the code of each lane's E4M3 scale, which makes its largest magnitude a 6."""
    size = splat(ZERO)
    for i in range(0, columns.size, LANES):
        size = maximum(size, magnitude(load(columns, i)))
    return size_code(rounded_size(size * inverse / _SIX, E4M3), E4M3)


@helper
def _squares(sizes: Any, weights: Any, group: Any, power: Any) -> Any:
    """Return each lane's squared error, times a power; `sizes` are magnitudes times it."""
    inverse, error = inverse_or_zero(group * power), splat(ZERO)
    for i in range(0, sizes.size, LANES):
        size = load(sizes, i)
        lost = rounded_to_e2m1(size * inverse) * group * power - size
        error = error + (lost * lost if weights is None else lost * lost * load(weights, i))
    return error


@helper
def searched_codes(columns: Any, weights: Any, scale: Any, inverse: Any, power: Any) -> Any:
    """Return the codes of the scales of the smallest errors: the reference's unless another is surely better."""
    first = reference_codes(columns, inverse)
    for i in range(0, columns.size, LANES):
        store(columns, i, magnitude(load(columns, i)) * power)
    best = first
    error = _squares(columns, weights, size_of_code(first, E4M3) * scale, power) * SURELY
    for step in range(_FROM, _TO):
        code = minimum(maximum(first + np.int32(step), np.int32(1)), _LAST)
        tried = _squares(columns, weights, size_of_code(code, E4M3) * scale, power)
        better = tried < error
        best, error = where(better, code, best), where(better, tried, error)
    return best


@helper
def write_groups(values: Any, codes: Any, scale: Any, data: Any) -> None:
    """Write 16 groups with the E4M3 scales of these codes."""
    groups, bytes_of_scales = local(BATCH, np.float32), local(BATCH, np.uint8)
    group = size_of_code(codes, E4M3) * scale
    store(groups, 0, where(group == ZERO, splat(_INFINITY), group))  # of either, all codes are 0
    store(bytes_of_scales, 0, to(codes, np.uint8))
    for k in range(BATCH):
        data[N_BYTES * k] = bytes_of_scales[k]
        store_lanes(e2m1_code(load(values, GROUP * k) / groups[k]), data, N_BYTES * k + 1, 4)


@helper
def reference(values: Any, weights: Any, scale: Any, inverse: Any, power: Any, data: Any) -> None:
    """Encode 16 groups, the largest magnitude of each as 6."""
    columns = local(_SIZE, np.float32)
    turn_16(values, columns)
    write_groups(values, reference_codes(columns, inverse), scale, data)


@helper
def search(values: Any, weights: Any, scale: Any, inverse: Any, power: Any, data: Any) -> None:
    """Encode 16 groups with the scales of the smallest squared error among those near the reference's."""
    columns = local(_SIZE, np.float32)
    turn_16(values, columns)
    if weights is None:
        write_groups(values, searched_codes(columns, None, scale, inverse, power), scale, data)
    else:
        importance = local(_SIZE, np.float32)
        turn_16(weights, importance)
        write_groups(values, searched_codes(columns, importance, scale, inverse, power), scale, data)


@helper
def decode_groups(data: Any, scale: Any, values: Any) -> Any:
    """Read at most 16 groups; return the position of a group whose scale is a NaN, or -1."""
    codes, groups = local(BATCH, np.int32), local(BATCH, np.float32)
    n = values.size // GROUP
    for k in range(BATCH):
        codes[k] = np.int32(data[N_BYTES * k]) if k < n else np.int32(0)
        if codes[k] & np.int32(127) == _NAN:
            return k * GROUP
    store(groups, 0, finite(float8_value(load(codes, 0), E4M3) * scale))
    for k in range(n):
        found = e2m1_value(lanes_from(data, N_BYTES * k + 1, 4))
        store(values, GROUP * k, finite(found * groups[k]))
    return -1


def encoder(method: str, encode_some: Any, *, weighted: bool) -> Any:
    """Return the kernel that encodes by a method."""

    @kernel(ENCODE, f"nvfp4_tensor encode {method}{'_weighted' * weighted}")
    def encode(
        values: Any, row_length: Any, params: Any, importance: Any, data: Any, scales: Any, zero_points: Any
    ) -> Any:
        staging, weights, spare = local(_SIZE, np.float32), local(_SIZE, np.float32), local(_SIZE_BYTES, np.uint8)
        least, most = extent_at(values.view(np.int32), params, -1)
        scale, inverse, power = row_scale(least, most)
        if scale < ZERO:
            return first_bad(values, 0)
        if scales.size > 0:
            scales[0] = scale
        for start in range(0, values.size, _SIZE):
            at = start // GROUP * N_BYTES
            n = min(_SIZE, values.size - start)
            if weighted:
                fill_weights(importance, start, n, GROUP, weights)
            given = weights if weighted else None
            if n == _SIZE:
                encode_some(values[start : start + n], given, scale, inverse, power, data[at : at + _SIZE_BYTES])
            else:
                fill_batch(values[start:], staging)
                encode_some(only_read(staging), given, scale, inverse, power, spare)
                for k in range(data.size - at):
                    data[at + k] = spare[k]
        return -1

    return encode


def error(method: str, encode_some: Any, *, weighted: bool) -> Any:
    """Return the kernel that sums the errors of what `encoder` writes."""

    @kernel(ERROR, f"nvfp4_tensor error {method}{'_weighted' * weighted}")
    def error(values: Any, position: Any, row_length: Any, params: Any, importance: Any, lanes: Any, sums: Any) -> Any:
        staging, weights, data = local(_SIZE, np.float32), local(_SIZE, np.float32), local(_SIZE_BYTES, np.uint8)
        decoded, held = local(_SIZE, np.float32), wide_lanes_of(lanes)
        least, most = extent_at(values.view(np.int32), params, -1)
        scale, inverse, power = row_scale(least, most)
        if scale < ZERO:
            return first_bad(values, 0)
        for start in range(0, values.size, _SIZE):
            own = values[start : min(start + _SIZE, values.size)]
            if weighted:
                fill_weights(importance, start, own.size, GROUP, weights)
            fill_batch(own, staging)
            encode_some(only_read(staging), weights if weighted else None, scale, inverse, power, data)
            decode_groups(data, scale, decoded)
            for low in range(0, own.size, GROUP):
                first = (start + low) % importance.size if weighted else 0
                given = importance if weighted else None
                held = with_block(held, own[low : low + GROUP], decoded[low : low + GROUP], given, first)
                if (position + start + low + GROUP) % BLOCK_SIZE == 0:
                    held = flushed(held, lanes, sums)
        keep_wide_lanes(held, lanes)
        return -1

    return error


@kernel(DECODE, "nvfp4_tensor decode")
def decode(data: Any, scales: Any, zero_points: Any, row_length: Any, params: Any, values: Any) -> Any:
    """Read a row, or a slice of one; status as of every decoder."""
    for start in range(0, values.size, _SIZE):
        stop = min(start + _SIZE, values.size)
        status = decode_groups(data[start // GROUP * N_BYTES :], scales[0], values[start:stop])
        if status >= 0:
            return start + status
    return -1


def _kernels() -> Any:
    """Return `decode`, and for each method `encode_<method>` and `error_<method>`, both for an importance, too."""
    made = {}
    for method, encode_some, weightings in (("search", search, (False, True)), ("reference", reference, (False,))):
        for weighted in weightings:
            told = method + "_weighted" * weighted
            made[f"encode_{told}"] = encoder(method, encode_some, weighted=weighted)
            made[f"error_{told}"] = error(method, encode_some, weighted=weighted)
    return SimpleNamespace(decode=decode, **made)


kernels = _kernels()
