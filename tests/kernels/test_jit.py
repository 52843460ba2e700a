"""Kernels that factories make: what the cache gives back is what was compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from aq2_pipeline.kernels import _jit

SCRIPT = """
import sys
import numpy as np
from numba import types
from aq2_pipeline.kernels._jit import helper, kernel

def made(number):
    @helper
    def inner(x, y):  # too long to be inlined at each of many calls
        found = np.float64(y)
        for k in range(x):
            found = np.sin(found) * number + np.cos(found) * k + np.exp(-found * found) * (number + k)
            found = found + np.log(1 + found * found) * np.sqrt(k + number) + np.tanh(found * k)
            if found > number:
                found = found / (np.arctan(found) + number) + np.sinh(1 / (1 + found * found))
            else:
                found = found * found / (1 + k) + np.cosh(1 / (1 + found * found))
        return found

    @kernel(types.float64(types.int64), f"made {number}")
    def outer(x):
        found = 0.0
        for k in range(x):
            found = inner(x, found) + inner(k, found) + inner(x + k, found) + inner(3 * k, found) + inner(5 + k, found)
        return found

    return outer

kernels = made(3), made(5)
print(*(kernels[int(which)](4) for which in sys.argv[1:]))
"""


def test_the_cache_keeps_a_factorys_functions_apart(tmp_path):
    """Two kernels that two processes compiled call their own functions in a third."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(*which: str) -> list[str]:
        paths = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, script, *which], env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.split()

    first, second = run("0"), run("1")
    assert first != second
    assert run("0", "1") == first + second


def test_a_function_is_named_by_what_its_factory_gave_it():
    """Equal for equal numbers and functions, another for others; a function without a factory keeps its name."""

    def named(held):
        def function():
            return held

        return _jit._named(function).__qualname__

    values = (np.float32(1), 1, 1.0, "1", None, (1, 2), np.sum, _jit.kernel, _jit.helper(lambda: 1))
    assert [named(value) for value in values] == [named(value) for value in values]
    assert len({named(value) for value in values}) == len(values)
    assert _jit._named(test_a_function_is_named_by_what_its_factory_gave_it).__qualname__.endswith("gave_it")


def test_first_calls_register_no_types():
    """Numba's table of types, which other threads search meanwhile, is whole before the first kernel is called."""
    code = """
import numpy as np
from numba.core.typing.typeof import typeof_impl
import aq2_pipeline
from aq2_pipeline.kernels import rows
known = set(typeof_impl.registry)
aq2_pipeline.dequantize(aq2_pipeline.quantize([np.ones(64, np.float32)], "int4_g32"))
assert set(typeof_impl.registry) == known, set(typeof_impl.registry) - known
"""
    subprocess.run([sys.executable, "-c", code], check=True)
