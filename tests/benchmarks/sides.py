"""What is compared: each function here returns a factory `setting -> Side`, and a row of the table names two of them.

A side's `codes` are the quantized bytes of a result; where both sides have them they must be the same, or the row
fails: a ratio of unequal work says nothing.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

import aq2_pipeline
from aq2_pipeline import ArrowQuantV2
from tests.benchmarks import kernels, workloads

if TYPE_CHECKING:
    from collections.abc import Callable

LEGACY = "ArrowQuantV2.quantize reads Python lists"


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
    kind : str
        What explains its time: "kernel", "python" or "sql"; empty where nothing has to.
    n_read, n_written : int
        Bytes of input and of output.
    close : callable
    """

    label: str
    call: Callable[[], Any]
    n_weights: int
    codes: Callable[[Any], list] | None = None
    kind: str = ""
    values: Any = None
    n_written: int = 0
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


def kernel(name, scheme="int4_g128"):
    """Encode with the kernel alone."""

    def make(setting):
        work = workloads.workload(name, setting)
        values = workloads.values(work, setting)
        run = kernels.encoder(values, workloads.lengths(work), scheme, setting.threads)
        run()
        run.check()
        written = run.data.nbytes + run.scales.nbytes + run.zero_points.nbytes
        label = f"kernel, {scheme}, {name}"
        return Side(label, run, work.n_weights, lambda _: [run.data], "kernel", values, written)

    return make


def real_kernel(scheme="int4_g128"):
    """Encode a real model's matrices with the kernel alone."""

    def make(setting):
        values, lengths = workloads.real_model()
        if setting.quick:
            lengths = lengths[1:3]
            values = values[: lengths.sum()]
        run = kernels.encoder(values, lengths, scheme, setting.threads)
        written = run.data.nbytes + run.scales.nbytes
        return Side(f"kernel, {scheme}, R", run, values.size, None, "kernel", values, written)

    return make


def real_read_pass(setting):
    """Read a real model's matrices once."""
    values = real_kernel()(setting).values
    return Side("read pass, R", kernels.read_pass(values), values.size)


def decode_kernel(name, scheme="int4_g128"):
    """Decode with the kernel alone."""

    def make(setting):
        work = workloads.workload(name, setting)
        values = workloads.values(work, setting)
        encoded = kernels.encoder(values, workloads.lengths(work), scheme, setting.threads)
        encoded()
        run = kernels.decoder(encoded, workloads.lengths(work), scheme, setting.threads)
        run()
        run.check()
        assert np.abs(run.values - values).max() < np.abs(values).max() / 7, "decoded weights are not the weights"
        return Side(f"decode kernel, {scheme}, {name}", run, work.n_weights, None, "decode", run.values, 4 * work.n_weights)

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


def _python(label, name, call, n_written=0):
    """Return a factory of a Python function over a column; `call(column, threads)`."""

    def make(setting):
        work = workloads.workload(name, setting)
        column = workloads.column(work, setting)
        codes = struct_buffers if label.startswith("quantize(") else None
        values = workloads.values(work, setting)
        written = int(work.n_weights * n_written)
        run = lambda: call(column, setting.threads)  # noqa: E731
        return Side(f"{label}, {name}", run, work.n_weights, codes, "python", values, written)

    return make


def python(name, scheme=4):
    """`aq2_pipeline.quantize`."""
    return _python(
        f"quantize({scheme!r})", name, lambda column, n: aq2_pipeline.quantize(column, scheme, threads=n), 0.53125
    )


def python_error(name, n_threads=None):
    """`aq2_pipeline.quantization_error`, on the row's number of threads, or another."""
    label = "quantization_error" + (f", {n_threads} thread" if n_threads else "")
    return _python(label, name, lambda column, n: aq2_pipeline.quantization_error(column, 4, threads=n_threads or n))


