"""The same bytes on any number of threads, however long rows are cut, and whatever else the process does."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numba import njit, types
from support.samples import IDENTITY_SCHEMES, bell, column, shapes

import aq2_pipeline
from aq2_pipeline import InputValueError, pieces, threads
from aq2_pipeline.kernels import _jit, bits, moments

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMES = [
    f"int{b}_{group}{asym}"
    for b, group in ((2, "g32"), (3, "g50"), (4, "g128"), (5, "channel"), (6, "g7"), (7, "tensor"), (8, "g1"))
    for asym in ("", "_asym")
] + IDENTITY_SCHEMES
SHAPES = [None, (4001,), (40, 101), (7, 3, 11, 5), (3, 2000), None, (0,), (1, 1, 997), (5,)]
FUNCTIONS = ["quantize", "dequantize", "quantization_error", "weight_stats"]


def weights() -> tuple[pa.Array, pa.Array]:
    """Return rows from empty to thousands of weights, and their shapes."""
    rows = [bell(13_007, 1)]
    for k, shape in enumerate(SHAPES[1:]):
        rows.append(None if shape is None else bell(int(np.prod(shape)), k))
    return column(*rows), shapes(*SHAPES)


def results(scheme, n_threads):
    """Return what every function gives on n threads."""
    w, given = weights()
    quantized = aq2_pipeline.quantize(w, scheme, given, threads=n_threads)
    return [
        quantized,
        aq2_pipeline.dequantize(quantized, threads=n_threads),
        aq2_pipeline.quantization_error(w, scheme, given, threads=n_threads),
        aq2_pipeline.weight_stats(w, threads=n_threads),
    ]


@pytest.mark.parametrize("slice_size", [64, 500, moments.BLOCK_SIZE, 1 << 23])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_and_cuts_change_nothing(scheme, slice_size, monkeypatch):
    """1, 2 and 8 threads, and rows cut into many pieces, give the bytes of one thread and no cut."""
    expected = results(scheme, 1)
    monkeypatch.setattr(pieces, "SLICE_SIZE", slice_size)
    n_functions = 2 if slice_size < moments.BLOCK_SIZE else 4  # sums are cut at their blocks
    for n_threads in (1, 2, 8):
        for name, one, other in zip(FUNCTIONS, expected, results(scheme, n_threads)[:n_functions], strict=False):
            assert one.equals(other), (name, n_threads)


@pytest.mark.parametrize("scheme", ["int4_g128", "int4_channel_asym", "int4_tensor", "f16"])
def test_cuts_do_not_move_an_error(scheme, monkeypatch):
    """The lowest bad row, and the first bad position in it, is reported, whatever the cuts and threads."""
    rows = [bell(3000, 1), bell(3000, 2), bell(3000, 3)]
    rows[1][[1999, 2500]] = np.nan
    rows[2][0] = np.inf
    found = set()
    for slice_size in (1 << 23, 700, 64):
        monkeypatch.setattr(pieces, "SLICE_SIZE", slice_size)
        for n_threads in (1, 2, 8):
            for function in (aq2_pipeline.quantize, aq2_pipeline.quantization_error):
                with pytest.raises(InputValueError) as caught:
                    function(column(*rows), scheme, threads=n_threads)
                found.add((caught.value.row, caught.value.position))
    assert found == {(1, 1999)}


def test_callers_on_many_threads():
    """Eight threads with different schemes get what each would get alone."""
    chosen = [SCHEMES[k % len(SCHEMES)] for k in range(32)]
    alone = {scheme: results(scheme, 1) for scheme in set(chosen)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda scheme: results(scheme, None), chosen))
    for scheme, given in zip(chosen, found, strict=True):
        assert all(one.equals(other) for one, other in zip(alone[scheme], given, strict=True))


def test_no_more_threads_work_than_asked(monkeypatch):
    """Callers and helpers together stay within the limit, and nothing is counted as working afterwards."""
    monkeypatch.setattr(pieces, "SLICE_SIZE", 64)
    lock, working, most = threading.Lock(), set(), [0]

    def step():
        with lock:
            working.add(threading.get_ident())
            most[0] = max(most[0], len(working))

    threads.run([(step,)] * 200, 3)
    assert 1 <= most[0] <= 3
    assert threads._pool.n_working == 0


def test_callers_work_alone_where_no_thread_can_start(monkeypatch):
    """No room for a thread's stack, neither for a helper's nor for the compiler's, costs time and nothing else."""

    def start(_thread):
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(threads, "_pool", threads._Pool())
    _jit._compiler.cache_clear()
    done = []
    threads.run([(partial(done.append, k),) for k in range(20)], 4)
    assert done == list(range(20))
    assert threads._pool.n_working == 0
    assert _jit.Kernel(lambda x: x + 1, types.int64(types.int64)).compiled(1) == 2
    _jit._compiler.cache_clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("x"), MemoryError])
