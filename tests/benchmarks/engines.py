"""The same weights through Python, Polars and DuckDB: `python -m tests.benchmarks.engines`.

67 million float32 weights, as 64 rows of 1,048,576 and as 16,384 rows of 4,096, in one record batch and in 16, to 4
bits in groups of 128. Medians of `--runs`; ratios are to Python on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import date
from importlib.metadata import version

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

import aq2_pipeline
import aq2_pipeline.duckdb

N_WEIGHTS = 1 << 26


def layers(n_rows, n_batches):
    """Return a table of one column `w`."""
    values = np.random.default_rng(0).normal(size=N_WEIGHTS).astype(np.float32)
    offsets = np.arange(n_rows + 1, dtype=np.int64) * (N_WEIGHTS // n_rows)
    table = pa.table({"w": pa.LargeListArray.from_arrays(offsets, pa.array(values))})
    return pa.Table.from_batches(table.to_batches(max_chunksize=n_rows // n_batches))


def seconds(call, runs):
    """Return the median, the first run left out."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(con, native, n_rows, n_batches, runs):
    """Return engine -> seconds."""
    table = layers(n_rows, n_batches)
    frame, quantized = pl.from_arrow(table, rechunk=False), pl.col("w").aq2.quantize(4)
    con.register("layers", table)
    native.register("layers", table)
    query = "SELECT aq2_quantize(w, 4) AS q FROM layers"
    calls = {
        "Python, 1 thread": lambda: aq2_pipeline.quantize(table["w"], 4, threads=1),
        "Python": lambda: aq2_pipeline.quantize(table["w"], 4),
        "Polars, eager": lambda: frame.select(quantized),
        "Polars, lazy": lambda: frame.lazy().select(quantized).collect(),
        "DuckDB": lambda: con.sql(query).to_arrow_table(),
        "DuckDB, native": lambda: native.sql(query).to_arrow_table(),
    }
    return {name: seconds(call, runs) for name, call in calls.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    packages = ("aq2-pipeline", "polars", "duckdb", "pyarrow", "numba")
    print(date.today().isoformat(), ", ".join(f"{p} {version(p)}" for p in packages))  # noqa: DTZ011 - a label
    with duckdb.connect() as con, aq2_pipeline.duckdb.connect() as native:
        aq2_pipeline.register(con)
        for n_rows in (64, 16_384):
            for n_batches in (1, 16):
                found = measure(con, native, n_rows, n_batches, options.runs)
                for name, time_taken in found.items():
                    ratio = time_taken / found["Python, 1 thread"]
                    where = f"{n_rows:6} rows in {n_batches:2} batches"
                    print(f"{where}, {name:16} {ratio:6.2f} x {1e3 * time_taken:8.1f} ms")


if __name__ == "__main__":
    main()
