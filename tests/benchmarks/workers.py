"""Rows run in child processes: one for each number of threads, and one for each row that must be alone.

The number of threads is set before anything is imported. A child that dies takes down its row, not the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass

from tests.benchmarks.results import MissingError, Result
from tests.benchmarks.timing import Setting

#: Seconds of silence after which a child is given up.
PATIENCE = 1800

#: Libraries that ask for their number of threads in the environment, when they are imported.
_THREADS = ("AQ2_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A row at a number of threads."""

    row: str
    threads: int
    alone: bool


def jobs_of(rows, n_threads, *, quick):
    """Return the jobs of rows; a quick run is about shape, so it takes the largest number of threads only."""
    found = []
    for row in rows:
        counts = sorted({1 if name == "one" else n_threads for name in row.threads})
        # Peaks need a process of their own even where time does not matter.
        alone = row.alone and not (quick and row.section == "Peers")
        found += (Job(row.name, count, alone) for count in (counts[-1:] if quick else counts))
    return found


def grouped(jobs, *, quick):
    """Return lists of jobs that share a process."""
    shared = {}
    for job in jobs:
        key = (job.row, job.threads) if job.alone else ("", 0 if quick else job.threads)
        shared.setdefault(key, []).append(job)
    return list(shared.values())


def run(jobs, options, told):
    """Run jobs, telling of each result, and return the results in the order of the jobs."""
    results = {}
    for group in grouped(jobs, quick=options["quick"]):
        left = list(group)
        while left:
            for result in _child(left, options):
                results[result.row, result.threads] = result
                left.pop(0)
                told(result)
    return [results[job.row, job.threads] for job in jobs]


def _child(jobs, options):
    """Yield results as a child gives them; where it dies, the last is the failure of the job that it died of."""
    reader, writer = os.pipe()
    n_threads = max(job.threads for job in jobs)
    spec = json.dumps(options | {"jobs": [(job.row, job.threads) for job in jobs], "pipe": writer})
    command = [sys.executable, "-m", "tests.benchmarks", "--worker", spec]
    environment = os.environ | dict.fromkeys(_THREADS, str(n_threads))
    with subprocess.Popen(command, env=environment, pass_fds=[writer], stdout=subprocess.DEVNULL) as child:
        os.close(writer)
        n_done = 0
        with os.fdopen(reader) as lines:
            watchdog = _watchdog(child)
            for line in lines:
                watchdog.cancel()
                yield Result.from_json(json.loads(line))
                n_done += 1
                watchdog = _watchdog(child)
            watchdog.cancel()
        if n_done < len(jobs):
            child.kill()
            code = child.wait()
            job = jobs[n_done]
            yield Result(job.row, job.threads, "failed", reason=f"its process ended with code {code}")


def _watchdog(child):
    timer = threading.Timer(PATIENCE, child.kill)
    timer.daemon = True
    timer.start()
    return timer


def pin(n_threads):
    """Keep this process, and what it starts, on as many cores as it may use threads."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-n_threads:])


def work(spec):
    """Be the child: run the jobs, a line of JSON each."""
    options = json.loads(spec)
    pin(max(threads for _, threads in options["jobs"]))
    from tests.benchmarks import table  # noqa: PLC0415 - engines count the cores when they are imported

    rows = {row.name: row for row in table.ROWS}
    with os.fdopen(options["pipe"], "w") as pipe:
        for name, threads in options["jobs"]:
            setting = Setting(threads, options["quick"], options["runs"], options["shortest"])
            pipe.write(json.dumps(_result(rows[name], setting).to_json()) + "\n")
            pipe.flush()


def _result(row, setting):
    try:
        return Result(row.name, setting.threads, "ran", row.run(setting, row.bar))
    except MissingError as error:
        return Result(row.name, setting.threads, "missing", reason=str(error))
    except Exception as error:  # noqa: BLE001 - a row that fails is told, and fails the run; the others go on
        traceback.print_exc()
        return Result(row.name, setting.threads, "failed", reason=f"{type(error).__name__}: {error}")