@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_what_a_step_raises_reaches_the_caller(error, n_threads):
    """The caller gets it, after every running step has ended; the rest is not begun."""
    begun, ended = [], []
    together = threading.Event()

    def failing():
        together.set()
        raise error

    def slow():
        begun.append(1)
        together.wait(20)
        ended.append(1)

    tasks = [(failing,), (slow,)] if n_threads == 1 else [(slow,), (failing,)]
    with pytest.raises(error if isinstance(error, type) else type(error)):
        threads.run([*tasks, *[(slow,)] * 50], n_threads)
    assert begun == ended
    assert len(begun) < 51
    assert threads._pool.n_working == 0


INTERRUPTED = """
import os, signal, threading
import numpy as np
import aq2_pipeline
from aq2_pipeline import pieces, threads
from aq2_pipeline.kernels import rows

running = []
encode_rows = rows.encode_rows
def counted(*args):
    if threading.current_thread() is threading.main_thread():
        return encode_rows(*args)
    running.append(1)
    try:
        return encode_rows(*args)
    finally:
        running.pop()
rows.encode_rows = counted

w = np.arange(3_000_000, dtype=np.float32).reshape(3000, 1000)
pieces.SLICE_SIZE = 100_000
expected = aq2_pipeline.quantize([w], 4, threads=1)
n_interrupts = 0
for k in range(6):
    timer = threading.Timer(0.02 + 0.007 * k, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while True:
            aq2_pipeline.quantize([w], 4, threads=4)
    except KeyboardInterrupt:
        n_interrupts += 1
    assert not running, running
    assert threads._pool.n_working == 0
    timer.join()
assert n_interrupts == 6
assert aq2_pipeline.quantize([w], 4, threads=4).equals(expected)
print("right afterwards")
"""

FORKED = """
import os
import numpy as np
import aq2_pipeline
from aq2_pipeline import pieces

pieces.SLICE_SIZE = 10_000
w = np.arange(300_000, dtype=np.float32).reshape(300, 1000)
expected = aq2_pipeline.quantize([w, w[1:]], 4, threads=4)
child = os.fork()
if child == 0:
    found = aq2_pipeline.quantize([w, w[1:]], 4, threads=4)
    os._exit(0 if found.equals(expected) else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert aq2_pipeline.quantize([w, w[1:]], 4, threads=4).equals(expected)
print("right afterwards")
"""


@pytest.mark.parametrize("script", [INTERRUPTED, FORKED], ids=["interrupt", "fork"])
def test_interrupts_and_forks_leave_a_working_pool(script):
    """After Ctrl-C nothing is running and the next call is right; a forked child works with threads of its own."""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "right afterwards\n"), done.stderr


@njit
def flush_to_zero():
    """Switch on flush-to-zero and denormals-are-zero in this thread, as `torch.set_flush_denormal(True)` does."""
    bits._write_control(np.int32(bits._read_control(np.int32(0)) | np.int32(bits._FLUSHING)))


def flushed(function):
    """Run a function in a thread that flushes subnormals, and check that it does before and after."""

    def run():
        flush_to_zero()
        states = [np.float32(1e-40) * np.float32(1) == 0]
        result = function()
        states.append(np.float32(1e-40) * np.float32(1) == 0)
        return result, states

    with ThreadPoolExecutor(1) as pool:
        result, states = pool.submit(run).result()
    assert states == [True, True]
    return result


@pytest.mark.parametrize("scheme", ["int2_g32", "int4_g32_asym", "int8_channel", "f32", "f16", "bf16"])
def test_flushing_threads_give_the_same_bytes(scheme):
    """Flush-to-zero in the caller's thread changes no byte, and is still on afterwards."""
    smallest = np.finfo(np.float32).smallest_normal
    rows = [bell(100) * np.float32(2.0**-k) for k in (8, 20, 110, 118, 122, 130, 145)]
    rows.append(np.array([smallest, smallest * 0.9, 1e-45, -1e-40, 0, -0.0, 3e-39], np.float32))
    w = column(*rows)

    def everything():
        quantized = aq2_pipeline.quantize(w, scheme, threads=1)
        decoded = aq2_pipeline.dequantize(quantized, threads=1)
        return [quantized, decoded, aq2_pipeline.quantization_error(w, scheme, threads=1), aq2_pipeline.weight_stats(w)]

    for name, one, other in zip(FUNCTIONS, everything(), flushed(everything), strict=True):
        assert one.equals(other), name
