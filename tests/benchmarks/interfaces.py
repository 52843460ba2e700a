"""What the three interfaces of ArrowQuantV2 take for the same work: `python -m tests.benchmarks.interfaces`.

The rows of the table are one layer of 1,048,576 float32 weights (4 MB) and 100 of them; the result is 4-bit in groups
of 128. Each interface gets the weights in its own form, made before the clock starts: an Arrow table, a dict of
arrays, a dict of lists. The 100 lists are 4 lists, each under 25 names: 100 would take 3.4 GB. Medians of `--runs`
rounds, in which the interfaces take turns; the ratio is the median of the rounds' ratios, so that a busy neighbour
hits both sides of it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from aq2_pipeline import ArrowQuantV2

LAYER_SIZE = 1 << 20
INTERFACES = ("quantize_arrow", "quantize_batch", "quantize")


def layer(k):
    return np.random.default_rng(k).normal(size=LAYER_SIZE).astype(np.float32)


def inputs(interface, n_layers):
    """Return the weights in the form that an interface takes."""
    names = [f"layer.{k}.weight" for k in range(n_layers)]
    if interface == "quantize_batch":
        return {name: layer(k) for k, name in enumerate(names)}
    if interface == "quantize":
        lists = [layer(k).tolist() for k in range(min(4, n_layers))]
        return {name: lists[k % 4] for k, name in enumerate(names)}
    values = np.empty(n_layers * LAYER_SIZE, np.float32)
    for k in range(n_layers):
        values[k * LAYER_SIZE : (k + 1) * LAYER_SIZE] = layer(k)
    offsets = np.arange(n_layers + 1, dtype=np.int64) * LAYER_SIZE
    return pa.table({"layer_name": names, "weights": pa.LargeListArray.from_arrays(offsets, pa.array(values))})


def measure(n_layers, threads, runs):
    """Return interface -> (seconds, ratio to quantize_arrow), medians."""
    quantizer = ArrowQuantV2(mode="base", threads=threads)
    given = {interface: inputs(interface, n_layers) for interface in INTERFACES}
    times = {interface: [] for interface in INTERFACES}
    for run in range(runs + 1):
        for interface in INTERFACES:
            start = time.perf_counter()
            getattr(quantizer, interface)(given[interface], bit_width=4)
            if run:  # the first is for the compiler and the page faults
                times[interface].append(time.perf_counter() - start)
    ratios = {i: [a / b for a, b in zip(times[i], times["quantize_arrow"], strict=True)] for i in INTERFACES}
    return {i: (statistics.median(times[i]), statistics.median(ratios[i])) for i in INTERFACES}


def peak_mb(interface, n_layers):
    """Print the memory that a run adds to the process at its peak, in MB."""
    quantizer = ArrowQuantV2(mode="base")
    getattr(quantizer, interface)(inputs(interface, 1), bit_width=4)
    given = inputs(interface, n_layers)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark begins anew
    before = memory_kb("VmRSS")
    result = getattr(quantizer, interface)(given, bit_width=4)
    print((memory_kb("VmHWM") - before) / 1024)
    del result


def memory_kb(field):
    """Return a line of Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--peak", choices=INTERFACES)
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    if options.peak:
        peak_mb(options.peak, 100)
        return
    packages = ("aq2-pipeline", "numba", "numpy", "pyarrow")
    print(date.today().isoformat(), ", ".join(f"{p} {version(p)}" for p in packages))  # noqa: DTZ011 - a label
    for n_layers in (1, 100):
        for threads in (1, None):
            found = measure(n_layers, threads, options.runs)
            for interface, (seconds, ratio) in found.items():
                print(f"{n_layers:4} layers, threads={threads}, {interface:15} {ratio:7.2f} x {1e3 * seconds:9.2f} ms")
    for interface in INTERFACES:
        command = [sys.executable, "-m", "tests.benchmarks.interfaces", "--peak", interface]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f" 100 layers, {interface:15} {float(done.stdout):7.0f} MB more at the peak")


if __name__ == "__main__":
    main()
