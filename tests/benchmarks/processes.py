"""Rows that need processes of their own: peaks of memory and cold starts. A child is this package with a small task."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl

import aq2_pipeline
from tests.benchmarks import workloads
from tests.benchmarks.results import MissingError, Outcome, Timing

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

#: What `import aq2_pipeline` imports of others, beforehand; then the package alone.
_IMPORT = """
import sys, time
import numpy, polars, pyarrow
before = set(sys.modules)
start = time.perf_counter()
import aq2_pipeline
taken = time.perf_counter() - start
others = {name.partition(".")[0] for name in set(sys.modules) - before} - {"aq2_pipeline"}
import json
print(json.dumps([taken, sorted(others - set(sys.stdlib_module_names))]))
"""

#: The first call, kernels from the cache; imports it needs count, for a user waits for them.
_FIRST = """
import time
import numpy, aq2_pipeline
weights = numpy.ones(128, "f4")
start = time.perf_counter()
aq2_pipeline.quantize(weights, 4)
first = time.perf_counter()
aq2_pipeline.quantize(weights, 4)
import json
print(json.dumps([first - start, time.perf_counter() - first]))
"""

_NUMBA = """
import time
import numpy, polars, pyarrow
start = time.perf_counter()
import numba
import json
print(json.dumps([time.perf_counter() - start]))
"""


def _child(*arguments):
    """Run Python; it keeps and finds bytecode, as installed packages have it: to compile ours anew takes 50 ms."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def _python(code):
    return json.loads(_child("-c", code).stdout)


def cold_import(setting, bar):
    """Return milliseconds of `import aq2_pipeline` once its dependencies are imported."""
    found = [_python(_IMPORT) for _ in range(setting.runs + 1)][1:]
    taken = [1e3 * run[0] for run in found]
    notes = [f"it also imports {', '.join(found[-1][1])}"] if found[-1][1] else []
    timing = Timing("import aq2_pipeline", statistics.median(taken) / 1e3)
    outcome = Outcome(statistics.median(taken), min(taken), max(taken), [timing], notes=notes)
    if setting.quick or not bar.met(outcome.value):
        outcome.profile = _dearest_imports()
    return outcome


def _dearest_imports(n=5):
    """Return the modules whose own import takes longest, by `-X importtime`, once the dependencies are there."""
    code = "import sys, numpy, polars, pyarrow; print('ours', file=sys.stderr); import aq2_pipeline"
    told = _child("-X", "importtime", "-c", code).stderr.partition("\nours\n")[2]
    rows = [line.removeprefix("import time:").split("|") for line in told.splitlines() if "|" in line]
    dearest = sorted(((int(own), name.strip()) for own, _, name in rows), reverse=True)[:n]
    return [f"{own / 1e3:7.2f} ms  {name}" for own, name in dearest]


def cold_call(setting, bar):
    """Return seconds of the first `quantize` of a process with a warm cache of kernels."""
    _python(_FIRST)  # fills the cache
    found = [_python(_FIRST) for _ in range(setting.runs)]
    first, second = ([run[k] for run in found] for k in range(2))
    timings = [Timing("first call", statistics.median(first)), Timing("second call", statistics.median(second))]
    outcome = Outcome(statistics.median(first), min(first), max(first), timings)
    if setting.quick or not bar.met(outcome.value):
        outcome.profile = [f"of that, import numba: {1e3 * _python(_NUMBA)[0]:.0f} ms"]
    return outcome


def _memory_mb(field):
    lines = _STATUS.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":"))) / 1024


@dataclass(frozen=True)
class Peak:
    """Memory beyond input and output, in MB, at the peak; the row runs alone in its process."""

    engine: str

    def __call__(self, setting, _bar):
        """Measure once: a peak is not a time."""
        if not _CLEAR.exists():
            msg = "no /proc/self/clear_refs: the peak is read from Linux's accounts"
            raise MissingError(msg)
        work = workloads.workload("M", setting)
        self._run(workloads.column(workloads.workload("L", setting), setting).slice(0, 1), setting)
        column = workloads.column(work, setting)
        _CLEAR.write_text("5")  # the high-water mark begins anew
        before = _memory_mb("VmRSS")
        result = self._run(column, setting)
        extra = _memory_mb("VmHWM") - before
        output = (result.nbytes if self.engine == "Python" else result.estimated_size()) / 2**20
        value = extra - output
        notes = [f"{extra:.0f} MB beyond the input at the peak, of which the output {output:.0f} MB"]
        held = _memory_mb("VmRSS") - before
        profile = [f"at the peak {extra:.0f} MB, held after the call {held:.0f} MB, the output itself {output:.0f} MB"]
        return Outcome(value, value, value, notes=notes, profile=profile)

    def _run(self, column, setting):
        if self.engine == "Python":
            return aq2_pipeline.quantize(column, 4, threads=setting.threads)
        frame = pl.DataFrame({"w": pl.from_arrow(column)})
        return frame.lazy().select(q=pl.col("w").aq2.quantize(4)).collect()