def python_half(name):
    """`aq2_pipeline.quantize` of as many float16 weights."""

    def make(setting):
        side = python(name)(setting)
        work = workloads.workload(name, setting)
        half = pa.array(workloads.values(work, setting).astype(np.float16))
        column = pa.LargeListArray.from_arrays(workloads.column(work, setting).offsets, half)
        side.label = f"quantize(4), float16, {name}"
        side.call = lambda: aq2_pipeline.quantize(column, 4, threads=setting.threads)
        side.codes = None  # other weights, other codes
        return side

    return make


def arrow_table(name):
    """`ArrowQuantV2.quantize_arrow`."""

    def make(setting):
        work = workloads.workload(name, setting)
        table = pa.table({"layer_name": workloads.names(work), "weights": workloads.column(work, setting)})
        quantizer = ArrowQuantV2(mode="diffusion", threads=setting.threads)
        return Side(
            f"quantize_arrow, {name}",
            lambda: quantizer.quantize_arrow(table, bit_width=4),
            work.n_weights,
            lambda result: binary_buffers(result["quantized_data"]),
            "python",
            workloads.values(work, setting),
            int(work.n_weights * 0.53125),
        )

    return make


def _layer_codes(result):
    return [layer["quantized_data"] for layer in result.values()]


def batch(name):
    """`ArrowQuantV2.quantize_batch`."""

    def make(setting):
        work = workloads.workload(name, setting)
        values = workloads.values(work, setting)
        layers = dict(zip(workloads.names(work), values.reshape(work.n_rows, -1), strict=True))
        quantizer = ArrowQuantV2(mode="diffusion", threads=setting.threads)
        return Side(
            f"quantize_batch, {name}",
            lambda: quantizer.quantize_batch(layers, bit_width=4),
            work.n_weights,
            _layer_codes,
            "python",
            values,
            int(work.n_weights * 0.53125),
        )

    return make


def _list_of_first_layer(name, setting):
    """Return (workload, list of the first layer): one list stands for every layer, 100 would take 3.3 GB."""
    work = workloads.workload(name, setting)
    return work, workloads.values(work, setting)[: work.row_length].tolist()


def legacy(name):
    """`ArrowQuantV2.quantize`, from lists of Python floats."""

    def make(setting):
        work, floats = _list_of_first_layer(name, setting)
        layers = dict.fromkeys(workloads.names(work), floats)
        quantizer = ArrowQuantV2(mode="diffusion", threads=setting.threads)

        def call():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", LEGACY, DeprecationWarning)
                return quantizer.quantize(layers, bit_width=4)

        codes = _layer_codes if work.n_rows == 1 else None  # else one layer stands for all
        return Side(f"legacy quantize, {name}", call, work.n_weights, codes, "python", None)

    return make


def array_and_kernel(name):
    """`np.asarray` of the list and the kernel, for each layer: what a legacy call cannot do without."""

    def make(setting):
        work, floats = _list_of_first_layer(name, setting)
        array = np.asarray(floats, np.float32)
        array.flags.writeable = False
        run = kernels.encoder(array, np.array([array.size], np.int64), "int4_g128", 1)

        def call():
            for _ in range(work.n_rows):
                np.asarray(floats, np.float32)
                run()

        codes = (lambda _: [run.data]) if work.n_rows == 1 else None
        return Side(f"np.asarray + kernel, {name}", call, work.n_weights, codes)

    return make


def polars_lazy(name, scheme=4):
    """A lazy Polars query; E is an Array column, as embeddings are."""

    def make(setting):
        work = workloads.workload(name, setting)
        column = (workloads.fixed_column if name == "E" else workloads.column)(work, setting)
        frame = pl.DataFrame({"w": pl.from_arrow(column)})
        query = frame.lazy().select(q=pl.col("w").aq2.quantize(scheme))
        return Side(
            f"Polars lazy, {name}",
            query.collect,
            work.n_weights,
            lambda result: struct_buffers(result["q"].to_arrow()),
            "python",
            workloads.values(work, setting),
            int(work.n_weights * 0.53125),
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
