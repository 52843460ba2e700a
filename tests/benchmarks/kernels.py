"""The one place where the benchmarks touch the package's inside: kernels over prepared spans and touched outputs.

A kernel's time is that of the compiled row driver, called as `encoding.Encoding.encode` and
`decoding.Decoding.decode` call it: slices of rows, shared out by the package's own threads. Nothing is read, checked,
allocated or built while the clock runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit, types

from aq2_pipeline import build, schemes, threads
from aq2_pipeline.kernels import _jit, rows
from aq2_pipeline.kernels.bits import MAGNITUDE
from aq2_pipeline.kernels.widening import DIRECT
from aq2_pipeline.pieces import SLICE_SIZE, frozen, slices, span

_NO_FLOATS = np.empty(0, np.float32)
_NO_FLOATS.flags.writeable = False
_NO_BYTES = np.empty(0, np.uint8)
_NO_BYTES.flags.writeable = False
_NO_PLANS = np.empty(0, np.int64)
_NO_PLANS.flags.writeable = False
_SCRATCH = np.empty(0, np.float32)


@dataclass
class Prepared:
    """Calls of kernels, ready to run, and what they write to."""

    tasks: list
    threads: int
    status: Any
    data: Any = None
    scales: Any = None
    zero_points: Any = None
    values: Any = None

    def __call__(self):
        """Run them."""
        threads.run([[task] for task in self.tasks], self.threads)

    def check(self):
        """Raise if a kernel refused a value."""
        assert (self.status == -1).all(), "a kernel refused a weight"


def touched(n, dtype):
    """Return an array whose pages are there."""
    array = np.empty(n, dtype)
    array.fill(0)
    return array


def _sizes(scheme, lengths):
    """Return the codec, what it takes, and where each row's bytes, scales and zero points begin."""
    assert lengths.max(initial=0) <= SLICE_SIZE, "longer rows are cut, which is not the kernel's work"
    parsed = schemes.parse(scheme)
    sizes = parsed.codec.sizes(lengths, lengths, parsed.params)
    return parsed, sizes, [build.offsets_of(size) for size in sizes]


def output_bytes(scheme, lengths):
    """Return the bytes of data, scales and zero points that rows take."""
    return int(sum(4 * at[-1] if k else at[-1] for k, at in enumerate(_sizes(scheme, lengths)[2])))


def encoder(values, lengths, scheme, n_threads):
    """Prepare `encode_rows` over consecutive rows of flat weights."""
    parsed, sizes, ends = _sizes(scheme, lengths)
    starts = np.cumsum(lengths) - lengths
    none = span(np.zeros_like(lengths), np.zeros_like(lengths))
    data, scales, zeros = (
        touched(int(at[-1]), t) for at, t in zip(ends, (np.uint8, np.float32, np.float32), strict=True)
    )
    spans = [span(at[:-1], size) for at, size in zip(ends, sizes, strict=True)]
    status = np.full(lengths.size, -1, np.int64)
    given = (DIRECT, values, _NO_BYTES, *span(starts, lengths), frozen(lengths), _NO_FLOATS, *none)
    taken = (data, *spans[0], scales, *spans[1], zeros, *spans[2], status, _NO_PLANS, _SCRATCH)
    encode, params = parsed.codec.encode, frozen(parsed.params)
    tasks = [partial(rows.encode_rows, encode, params, a, b, *given, *taken) for a, b in slices(lengths)]
    return Prepared(tasks, n_threads, status, data=data, scales=scales, zero_points=zeros)


def stored(data):
    """Return bytes of a block format, as an encoder leaves them."""
    return Prepared([], 1, None, data, _NO_FLOATS, _NO_FLOATS)


def decoder(encoded, lengths, scheme, n_threads):
    """Prepare `decode_rows` over what an encoder wrote."""
    parsed, sizes, ends = _sizes(scheme, lengths)
    sources = []
    for array, at, size in zip((encoded.data, encoded.scales, encoded.zero_points), ends, sizes, strict=True):
        read_only = array.view()
        read_only.flags.writeable = False
        sources += [read_only, *span(at[:-1], size)]
    values, status = touched(int(lengths.sum()), np.float32), np.full(lengths.size, -1, np.int64)
    target = span(np.cumsum(lengths) - lengths, lengths)
    arguments = (*sources, frozen(lengths), values, *target, status)
    decode, params = parsed.codec.decode, frozen(parsed.params)
    tasks = [partial(rows.decode_rows, decode, params, a, b, *arguments) for a, b in slices(lengths)]
    return Prepared(tasks, n_threads, status, values=values)


@njit(types.int32(types.Array(types.int32, 1, "C", readonly=True)), cache=True, **_jit.OPTIONS)
def largest_bits(pattern):
    """Return the largest magnitude's bits: one pass over the weights, the fastest there is."""
    largest = np.int32(0)
    for j in range(pattern.size):
        largest = max(largest, np.int32(pattern[j] & MAGNITUDE))
    return largest


def read_pass(values):
    """Return the call that reads the weights once, on one thread."""
    return partial(largest_bits, values.view(np.int32))
