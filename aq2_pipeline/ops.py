"""The operations: Arrow in, Arrow out, row by row. Validation lives here; every engine calls these.

A row that cannot be done is set aside with its error while the others go on. In
the end the lowest bad row raises, or, where the caller hands in `failures`, all
of them are reported there and are null in the result.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from aq2_pipeline import arrow, build, layout
from aq2_pipeline.decoding import Decoding
from aq2_pipeline.encoding import Encoding
from aq2_pipeline.errors import Aq2Error
from aq2_pipeline.statistics import row_stats
from aq2_pipeline.tensors import new_bytes
from aq2_pipeline.windows import window

if TYPE_CHECKING:
    from collections.abc import Callable

    from aq2_pipeline.columns import Column, Tensors
    from aq2_pipeline.pieces import Failures
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array

Job = TypeVar("Job", Encoding, Decoding)

__all__ = [
    "dequantize",
    "error_figures",
    "map_rows",
    "quantization_error",
    "quantize",
    "quantize_tensors",
    "weight_stats",
]


def quantize(
    weights: Column,
    scheme: Any,
    shape: pa.Array | list[Any] | None = None,
    importance: pa.Array | None = None,
    *,
    n_threads: int | None = None,
    failures: Failures | None = None,
) -> pa.StructArray:
    """Quantize each row of weights.

    Parameters
    ----------
    weights : pyarrow.Array, pyarrow.ChunkedArray or Tensors
        One row a list of weights; chunks are worked through in one job.
    scheme : int, str, Scheme, pyarrow.Array or list
        One for all rows, a column of integers or strings, or a list of schemes.
    shape : pyarrow.Array or list, optional
        A list of integers a row, or None; its product is the row's length.
    importance : pyarrow.Array, optional
        A list of floats a row.
    n_threads : int, optional
        Threads to use.
    failures : dict, optional
        If given, receives row -> error, and the call does not raise for rows.

    Returns
    -------
    pyarrow.StructArray
        `layout.QUANTIZED`; null where the weights are null.
    """
    job, done = _settled(
        partial(Encoding, weights, scheme, shape, importance), lambda job: job.encode(n_threads), failures
    )
    mask = build.bitmap(job.valid)
    fields = [
        job.names(mask),
        build.integers(job.lengths, mask),
        build.integers(job.row_lengths, mask),
        build.binaries(done.data_offsets, done.data, mask),
        build.float_lists(done.scale_offsets, done.scales, mask),
        build.float_lists(done.zero_offsets, done.zero_points, mask),
    ]
    return build.structs(layout.QUANTIZED, fields, mask)


class QuantizedTensor(NamedTuple):
    """What one tensor is quantized to; the arrays are views of those of the call."""

    data: bytes
    scales: Array
    zero_points: Array
    row_length: int


def quantize_tensors(
    tensors: Tensors,
    wanted: list[Scheme | None],
    *,
    n_threads: int | None = None,
    failures: Failures | None = None,
) -> list[QuantizedTensor]:
    """Quantize tensors as `quantize` does rows, each into bytes of its own.

    Parameters
    ----------
    tensors : Tensors
    wanted : list of Scheme
        One a tensor.
    n_threads, failures
        As in `quantize`; what is returned for a tensor that failed means nothing.
    """
    made: list[bytes] = []

    def place(sizes: Array) -> tuple[Array, Array]:
        made[:] = new_bytes(sizes.tolist())
        return window([np.frombuffer(data, np.uint8) for data in made], writable=True)

    shapes = [list(array.shape) for array in tensors.arrays]
    job, done = _settled(
        partial(Encoding, tensors, wanted, shapes, None), lambda job: job.encode(n_threads, place), failures
    )
    scales, zeros = (
        [values[a:b] for a, b in itertools.pairwise(at.tolist())]
        for values, at in ((done.scales, done.scale_offsets), (done.zero_points, done.zero_offsets))
    )
    return list(map(QuantizedTensor, made, scales, zeros, job.row_lengths.tolist()))


def quantization_error(
    weights: Column,
    scheme: Any,
    shape: pa.Array | list[Any] | None = None,
    importance: pa.Array | None = None,
    *,
    n_threads: int | None = None,
    failures: Failures | None = None,
) -> pa.StructArray:
    """Return what `quantize` would lose in each row; the decoded weights are never materialised.

    Parameters are those of `quantize`. Returns `layout.ERROR`; the fields of an
    empty row are null. With an importance every sum but the largest error is
    weighted by it, and `mse` is the weighted mean.
    """
    job, sums = _settled(
        partial(Encoding, weights, scheme, shape, importance), lambda job: job.error_sums(n_threads), failures
    )
    return error_figures(sums, job.lengths, job.sizes.n_bytes, job.valid, job.mass)


def error_figures(
    sums: Array, lengths: Array, n_bytes: Array, valid: Array, mass: Array | None = None
) -> pa.StructArray:
    """Return `layout.ERROR` from the sums of each row, float64[n_rows, n_sums], as `kernels.moments` names them.

    Means divide by `mass`: the sum of each row's importance; default, its length.
    """
    squared_error, squared_weight, squared_decoded, max_error = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        product = (squared_weight + squared_decoded - squared_error) / 2
        mse = squared_error / (lengths if mass is None else mass)
        sqnr = np.where(squared_error > 0, 10 * np.log10(squared_weight / squared_error), np.inf)
        norm = np.sqrt(squared_weight) * np.sqrt(squared_decoded)
        cosine = np.where(squared_error > 0, np.where(norm > 0, np.clip(product / norm, -1, 1), 0), 1)
        bits = 8 * n_bytes / lengths
    some = build.bitmap(valid & (lengths > 0))
    columns = (mse, np.sqrt(mse), max_error, sqnr, cosine, bits)
    fields = [build.doubles(np.ascontiguousarray(c), some) for c in columns]
    return build.structs(layout.ERROR, fields, build.bitmap(valid))


def weight_stats(
    weights: pa.Array, *, n_threads: int | None = None, failures: Failures | None = None
) -> pa.StructArray:
    """Return statistics of each row of weights; values that are not finite, nulls included, are counted.

    Returns `layout.STATS`: figures are those of the finite values, null where
    there are none; kurtosis is null where `std` is 0; of an empty row only the
    count is not null.
    """
    read = arrow.read_weights(weights)
    _report(read.failures, failures)
    found = row_stats(read, n_threads)
    mask, some = build.bitmap(read.valid), build.bitmap(read.valid & (read.lengths > 0))
    fields = [build.integers(read.lengths, mask)]
    for name, column in found.items():
        if name in layout.COUNT_FIELDS:
            fields.append(build.integers(column, some))
        else:
            fields.append(build.doubles(column, build.bitmap(~np.isnan(column))))
    return build.structs(layout.STATS, fields, mask)


def dequantize(
    quantized: pa.Array, *, n_threads: int | None = None, failures: Failures | None = None
) -> pa.LargeListArray:
    """Decode each quantized row; it needs nothing but the row.

    Parameters
    ----------
    quantized : pyarrow.Array
        A struct with the fields of `layout.QUANTIZED`, found by name; 32-bit,
        large and view forms are taken, and a missing or null `row_length` means
        `length`.
    n_threads, failures
        As in `quantize`.

    Returns
    -------
    pyarrow.LargeListArray
        large_list<float32>; null where the row is null.
    """
    job, (offsets, values) = _settled(partial(Decoding, quantized), lambda job: job.decode(n_threads), failures)
    return build.float_lists(offsets, values, build.bitmap(job.valid))


def map_rows(function: Callable[..., str], *columns: pa.Array, failures: Failures | None = None) -> pa.Array:
    """Call a Python function with the values of each row; for small columns of names and shapes."""
    results: list[str | None] = []
    found: Failures = {}
    for row, values in enumerate(zip(*(arrow.decoded(column).to_pylist() for column in columns), strict=True)):
        try:
            results.append(function(*values))
        except Aq2Error as error:
            found[row] = error.at(row=row)
            results.append(None)
    _report(found, failures)
    return pa.array(results, layout.TEXT)


def _settled(start: Callable[..., Job], run: Callable[[Job], Any], failures: Failures | None) -> tuple[Job, Any]:
    """Run a job; if rows failed and the caller wants the others, run it again without them."""
    job = start()
    done = run(job)
    if job.failures:
        _report(job.failures, failures)
        job = start(skip=job.failures)
        done = run(job)
    return job, done


def _report(found: Failures, failures: Failures | None) -> None:
    """Raise the lowest bad row, or hand all of them to the caller."""
    if found and failures is None:
        raise found[min(found)]
    if failures is not None:
        failures.update((row, error) for row, error in found.items() if row not in failures)  # the first reason stays
