"""The sides of the three interfaces of `ArrowQuantV2`: Arrow, batch, legacy."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pyarrow as pa

from aq2_pipeline import ArrowQuantV2
from tests.benchmarks import kernels, workloads
from tests.benchmarks.sides import Side, binary_buffers, python

LEGACY = "ArrowQuantV2.quantize reads Python lists"


def _wrapped(label, work, setting, call, codes):
    """Return a side of the wrapper, explained by what it wraps."""
    inner = python(work.name)(setting)
    return Side(
        label, call, work.n_weights, codes, inner.values, inner.n_written, python=True, phases={inner.label: inner.call}
    )


def arrow_table(name):
    """Call `ArrowQuantV2.quantize_arrow`."""

    def make(setting):
        work = workloads.workload(name, setting)
        table = pa.table({"layer_name": workloads.names(work), "weights": workloads.column(work, setting)})
        quantizer = ArrowQuantV2(mode="base", threads=setting.threads)
        call = partial(quantizer.quantize_arrow, table, bit_width=4)
        return _wrapped(f"quantize_arrow, {name}", work, setting, call, lambda r: binary_buffers(r["quantized_data"]))

    return make


def _layer_codes(result):
    return [layer["quantized_data"] for layer in result.values()]


def batch(name):
    """Call `ArrowQuantV2.quantize_batch`."""

    def make(setting):
        work = workloads.workload(name, setting)
        values = workloads.values(work, setting).reshape(work.n_rows, -1)
        layers = dict(zip(workloads.names(work), values, strict=True))
        quantizer = ArrowQuantV2(mode="base", threads=setting.threads)
        call = partial(quantizer.quantize_batch, layers, bit_width=4)
        return _wrapped(f"quantize_batch, {name}", work, setting, call, _layer_codes)

    return make


def _first_layer(name, setting):
    """Return (workload, list of its first layer): one list stands for every layer, 100 would take 3.3 GB."""
    work = workloads.workload(name, setting)
    return work, workloads.values(work, setting)[: work.row_length].tolist()


def legacy(name):
    """Call `ArrowQuantV2.quantize`, with lists of Python floats."""

    def make(setting):
        work, floats = _first_layer(name, setting)
        layers = dict.fromkeys(workloads.names(work), floats)
        quantizer = ArrowQuantV2(mode="base", threads=setting.threads)

        def call():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", LEGACY, DeprecationWarning)
                return quantizer.quantize(layers, bit_width=4)

        codes = _layer_codes if work.n_rows == 1 else None  # else one layer stands for all
        return Side(f"legacy quantize, {name}", call, work.n_weights, codes, python=True)

    return make


def array_and_kernel(name):
    """Convert the list with `np.asarray` and run the kernel, a layer at a time: what legacy cannot do without."""

    def make(setting):
        work, floats = _first_layer(name, setting)
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
