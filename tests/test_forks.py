"""After a fork: the functions work in the child, with threads of its own, and Polars is refused where it would hang."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

if not hasattr(os, "fork"):
    pytest.skip("no fork on this system", allow_module_level=True)

#: The child does `work`, and prints what came of it; one that hangs is killed, and tells so.
FORK = """
import os, signal, time
import numpy as np
import polars as pl
import pyarrow as pa
import aq2_pipeline
import aq2_pipeline.polars
from aq2_pipeline import pieces, tensors

pieces.SLICE_SIZE = 10_000
values = np.arange(60_000, dtype=np.float32).reshape(60, 1000)
series = pl.Series("w", values)
frame = pl.DataFrame({"w": series})
column = tensors.rows_of(values, 60)

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            print(work(), flush=True)
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
    for _ in range(1200):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    print("it hangs", flush=True)
"""

USES = {
    "expression": "pl.col('w').aq2.quantize(4)",
    "typed": "aq2_pipeline.polars.dequantize('w')",
    "eager": "frame.select(pl.col('w').aq2.quantize(4))",
    "lazy": "frame.lazy().select(pl.col('w').aq2.weight_stats()).collect()",
    "series": "series.aq2.quantize(4)",
    "python": "aq2_pipeline.quantize(series, 4)",
    "policy": "pl.col('n').aq2.policy_scheme(pl.col('s'), 4)",
}


def printed(script):
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_polars_is_refused_in_a_child_of_a_process_that_used_it():
    """Every way in raises EngineError, which says what to do, before anything can hang."""
    used = "frame.lazy().select(pl.col('w').arr.sum()).collect()\n"
    lines = printed(FORK + used + "".join(f"in_child(lambda: {use})\n" for use in USES.values())).splitlines()
    assert len(lines) == len(USES)
    for line in lines:
        assert line.startswith("EngineError aq2_")
        assert 'multiprocessing.get_context("spawn")' in line


def test_polars_works_in_a_child_of_a_process_that_only_imported_it():
    """A server that forks its workers before it has used Polars is not disturbed."""
    uses = [USES[name] for name in ("eager", "lazy", "series")]
    assert printed(FORK + "".join(f"in_child(lambda: len({use}))\n" for use in uses)) == "60\n" * 3


def test_a_grandchild_has_no_threads_either():
    """What the first fork has taken stays gone in the children of the child."""
    used = "frame.lazy().select(pl.col('w').arr.sum()).collect()\n"
    again = "in_child(lambda: in_child(lambda: series.aq2.quantize(4)))"
    assert printed(FORK + used + again).startswith("EngineError")


def test_python_works_in_every_child():
    """Columns of pyarrow and NumPy are quantized on several threads, also where the parent has used all of it."""
    script = """
expected = aq2_pipeline.quantize(column, 4, threads=4)
frame.lazy().select(pl.col("w").aq2.quantize(4)).collect()
def work():
    return [aq2_pipeline.quantize(given, 4, threads=4).equals(expected) for given in (column, values, list(values))]
in_child(work)
in_child(lambda: in_child(work))
"""
    assert printed(FORK + script).splitlines() == ["[True, True, True]", "[True, True, True]", "None"]


def test_multiprocessing_gets_the_error():
    """A pool of forked processes hands the refusal to the caller; one of spawned processes works."""
    script = """
import multiprocessing, sys
import polars as pl
import aq2_pipeline

def stored(start):
    return pl.Series([[float(start)] * 4], dtype=pl.List(pl.Float32)).aq2.quantize(4).struct.field("length").to_list()

if __name__ == "__main__":
    pl.LazyFrame({"a": [1, 2]}).sort("a").collect()
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            try:
                print(pool.apply_async(stored, (1,)).get(60))
            except aq2_pipeline.EngineError as error:
                print("refused", error.function)
"""
    assert in_file(script).splitlines() == ["refused aq2_quantize", "[4]"]


def in_file(script):
    """Run a script from a file: spawned processes import it."""
    import tempfile  # noqa: PLC0415 - only here
    from pathlib import Path  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text(script)
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fork_waits_for_the_compiler():
    """A fork while another thread compiles leaves no lock taken in the child."""
    script = """
import threading
from aq2_pipeline.kernels import _jit
compiling = threading.Event()
dispatched = _jit.Kernel._dispatched
def slow(self):
    compiling.set()
    time.sleep(0.3)
    return dispatched(self)
_jit.Kernel._dispatched = slow
thread = threading.Thread(target=aq2_pipeline.quantize, args=(column, 4))
thread.start()
compiling.wait()
in_child(lambda: len(aq2_pipeline.quantize(column, 4)))
thread.join()
"""
    assert printed(FORK + script) == "60\n"
