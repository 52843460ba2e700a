"""The loops that every block format shares: over batches of blocks, with or without an importance.

A format is three kinds of functions, which `block_kernels` makes kernels of:

- `encode(values, weights, data) -> status` writes a batch of blocks, one for each
  way to find their codes. Values are finite, weights are None or their importance,
  at most 1 in each block and not all 0; what a block becomes depends on the block
  alone. The status is -1, or a block of the batch whose scale fits no float16.
- `decode(data, values) -> status` reads one block; the status is -1, or the
  position of a value that is not finite.

A batch fills vectors: lane k works on the k-th block, or part of one. The last
batch of a row is made up with blocks of zeros.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from aq2_pipeline.kernels._jit import DECODE, ENCODE, ERROR, helper, inlined, kernel
from aq2_pipeline.kernels.bits import INFINITY_BITS, MAGNITUDE
from aq2_pipeline.kernels.integer import first_bad
from aq2_pipeline.kernels.lanes import LANES, load, local, only_read, to
from aq2_pipeline.kernels.moments import BLOCK_SIZE, flushed, keep_wide_lanes, wide_lanes_of, with_exact_errors


@helper
def largest_magnitude(pattern: Any) -> Any:
    """Return the largest magnitude among the bits of floats; of a NaN or an infinity, `INFINITY_BITS` or more."""
    found = np.int32(0)
    for j in range(pattern.size):
        found = max(found, np.int32(pattern[j] & MAGNITUDE))
    return found


@helper
def furthest_from_zero(values: Any) -> Any:
    """Return the position of the first value of the largest magnitude."""
    found = 0
    for j in range(values.size):
        if abs(values[j]) > abs(values[found]):
            found = j
    return found


@helper
def fill_batch(values: Any, target: Any) -> None:
    """Copy the values that are left, and zeros behind them."""
    for j in range(target.size):
        target[j] = values[j] if j < values.size else np.float32(0)


@helper
def fill_weights(importance: Any, start: Any, n: Any, block: Any, target: Any) -> None:
    """Write the importance of `n` weights from `start` on, each block scaled to at most 1; 1 where all of it is 0.

    An importance as long as a matrix row begins anew with each of them, and a
    block lies within one. The same factor on a whole block changes no choice.
    """
    for low in range(0, target.size, block):
        first = (start + low) % importance.size if low < n else 0
        largest = np.float32(0)
        for j in range(block):
            largest = max(largest, importance[first + j])
        for j in range(block):
            target[low + j] = importance[first + j] / largest if largest > 0 and low < n else np.float32(1)


@inlined
def encode_batch(
    encode: Any, values: Any, importance: Any, start: Any, block: Any, weights: Any, staging: Any, data: Any, spare: Any
) -> Any:
    """Encode the batch of blocks that begins at `start` into `data`; return the position of a bad value, or -1.

    `staging` and `spare` have room for the values and the bytes of a whole batch:
    the last batch of a row is made up and encoded there.
    """
    n = min(staging.size, values.size - start)
    own = values[start : start + n]
    pattern = own.view(np.int32)
    if largest_magnitude(pattern) >= INFINITY_BITS:
        return first_bad(own, start)
    if importance is not None:
        fill_weights(importance, start, n, block, weights)
    if n == staging.size:
        status = encode(own, None, data) if importance is None else encode(own, weights, data)
    else:
        fill_batch(own, staging)
        whole = only_read(staging)
        status = encode(whole, None, spare) if importance is None else encode(whole, weights, spare)
        for k in range(data.size):
            data[k] = spare[k]
    if status < 0:
        return -1
    return start + status * block + furthest_from_zero(own[status * block : (status + 1) * block])


@helper
def with_block(sums: Any, values: Any, decoded: Any, importance: Any, first: Any) -> Any:
    """Return the lanes of each sum with a block more, each value's squares times its importance."""
    for j in range(0, values.size, LANES):
        given = None if importance is None else to(load(importance, first + j), np.float64)
        sums = with_exact_errors(sums, load(values, j), load(decoded, j), given)
    return sums


