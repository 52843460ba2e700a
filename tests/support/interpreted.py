"""Kernels as plain Python: what Numba was given, run by the interpreter."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aq2_pipeline.kernels import (
    bits,
    grouped,
    identity,
    integer,
    moments,
    packing,
    rotation,
    rows,
    searches,
    staging,
    vectors,
    widening,
)
from aq2_pipeline.kernels.blocks import frame

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = (
    bits, vectors, moments, packing, widening, integer, identity, rows, grouped, searches, staging, frame, rotation
)  # fmt: skip


def _is_compiled(value: Any) -> bool:
    return hasattr(value, "py_func") and hasattr(value, "nopython_signatures")


def interpret_closure(function: Any, patch: pytest.MonkeyPatch) -> None:
    """Replace what a factory gave a function to call, and what that calls."""
    for cell in function.__closure__ or ():
        if _is_compiled(cell.cell_contents):
            inner = cell.cell_contents.py_func
            patch.setattr(cell, "cell_contents", inner)
            interpret_closure(inner, patch)


@contextlib.contextmanager
def interpreted(*more: Any) -> Iterator[None]:
    """Replace every compiled helper by its Python function, for a while; in more modules, too."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (*MODULES, *more):
            for name, value in list(vars(module).items()):
                if _is_compiled(value):
                    patch.setattr(module, name, value.py_func)
                    interpret_closure(value.py_func, patch)
        yield


def readonly(values: Any, dtype: Any = None) -> np.ndarray:
    """Return a contiguous read-only array, as kernels take their inputs."""
    array = np.ascontiguousarray(values, dtype).view()
    array.flags.writeable = False
    return array


NONE = readonly([], np.float32)


def encode(kernel: Any, w: np.ndarray, row_length: int, params: tuple, sizes: tuple) -> tuple:
    """Run an encoder on one row: (status, data, scales, zero points), in outputs that were full of ones."""
    data = np.full(sizes[0], 255, np.uint8)
    scales, zeros = np.full(sizes[1], np.nan, np.float32), np.full(sizes[2], np.nan, np.float32)
    status = kernel(readonly(w), row_length, readonly(params, np.int64), NONE, data, scales, zeros)
    return status, data, scales, zeros


def decode(kernel: Any, data: Any, scales: Any, zeros: Any, row_length: int, params: tuple, n: int) -> tuple:
    """Run a decoder on one row: (status, values)."""
    values = np.full(n, np.nan, np.float32)
    given = (readonly(data, np.uint8), readonly(scales, np.float32), readonly(zeros, np.float32))
    status = kernel(*given, row_length, readonly(params, np.int64), values)
    return status, values


def error(kernel: Any, w: np.ndarray, row_length: int, params: tuple) -> tuple:
    """Run an error kernel on one row: (status, sums)."""
    lanes, sums = np.zeros(moments.N_ERROR_SUMS * moments.N_LANES), np.zeros(moments.N_ERROR_SUMS)
    status = kernel(readonly(w), 0, row_length, readonly(params, np.int64), NONE, lanes, sums)
    moments.flush_lanes(lanes, sums)
    return status, sums
