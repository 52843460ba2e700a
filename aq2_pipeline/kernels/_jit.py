"""The one file that knows Numba's options, and the signatures that codecs share."""

from __future__ import annotations

import functools
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from numba import cfunc, njit, types
from numba.core.errors import NumbaWarning

if TYPE_CHECKING:
    from collections.abc import Callable

#: No `parallel=True`: it aborts the process when two engine threads call in
#: under the workqueue layer and kills forked children under OpenMP. No
#: fastmath: the bytes are promised to be the same on every CPU, so nothing may
#: be reassociated or contracted to a fused multiply-add.
#: No reference counts (`_nrt`): a kernel allocates nothing and keeps nothing, its callers hold the buffers, and
#: counting the slices of each group took a quarter of int4's time (0.64 against 0.46 ms per million weights).
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False, "_nrt": False}

#: A small function that kernels call; LLVM inlines it.
helper = njit(**OPTIONS)

#: A small function that compiled code only calls: without entries for Python and C it compiles a third faster.
part = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)

#: A helper that is inlined before types are known: for the few that hand slices
#: on to others, where a call that LLVM leaves standing is a tenth of the time.
inlined = njit(inline="always", **OPTIONS)

#: Arrow's and Polars' buffers come as read-only views, so every input is.
floats_in = types.Array(types.float32, 1, "C", readonly=True)
ints_in = types.Array(types.int64, 1, "C", readonly=True)
bytes_in = types.Array(types.uint8, 1, "C", readonly=True)
floats_out = types.Array(types.float32, 1, "C")
doubles_out = types.Array(types.float64, 1, "C")
ints_out = types.Array(types.int64, 1, "C")
bytes_out = types.Array(types.uint8, 1, "C")

#: `encode(values, row_length, params, importance, data, scales, zero_points) -> status`
ENCODE = types.int64(floats_in, types.int64, ints_in, floats_in, bytes_out, floats_out, floats_out)
#: `decode(data, scales, zero_points, row_length, params, values) -> status`
DECODE = types.int64(bytes_in, floats_in, floats_in, types.int64, ints_in, floats_out)

#: `error(values, position, row_length, params, importance, lanes, sums) -> status`
ERROR = types.int64(floats_in, types.int64, types.int64, ints_in, floats_in, doubles_out, doubles_out)

encode_function = types.FunctionType(ENCODE)
decode_function = types.FunctionType(DECODE)
error_function = types.FunctionType(ERROR)


@functools.cache
def _compiler() -> ThreadPoolExecutor:
    """Return the one thread that compiles; a forked child makes its own."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="aq2-compile")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compiler.cache_clear)


class Kernel:
    """A function with one signature, compiled (or read from the cache) at its first use.

    Parameters
    ----------
    py_func : callable
        The Python function; tests run it as it stands.
    signature : numba signature
        The only types it is compiled for.
    """

    def __init__(self, py_func: Callable[..., Any], signature: Any) -> None:
        functools.update_wrapper(self, py_func)
        self.py_func = py_func
        self.signature = signature
        self._dispatcher: Any = None

    @functools.cached_property
    def compiled(self) -> Any:
        """The Numba dispatcher.

        A helper thread makes it while this one waits: an interrupt that meets
        LLVM's callbacks would be swallowed, and a wait answers it.
        """
        return _compiler().submit(self._compile).result()

    def _compile(self) -> Any:
        if self._dispatcher is None:  # the only thread that compiles has not been here
            self._dispatcher = self._dispatched()
            # Numba asks LLVM for these addresses whenever one kernel is handed to another, under a lock that an
            # interrupt of the main thread can leave taken for ever; so they are looked up once, here.
            for found in getattr(self._dispatcher, "overloads", {}).values():  # none where the JIT is off
                address_of = functools.cache(found.library.get_pointer_to_function)
                address_of(found.fndesc.llvm_cfunc_wrapper_name)
                address_of(found.fndesc.llvm_func_name)
                found.library.get_pointer_to_function = address_of
        return self._dispatcher

    def _dispatched(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaWarning)
            try:
                return njit(self.signature, cache=True, **OPTIONS)(self.py_func)
            except RuntimeError:  # "no locator available": no folder holds a cache, which costs time only
                return njit(self.signature, **OPTIONS)(self.py_func)

    def __call__(self, *args: Any) -> Any:
        """Run the compiled function."""
        return self.compiled(*args)

    def address(self) -> int:
        """Return where the compiled function is; its calling convention is Numba's."""
        (found,) = self.compiled.overloads.values()
        return int(found.library.get_pointer_to_function(found.fndesc.llvm_func_name))


class Callback(Kernel):
    """A kernel that C calls: it raises nothing, and what it returns is all that it says."""

    def _dispatched(self) -> Any:
        options = {name: value for name, value in OPTIONS.items() if name != "nogil"}  # C callers hold none
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaWarning)
            try:
                return cfunc(self.signature, cache=True, **options)(self.py_func)
            except RuntimeError:  # as for a kernel
                return cfunc(self.signature, **options)(self.py_func)

    def address(self) -> int:
        """Return where the compiled function is, for C."""
        return int(self.compiled.address)


def callback(signature: Any) -> Callable[[Callable[..., Any]], Callback]:
    """Declare a function for C with its signature; nothing compiles until its address is asked for."""
    return lambda py_func: Callback(py_func, signature)


def kernel(signature: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel with its signature; nothing compiles until it runs."""
    return lambda py_func: Kernel(py_func, signature)