def block_kernels(name: str, block: int, n_bytes: int, batch: int, encoders: dict[str, Any], decode: Any) -> Any:
    """Return the kernels of a format.

    Parameters
    ----------
    name : str
        The format's, which tells its kernels apart in the cache.
    block, n_bytes : int
        Weights and bytes a block.
    batch : int
        Blocks that are encoded at once.
    encoders : dict
        Method -> the function that encodes a batch.
    decode : function
        What decodes a block.

    Returns
    -------
    namespace
        `decode`, and for each method `encode_<method>` and `error_<method>`, both
        also with `_weighted` behind, for rows with an importance.
    """
    kernels = {"decode": _decoder(name, block, n_bytes, decode)}
    for method, encode in encoders.items():
        for weighted in (False, True):
            suffix = method + "_weighted" * weighted
            told = f"{name} {suffix}"
            kernels[f"encode_{suffix}"] = _encoder(told, block, n_bytes, batch, encode, weighted=weighted)
            kernels[f"error_{suffix}"] = _error(told, block, n_bytes, batch, encode, decode, weighted=weighted)
    return SimpleNamespace(**kernels)


def _encoder(name: str, block: int, n_bytes: int, batch: int, encode_some: Any, *, weighted: bool) -> Any:
    size, size_bytes = batch * block, batch * n_bytes

    @kernel(ENCODE, f"{name} encode")
    def encode(
        values: Any, row_length: Any, params: Any, importance: Any, data: Any, scales: Any, zero_points: Any
    ) -> Any:
        staging, weights, spare = local(size, np.float32), local(size, np.float32), local(size_bytes, np.uint8)
        at = 0
        for start in range(0, values.size, size):
            end = min(at + size_bytes, data.size)
            given = importance if weighted else None
            status = encode_batch(encode_some, values, given, start, block, weights, staging, data[at:end], spare)
            if status >= 0:
                return status
            at = end
        return -1

    return encode


def _decoder(name: str, block: int, n_bytes: int, decode_block: Any) -> Any:
    @kernel(DECODE, f"{name} decode")
    def decode(data: Any, scales: Any, zero_points: Any, row_length: Any, params: Any, values: Any) -> Any:
        for k in range(values.size // block):
            status = decode_block(data[k * n_bytes : (k + 1) * n_bytes], values[k * block : (k + 1) * block])
            if status >= 0:
                return k * block + status
        return -1

    return decode


def _error(
    name: str, block: int, n_bytes: int, batch: int, encode_some: Any, decode_block: Any, *, weighted: bool
) -> Any:
    size, size_bytes = batch * block, batch * n_bytes

    @kernel(ERROR, f"{name} error")
    def error(values: Any, position: Any, row_length: Any, params: Any, importance: Any, lanes: Any, sums: Any) -> Any:
        staging, weights, spare = local(size, np.float32), local(size, np.float32), local(size_bytes, np.uint8)
        data, decoded, held = local(size_bytes, np.uint8), local(block, np.float32), wide_lanes_of(lanes)
        for start in range(0, values.size, size):
            given = importance if weighted else None
            stop = min(start + size, values.size)
            own = data[: (stop - start) // block * n_bytes]
            status = encode_batch(encode_some, values, given, start, block, weights, staging, own, spare)
            if status >= 0:
                return status
            for low in range(start, stop, block):
                at = (low - start) // block * n_bytes
                decode_block(data[at : at + n_bytes], decoded)
                first = low % importance.size if weighted else 0
                held = with_block(held, values[low : low + block], decoded, given, first)
                if (position + low + block) % BLOCK_SIZE == 0:
                    held = flushed(held, lanes, sums)
        keep_wide_lanes(held, lanes)
        return -1

    return error
