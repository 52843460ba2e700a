"""What is compared: each function here returns a factory `setting -> Side`, and a row of the table names two of them.

A side's `codes` are the quantized bytes of a result; where both sides have them they must be the same, or the row
fails: a ratio of unequal work says nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

import aq2_pipeline
from tests.benchmarks import kernels, workloads

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Side:
    """One side of a ratio.

    Attributes
    ----------
    label : str
    call : callable
        What the clock measures.
    n_weights : int
    codes : callable, optional
        `codes(result)`: a list of buffers, the quantized bytes in order.
    values : float32 array, optional
        The input, if a pass over it explains something.
    n_written : int
        Bytes of the output, if it is fresh memory.
    python : bool
        Whether Python's own time explains something.
    phases : dict of str to callable
        Other calls that explain something.
    close : callable
    """

    label: str
    call: Callable[[], Any]
    n_weights: int
    codes: Callable[[Any], list] | None = None
    values: Any = None
    n_written: int = 0
    python: bool = False
    phases: dict = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


def digest(buffers):
    """Return a short text that equal bytes share."""
    state = hashlib.blake2b(digest_size=16)
    for buffer in buffers:
        state.update(buffer)
    return state.hexdigest()


def binary_buffers(column):
    """Return the bytes of a binary column, chunk by chunk."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    found = []
    for chunk in chunks:
        large = chunk.cast(pa.large_binary())
        offsets = np.frombuffer(large.buffers()[1], np.int64)[large.offset : large.offset + len(large) + 1]
        found.append(memoryview(large.buffers()[2])[offsets[0] : offsets[-1]])
    return found


def struct_buffers(column):
    """Return the quantized bytes of a QUANTIZED column."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [buffer for chunk in chunks for buffer in binary_buffers(chunk.field("quantized_data"))]


def kernel(name, scheme="int4_g128", n_threads=None):
    """Encode with the kernel alone, on the row's number of threads, or another."""

    def make(setting):
        work = workloads.workload(name, setting)
        values = workloads.values(work, setting)
        run = kernels.encoder(values, workloads.lengths(work), scheme, n_threads or setting.threads)
        run()
        run.check()
        label = f"kernel, {scheme}, {name}" + (f", threads={n_threads}" if n_threads else "")
        return Side(label, run, work.n_weights, lambda _: [run.data], values)

    return make


def real_kernel(setting):
    """Encode a real model's matrices with the kernel alone."""
    values, lengths = workloads.real_model()
    if setting.quick:
        lengths = lengths[1:3]
        values = values[: lengths.sum()]
    run = kernels.encoder(values, lengths, "int4_g128", setting.threads)
    return Side("kernel, int4_g128, R", run, values.size, values=values)


def real_read_pass(setting):
    """Read a real model's matrices once."""
    values = real_kernel(setting).values
    return Side("read pass, R", kernels.read_pass(values), values.size)


def decode_kernel(name, scheme="int4_g128"):
    """Decode with the kernel alone."""

    def make(setting):
        work = workloads.workload(name, setting)
        values, lengths = workloads.values(work, setting), workloads.lengths(work)
        encoded = kernels.encoder(values, lengths, scheme, setting.threads)
        encoded()
        run = kernels.decoder(encoded, lengths, scheme, setting.threads)
        run()
        run.check()
        assert np.abs(run.values - values).max() < np.abs(values).max() / 7, "decoded weights are not the weights"
        return Side(f"decode kernel, {scheme}, {name}", run, work.n_weights, values=run.values)

    return make


def read_pass(name):
    """Read the weights once, on one thread."""

    def make(setting):
        work = workloads.workload(name, setting)
        return Side(f"read pass, {name}", kernels.read_pass(workloads.values(work, setting)), work.n_weights)

    return make


def copy_floor(name):
    """Copy as many floats into memory that is there."""

    def make(setting):
        work = workloads.workload(name, setting)
        values = workloads.values(work, setting)
        target = kernels.touched(values.size, np.float32)
        return Side(f"np.copyto, {name}", lambda: np.copyto(target, values), work.n_weights)

    return make


def python(name, scheme="int4_g128", *, half=False):
    """Call `aq2_pipeline.quantize`; `half` gives it as many float16 weights."""

    def make(setting):
        work = workloads.workload(name, setting)
        values, column = workloads.values(work, setting), workloads.column(work, setting)
        label, codes = f"quantize, {scheme}, {name}", struct_buffers
        if half:
            column = pa.LargeListArray.from_arrays(column.offsets, pa.array(values.astype(np.float16)))
            label, codes = f"quantize, float16, {name}", None  # other weights, other codes
        return Side(
            label,
            lambda: aq2_pipeline.quantize(column, scheme, threads=setting.threads),
            work.n_weights,
            codes,
            values,
            kernels.output_bytes(scheme, workloads.lengths(work)),
            python=True,
        )

    return make


def python_error(name):
    """Call `aq2_pipeline.quantization_error`."""

    def make(setting):
        work = workloads.workload(name, setting)
        column, n = workloads.column(work, setting), setting.threads
        return Side(
            f"quantization_error, {name}, threads={n}",
            lambda: aq2_pipeline.quantization_error(column, "int4_g128", threads=n),
            work.n_weights,
            values=workloads.values(work, setting),
            python=True,
        )

    return make


def polars_lazy(name, scheme="int4_g128"):
    """Collect a lazy Polars query; E is an Array column, as embeddings are."""

    def make(setting):
        work = workloads.workload(name, setting)
        column = (workloads.fixed_column if name == "E" else workloads.column)(work, setting)
        query = pl.DataFrame({"w": pl.from_arrow(column)}).lazy().select(q=pl.col("w").aq2.quantize(scheme))
        inner = python(name, scheme)(setting)
        return Side(
            f"Polars lazy, {name}",
            query.collect,
            work.n_weights,
            lambda result: struct_buffers(result["q"].to_arrow()),
            inner.values,
            inner.n_written,
            phases={inner.label: inner.call},
        )

    return make


def both(first, second):
    """One side after the other, as one."""

    def make(setting):
        a, b = first(setting), second(setting)

        def call():
            a.call()
            b.call()

        def close():
            a.close()
            b.close()

        return Side(f"{a.label} + {b.label}", call, a.n_weights, close=close)

    return make
