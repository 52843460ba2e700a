"""The operations: Arrow in, Arrow out, row by row. Validation lives here; every engine calls these.

A row that cannot be done is set aside with its error while the others go on. In
the end the lowest bad row raises, or, where the caller hands in `failures`, all
of them are reported there and are null in the result.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from aq2_pipeline import arrow, build, layout
from aq2_pipeline.decoding import Decoding
from aq2_pipeline.encoding import Encoding
from aq2_pipeline.errors import Aq2Error
from aq2_pipeline.statistics import row_stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from aq2_pipeline.arrow import Array
    from aq2_pipeline.pieces import Failures

Job = TypeVar("Job", Encoding, Decoding)

__all__ = ["dequantize", "error_figures", "map_rows", "quantization_error", "quantize", "weight_stats"]


def quantize(
    weights: pa.Array,
    scheme: Any,
    shape: pa.Array | None = None,
    importance: pa.Array | None = None,
    *,
    n_threads: int | None = None,
    failures: Failures | None = None,
) -> pa.StructArray:
    """Quantize each row of weights.

    Parameters
    ----------
    weights : pyarrow.Array
        One row a list of weights.
    scheme : int, str, Scheme or pyarrow.Array
        One for all rows, or a column of integers or strings.
    shape : pyarrow.Array, optional
        A list of integers a row; its product is the row's length.
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
    fields = [
        job.names(),
        build.integers(job.lengths, job.valid),
        build.integers(job.row_lengths, job.valid),
        build.binaries(done.data_offsets, done.data, job.valid),
        build.float_lists(done.scale_offsets, done.scales, job.valid),
        build.float_lists(done.zero_offsets, done.zero_points, job.valid),
    ]
    return build.structs(layout.QUANTIZED, fields, job.valid)


def quantization_error(
    weights: pa.Array,
    scheme: Any,
    shape: pa.Array | None = None,
    importance: pa.Array | None = None,
    *,
    n_threads: int | None = None,
    failures: Failures | None = None,
) -> pa.StructArray:
    """Return what `quantize` would lose in each row; the decoded weights are never materialised.

    Parameters are those of `quantize`. Returns `layout.ERROR`; the fields of an
    empty row are null.
    """
    job, sums = _settled(
        partial(Encoding, weights, scheme, shape, importance), lambda job: job.error_sums(n_threads), failures
    )
    return error_figures(sums, job.lengths, job.sizes.n_bytes, job.valid)


def error_figures(sums: Array, lengths: Array, n_bytes: Array, valid: Array) -> pa.StructArray:
    """Return `layout.ERROR` from the sums of each row, float64[n_rows, n_sums], as `kernels.moments` names them."""
    squared_error, squared_weight, squared_decoded, product, max_error = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mse = squared_error / lengths
        sqnr = np.where(squared_error > 0, 10 * np.log10(squared_weight / squared_error), np.inf)
        norm = np.sqrt(squared_weight) * np.sqrt(squared_decoded)
        cosine = np.where(squared_error > 0, np.where(norm > 0, np.minimum(product / norm, 1), 0), 1)
        bits = 8 * n_bytes / lengths
    some = valid & (lengths > 0)
    columns = (mse, np.sqrt(mse), max_error, sqnr, cosine, bits)
    return build.structs(layout.ERROR, [build.doubles(np.ascontiguousarray(c), some) for c in columns], valid)


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
    some = read.valid & (read.lengths > 0)
    fields = [build.integers(read.lengths, read.valid)]
    for name, column in found.items():
        counted = name in layout.COUNT_FIELDS
        fields.append(build.integers(column, some) if counted else build.doubles(column, ~np.isnan(column)))
    return build.structs(layout.STATS, fields, read.valid)


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
    return build.float_lists(offsets, values, job.valid)


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
