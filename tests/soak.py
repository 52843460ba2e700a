"""Random cases on every engine and on files, for as long as is wanted, with an eye on memory, descriptors and files.

`python -m tests.soak [--minutes 60 | --cases N] [--threads 4] [--storm | --only SURFACE] [--write-report FILE]`. Each
thread draws cases from its own seed: rows of random lengths, some null, a scheme, and a surface; its bytes must be
those that the Python API gave on one thread before. Files are converted, read and written again the same way. `--storm`
is sixteen threads on Polars, DuckDB and Python at once; `--only` is one surface, to find the one that memory grows on.
A watchdog dumps every thread's stack when nothing ends for two minutes.

Memory is read between rounds, when no case runs. The first part of a run is not judged: DuckDB keeps some 260 bytes of
each statement, up to 4096 of a database, and the streaming engine of Polars starts threads that stay.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import hashlib
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

import aq2_pipeline
import aq2_pipeline.duckdb
from aq2_pipeline import layout
from aq2_pipeline.io.convert import dequantize_file, quantize_file
from aq2_pipeline.io.recipes import Recipe

SCHEMES = ("int4_g128", "int4_g64_asym", "int8_channel", "int3_g32", "int2_g32_asym", "q8_0", "f16", "int5_g7")
#: Schemes that each target of a file takes.
TARGETS = {"q.parquet": "int4_g64_asym", "q.gguf": "q8_0", "folder": "int4_g128"}
WATCHDOG = 120
#: Share of the samples that are warm-up: allocators and caches fill.
WARM_UP = 0.4


class Case:
    """Rows, a scheme, and what it gives: codes, what these decode to, and statistics."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.scheme = SCHEMES[seed % len(SCHEMES)]
        unit = 32 if self.scheme == "q8_0" else 1
        lengths = [unit * int(n) for n in rng.integers(0, 4000 // unit, int(rng.integers(1, 40)))]
        values = (rng.normal(size=sum(lengths)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        offsets = pa.array(np.cumsum([0, *lengths]), pa.int64())
        null = pa.array(rng.random(len(lengths)) < 0.1)
        self.weights = pa.LargeListArray.from_arrays(offsets, pa.array(values), mask=null)
        self.quantized = aq2_pipeline.quantize(self.weights, self.scheme, threads=1)
        self.decoded = aq2_pipeline.dequantize(self.quantized, threads=1)
        self.stats = aq2_pipeline.weight_stats(self.weights, threads=1)


class Worker:
    """One thread: its connections, its folder and its random numbers."""

    def __init__(self, seed: int, cases: list[Case], folder: Path) -> None:
        self.rng, self.cases = random.Random(seed), cases  # noqa: S311 - cases
        self.folder = folder / f"worker{seed}"
        self.folder.mkdir()
        self.paths = {"arrow": duckdb.connect(), "native": aq2_pipeline.duckdb.connect()}
        aq2_pipeline.register(self.paths["arrow"])
        for con in self.paths.values():
            con.execute("SET enable_progress_bar = false")
        self.digests: dict[str, str] = {}
        self.n, self.wrong = 0, 0

    def close(self) -> None:
        """Close its connections."""
        for con in self.paths.values():
            con.close()

    def once(self, surface: str) -> None:
        """Run one random case on a surface."""
        if surface == "files":
            self._files()
        else:
            case = self.rng.choice(self.cases)
            found = SURFACES[surface](self, case)
            expected = (case.quantized, case.decoded, case.stats)
            kinds = (layout.QUANTIZED, layout.FLOATS, layout.STATS)
            for one, other, kind in zip(found, expected, kinds, strict=True):
                self.wrong += not _plain(one, kind).equals(other)
        self.n += 1

    def _files(self) -> None:
        """Write a target, read it back, and write it once more; the same bytes each time."""
        source = self.folder / "model.safetensors"
        if not source.exists():
            frame = pl.DataFrame(
                {"layer_name": ["a.weight", "b.weight"], "shape": [[64, 128], [32, 256]], "dtype": ["F32", "F32"]}
            )
            weights = [np.random.default_rng(k).normal(size=8192).astype(np.float32) for k in range(2)]
            aq2_pipeline.sink_safetensors(
                frame.with_columns(weights=pl.Series(weights, dtype=pl.List(pl.Float32))), source
            )
        target = self.rng.choice(list(TARGETS))
        path = self.folder / target
        to = None if "." in target else "compressed-tensors"
        quantize_file(source, path, Recipe(TARGETS[target]), to=to)
        parts = [path] if path.is_file() else sorted(path.iterdir())
        digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
        if path.is_file():
            dequantize_file(path, self.folder / "back.safetensors")
            digest += hashlib.sha256((self.folder / "back.safetensors").read_bytes()).hexdigest()
        self.wrong += self.digests.setdefault(target, digest) != digest


def _plain(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, pl.Series):
        column = column.to_arrow()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.cast(kind)


def _python(_worker: Worker, case: Case) -> tuple[Any, ...]:
    quantized = aq2_pipeline.quantize(case.weights, case.scheme)
    return quantized, aq2_pipeline.dequantize(quantized), aq2_pipeline.weight_stats(case.weights)


def _polars(*engines: Any) -> Any:
    def run(worker: Worker, case: Case) -> tuple[Any, ...]:
        frame = pl.LazyFrame({"w": pl.from_arrow(case.weights)})
        lazy = frame.with_columns(q=pl.col("w").aq2.quantize(case.scheme), s=pl.col("w").aq2.weight_stats())
        engine = worker.rng.choice(engines)
        found = lazy.with_columns(d=pl.col("q").aq2.dequantize()).collect(engine=engine)
        return found["q"], found["d"], found["s"]

    return run


def _duckdb(path: str) -> Any:
    def run(worker: Worker, case: Case) -> tuple[Any, ...]:
        with worker.paths[path].cursor() as cursor:
            cursor.register("given", pa.table({"id": range(len(case.weights)), "w": case.weights}))
            query = """SELECT q, aq2_dequantize(q), s FROM
                (SELECT id, aq2_quantize(w, ?) AS q, aq2_weight_stats(w) AS s FROM given) ORDER BY id"""
            found = cursor.sql(query, params=[case.scheme]).to_arrow_table()
            cursor.unregister("given")
        return tuple(found.columns)

    return run


#: What `--only` takes, with "files".
SURFACES = {
    "python": _python,
    "polars": _polars("in-memory", "streaming"),
    "polars-in-memory": _polars("in-memory"),
    "polars-streaming": _polars("streaming"),
    "duckdb-arrow": _duckdb("arrow"),
    "duckdb-native": _duckdb("native"),
}
#: What a run takes in turn: both engines of Polars are in one.
MIXED = ("python", "polars", "duckdb-arrow", "duckdb-native")


def sample(folder: Path) -> dict[str, float]:
    """Return what must not grow."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    status = Path("/proc/self/status").read_text()
    kilobytes = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
    n_files = sum(len(files) + len(folders) for _, folders, files in os.walk(folder))
    return {
        "seconds": time.monotonic(),
        "mb": kilobytes / 1024,
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "files": n_files,
    }


def slope(samples: list[dict[str, float]]) -> float:
    """Return how memory grew after the warm-up, in MB a minute."""
    later = samples[int(WARM_UP * len(samples)) :]
    if len(later) < 2:
        return 0.0
    minutes = np.array([each["seconds"] for each in later]) / 60
    return float(np.polyfit(minutes - minutes[0], [each["mb"] for each in later], 1)[0])


def soak(
    minutes: float | None, n_cases: int | None, n_threads: int, *, storm: bool, only: str | None = None
) -> dict[str, Any]:
    """Return the figures of a run; it ends after some minutes, or when every thread has done its cases."""
    n_threads = 16 if storm else n_threads
    surfaces = [*MIXED, "duckdb-arrow", "duckdb-native"] if storm else [*MIXED, "files"]
    surfaces = [only] if only else surfaces
    cases = [Case(seed) for seed in range(24)]
    begin = time.monotonic()
    end = None if minutes is None else begin + 60 * minutes
    each = None if n_cases is None else -(-n_cases // n_threads)
    errors: list[BaseException] = []
    with tempfile.TemporaryDirectory() as name:
        workers = [Worker(k, cases, Path(name)) for k in range(n_threads)]

        def work(k: int) -> None:
            worker = workers[k]
            try:
                while not errors and (worker.n < each if each is not None else time.monotonic() < (end or 0)):
                    worker.once(surfaces[(k + worker.n) % len(surfaces)])
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        def n_done() -> int:
            return sum(worker.n for worker in workers)

        samples, rounds = [], 8
        if each is not None:  # in rounds, between which nothing runs
            whole = each
            for k in range(rounds):
                each = max(whole * (k + 1) // rounds, 1)
                _run_all(work, n_threads, n_done)
                samples.append(sample(Path(name)))
        else:
            total = end or begin
            step = max((total - begin) / 60, 1.0)
            while time.monotonic() < total:
                end = min(total, time.monotonic() + step)
                _run_all(work, n_threads, n_done)
                samples.append(sample(Path(name)))
        for worker in workers:
            worker.close()
        if errors:
            raise errors[0]
    warm = samples[int(WARM_UP * len(samples)) :]
    return {
        "minutes": round((time.monotonic() - begin) / 60, 2),
        "threads": n_threads,
        "cases": n_done(),
        "wrong": sum(worker.wrong for worker in workers),
        "mb_first": round(warm[0]["mb"], 1),
        "mb_last": round(warm[-1]["mb"], 1),
        "mb_per_minute": round(slope(samples), 3),
        "mb_after": {f"{10 * k} %": round(samples[k * len(samples) // 10 - 1]["mb"], 1) for k in range(1, 11)}
        if len(samples) >= 10
        else {},
        "descriptors": [int(min(e["descriptors"] for e in warm)), int(max(e["descriptors"] for e in warm))],
        "files": [int(min(e["files"] for e in warm)), int(max(e["files"] for e in warm))],
    }


def _run_all(work: Any, n_threads: int, n_done: Any) -> None:
    """Run a round on all threads; stacks are shown, and the process ends, where two minutes bring no case."""
    threads = [threading.Thread(target=work, args=(k,)) for k in range(n_threads)]
    for thread in threads:
        thread.start()
    done = -1
    while any(thread.is_alive() for thread in threads):
        if n_done() != done:
            done = n_done()
            faulthandler.dump_traceback_later(WATCHDOG, exit=True)
        for thread in threads:
            thread.join(0.1)
    faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Print the figures as one JSON object, and write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--storm", action="store_true")
    parser.add_argument("--only", choices=[*SURFACES, "files"])
    parser.add_argument("--write-report", type=Path)
    given = parser.parse_args()
    minutes = 1.0 if given.minutes is None and given.cases is None else given.minutes
    found = soak(minutes, given.cases, given.threads, storm=given.storm, only=given.only)
    print(json.dumps(found), flush=True)
    if given.write_report:
        size = f"--minutes {minutes:g}" if given.cases is None else f"--cases {given.cases}"
        told = " --storm" * given.storm + (f" --only {given.only}" if given.only else "")
        report = {"command": f"python -m tests.soak {size}{told}", **found}
        given.write_report.write_text(json.dumps(report, indent=2) + "\n")
    if found["wrong"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
