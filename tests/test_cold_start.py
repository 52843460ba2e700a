"""The first call of a process: nothing at import, caches that are used where they work, and `warmup`."""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import aq2_pipeline
from aq2_pipeline import InputValueError, SchemeError
from aq2_pipeline.kernels import _jit


def child(code, *arguments, **environment):
    """Run code in a fresh process and return what it printed."""
    import os  # noqa: PLC0415 - only children need it

    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WARM = """
import numpy as np
import aq2_pipeline
from aq2_pipeline.kernels import _jit

aq2_pipeline.warmup({arguments})
def late(self):
    raise AssertionError(f"{{self.__name__}} was not warm")
_jit.Kernel._compile_now = late
w = np.linspace(-1, 1, 1000, dtype=np.float32)
for scheme in {schemes}:
    for dtype in (np.float32, np.float16, np.float64):
        q = aq2_pipeline.quantize(w.astype(dtype), scheme)
        if {everything}:
            aq2_pipeline.dequantize(q)
            aq2_pipeline.quantization_error(w.astype(dtype), scheme)
            aq2_pipeline.weight_stats(w.astype(dtype))
print("warm")
"""


@pytest.mark.parametrize(
    ("arguments", "schemes", "everything"),
    [("", "(2, 'int3_g7_asym', 'int8_channel', 'f32', 'f16', 'bf16')", True), ("4, 'quantize'", "(4,)", False)],
)
def test_nothing_compiles_after_a_warmup(arguments, schemes, everything):
    """What was asked for, by default everything, finds its kernels; float16 and float64 input does too."""
    assert child(WARM.format(arguments=arguments, schemes=schemes, everything=everything)) == "warm\n"


def test_threads_may_warm_up_at_once():
    """Calls from several threads all return."""
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: aq2_pipeline.warmup(4), range(8))) == [None] * 8


def test_a_wrong_warmup_is_refused():
    """Unknown schemes and functions are errors."""
    with pytest.raises(SchemeError, match="closest known names"):
        aq2_pipeline.warmup(["int4_g128", "int4_g128x"])
    with pytest.raises(InputValueError, match="'quantise' is no function"):
        aq2_pipeline.warmup(functions=["quantise"])


QUANTIZE = """
import numpy as np, aq2_pipeline
print(aq2_pipeline.quantize(np.array([1.0, -7.0, 3.5], np.float32), 4)[0]["quantized_data"].as_py().hex())
"""


@pytest.mark.parametrize("folder", ["/proc/nothing", __file__], ids=["no folder", "a file"])
def test_a_cache_folder_that_cannot_be_costs_time_only(folder):
    """Where `NUMBA_CACHE_DIR` cannot be made, functions work."""
    assert child(QUANTIZE, NUMBA_CACHE_DIR=folder) == "190c\n"


#: A package of one kernel; it tells whether it was compiled or came from the cache.
KERNEL = """
from numba import types
from aq2_pipeline.kernels._jit import kernel

@kernel(types.int64(types.int64))
def twice(x):
    return x + x
"""
TWICE = """
import sys
sys.path.insert(0, sys.argv[1])
from a_kernel import twice
print(twice(21), sum(twice.compiled.stats.cache_hits.values()))
"""


@pytest.fixture
def cached(tmp_path):
    """Return the folder of a kernel, and a function that runs it in a process of its own."""
    (tmp_path / "a_kernel.py").write_text(KERNEL)
    return tmp_path, lambda code=TWICE: child(code, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))


def test_a_damaged_cache_is_made_anew(cached):
    """A truncated file of the cache costs the next process a compilation, and not those after it."""
    folder, run = cached
    assert (run(), run()) == ("42 0\n", "42 1\n")
    for suffix, size in itertools.product(("nbi", "nbc"), (0, 60)):
        [path] = folder.rglob(f"*.{suffix}")
        path.write_bytes(path.read_bytes()[:size])
        assert (run(), run()) == ("42 0\n", "42 1\n"), (suffix, size)


def test_a_full_disk_costs_time_only(cached):
    """Where nothing can be written any more, kernels are compiled and not kept."""
    pytest.importorskip("resource")
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    full += TWICE.replace("print", "resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))\nprint")
    _, run = cached
    assert run(full) == "42 0\n"


def test_processes_may_fill_a_cache_at_once(cached):
    """Four processes that begin with an empty cache all work, and the next finds it filled."""
    _, run = cached
    with ThreadPoolExecutor(4) as pool:
        assert {text.split()[0] for text in pool.map(lambda _: run(), range(4))} == {"42"}
    assert run() == "42 1\n"


def test_a_wrong_kernel_tells_its_error():
    """What the compiler says is not taken for a cache that does not work."""
    with pytest.raises(Exception, match="undefined_name"):
        _jit.Kernel(lambda x: undefined_name + x, _jit.types.int64(_jit.types.int64)).compiled  # noqa: B018, F821


BLAS = """
import sys
import numpy as np, aq2_pipeline
aq2_pipeline.quantize(np.ones(8, np.float32), 4)
print("scipy.linalg" in sys.modules)
from numba import njit
@njit
def product(a):
    return a @ a
print(product(np.eye(2) * 3)[0, 0])
"""


def test_scipy_is_not_imported_for_a_first_call():
    """A first call leaves SciPy alone, and a user's Numba function still has its BLAS."""
    pytest.importorskip("scipy")
    assert child(BLAS) == "False\n9.0\n"


REGISTRIES = """
import sys
import numpy as np, aq2_pipeline
aq2_pipeline.quantize(np.ones(8, np.float32), 4)
print("numba.np.arraymath" in sys.modules)
"""


def test_what_only_compiling_needs_is_not_loaded_for_a_cached_kernel():
    """Numba's registries, half of a first call's time, stay where they are."""
    aq2_pipeline.warmup(4)
    assert child(REGISTRIES) == "False\n"


def test_a_cache_is_fresh_only_if_all_kernels_are(tmp_path):
    """A kernel outside the package is compiled anew when a file of `kernels` changes, which it may be made of."""
    module = tmp_path / "outside.py"
    module.write_text(
        "from aq2_pipeline.kernels import MEASURE, kernel\n"
        "@kernel(MEASURE)\n"
        "def measure(values, bounds):\n"
        "    return values.size\n"
    )
    run = (
        "import sys; sys.path.insert(0, sys.argv[1]); import outside; from aq2_pipeline.kernels import _jit\n"
        "if sys.argv[2:]: _jit._sources = lambda _: 'changed'\n"
        "print(sum(outside.measure.compiled.stats.cache_hits.values()))"
    )
    hits = []
    for changed in ([], [], ["changed"], ["changed"]):
        command = [sys.executable, "-c", run, str(tmp_path), *changed]
        hits.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert hits == [0, 1, 0, 1]
