"""Block formats against ggml's C code: F, one thread, both sides into memory that is there.

ggml's objectives are those of `quantize_row_*_ref` in ggml-quants.c: what its searches of k-quants minimise is the
squared error with weights of their own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.benchmarks import kernels, sides, workloads
from tests.benchmarks.measures import compare
from tests.benchmarks.results import MissingError, at_least
from tests.support import ggml
from tests.support.models import minilm_outputs

#: Format -> how many times as long as our reference mode ggml takes for the same bytes.
REFERENCES = {"q4_0": at_least(1.5), "q4_1": at_least(1.5), "q5_0": at_least(1.5), "q8_0": at_least(4)}
#: Format -> how many times as long as our search ggml takes, and the SQNR that the search reaches on F.
SEARCHES = {
    "q4_k": at_least(8, sqnr=22.66),
    "q5_k": at_least(8, sqnr=28.50),
    "q6_k": at_least(6, sqnr=34.78),
    "q3_k": at_least(4, sqnr=16.29),
    "q2_k": at_least(7, sqnr=11.46),
    "iq4_nl": at_least(10, sqnr=22.08),
    "mxfp4": at_least(3.5, sqnr=18.73),
    "nvfp4": at_least(3.5, sqnr=21.68),
    "q4_0": at_least(0.7, sqnr=20.87),
    "q4_1": at_least(0.25, sqnr=22.69),
}
#: Every format is decoded.
FORMATS = tuple(ggml.FORMATS)


def _magnitude(groups):
    return np.abs(groups)


def _square(groups):
    return groups**2


def _magnitude_and_rms(groups):
    return np.abs(groups) + np.sqrt((groups**2).mean(axis=1, keepdims=True))


#: Format -> what ggml weighs a squared error with, and over how many weights.
OBJECTIVES = {
    "q2_k": (_magnitude, 16),
    "q3_k": (_square, 16),
    "q4_k": (_magnitude_and_rms, 32),
    "q5_k": (_magnitude_and_rms, 32),
    "q6_k": (_square, 16),
}


def sqnr(values, decoded, weigh=None, group=1):
    """Return 10 log10 of the weights' squares over the errors' squares; all of them weighed, if asked for."""
    signal = np.float64(values)
    error = signal - decoded
    w = 1.0 if weigh is None else weigh(signal.reshape(-1, group)).reshape(-1)
    return float(10 * np.log10((w * signal**2).sum() / (w * error**2).sum()))


def require():
    """Load ggml and the weights; missing says why."""
    for package, load in (("pywhispercpp", ggml.library), ("all_minilm_l6_v2", minilm_outputs)):
        try:
            load()
        except (ImportError, OSError) as error:  # the package, or its shared library
            msg = f"{package}: {str(error).splitlines()[0]}"
            raise MissingError(msg) from error


def ggml_encoder(name):
    """Encode with ggml's C code, by matrix rows."""

    def make(setting):
        require()
        work = workloads.workload("F", setting)
        values, form = workloads.values(work, setting), ggml.FORMATS[name]
        data = kernels.touched(values.size // form.weights * form.bytes, np.uint8)
        shape = values.size // workloads.F_COLUMNS, workloads.F_COLUMNS
        encode = ggml.library().ggml_quantize_chunk
        call = partial(encode, form.number, values.ctypes.data, data.ctypes.data, 0, *shape, None)
        return sides.Side(f"ggml C {name}", call, values.size, lambda _: [data], values)

    return make


@functools.lru_cache(maxsize=1)
def _stored(name, setting):
    """Return ggml's bytes, which both sides decode."""
    require()
    return ggml.quantize(name, workloads.values(workloads.workload("F", setting), setting))


def decoder(name):
    """Decode ggml's bytes with our kernel alone."""

    def make(setting):
        work, data = workloads.workload("F", setting), _stored(name, setting)
        run = kernels.decoder(kernels.stored(data), workloads.lengths(work), name, setting.threads)
        run()
        run.check()
        return sides.Side(f"decode kernel, {name}, F", run, work.n_weights, lambda _: [run.values], run.values)

    return make


def ggml_decoder(name):
    """Decode them with ggml's C code."""

    def make(setting):
        work, data = workloads.workload("F", setting), _stored(name, setting)
        values = kernels.touched(work.n_weights, np.float32)
        call = partial(ggml.row_decoder(name), data.ctypes.data, values.ctypes.data, values.size)
        return sides.Side(f"ggml C {name}, decode", call, values.size, lambda _: (data, values)[1:], values)

    return make


@dataclass(frozen=True)
class Search:
    """Time of ggml's codes over that of our search's, and the SQNR of both; ggml decodes both."""

    name: str

    def __call__(self, setting, bar):
        """Measure."""
        theirs, ours = ggml_encoder(self.name)(setting), sides.kernel("F", self.name)(setting)
        values = ours.values
        decoded = []
        for side in (ours, theirs):
            (data,) = side.codes(side.call())
            decoded.append(ggml.dequantize(self.name, data, values.size))
        found = [sqnr(values, each) for each in decoded]
        outcome = compare(ours, theirs, setting, bar, sqnr=found[0])
        outcome.notes.append(f"SQNR {found[0]:.3f} dB, ggml's {found[1]:.3f}")
        if self.name in OBJECTIVES:
            own = [sqnr(values, each, *OBJECTIVES[self.name]) for each in decoded]
            outcome.notes.append(f"weighed as ggml's search does {own[0]:.3f} dB, ggml's {own[1]:.3f}")
        return outcome
