"""The one file that knows Numba's options, and the signatures that codecs share."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba import cfunc, njit, types
from numba.core import sigutils
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import NumbaWarning
from numba.core.runtime.nrt import rtsys
from numba.experimental import function_type  # noqa: F401 - see below

if TYPE_CHECKING:
    from collections.abc import Callable

# Numba imports `function_type` when the first kernel is handed to another, and it registers types then, which the same
# call of another thread may be searching: "dictionary changed size during iteration".

#: No `parallel=True`: it aborts the process when two engine threads call in
#: under the workqueue layer and kills forked children under OpenMP. No
#: fastmath: the bytes are promised to be the same on every CPU, so nothing may
#: be reassociated or contracted to a fused multiply-add.
#: No reference counts (`_nrt`): a kernel allocates nothing and keeps nothing, its callers hold the buffers, and
#: counting the slices of each group took a quarter of int4's time (0.64 against 0.46 ms per million weights).
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False, "_nrt": False}


def _told(value: Any) -> str:
    """Return what tells something that a function holds apart, in the words of every process."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_told, value))})"
    function = getattr(value, "py_func", value)
    return f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(value)


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """Name a factory's function by what the factory gave it.

    LLVM knows a function by its name and a number that Numba counts in each process: of two kernels from the cache,
    compiled by different processes, the second would call the first one's functions if they had equal names.
    """
    if function.__closure__:
        held = ";".join(_told(cell.cell_contents) for cell in function.__closure__)
        function.__qualname__ += f"_{hashlib.sha256(held.encode()).hexdigest()[:16]}"
    return function


def helper(function: Callable[..., Any]) -> Any:
    """Declare a small function that kernels call; LLVM inlines it."""
    return njit(**OPTIONS)(_named(function))


#: A small function that compiled code only calls: without entries for Python and C it compiles a third faster.
part = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)

#: A helper that is inlined before types are known: for the few that hand slices
#: on to others, where a call that LLVM leaves standing is a tenth of the time.
inlined = njit(inline="always", **OPTIONS)

#: Arrow's and Polars' buffers come as read-only views, so every input is.
floats_in = types.Array(types.float32, 1, "C", readonly=True)
ints_in = types.Array(types.int64, 1, "C", readonly=True)
bytes_in = types.Array(types.uint8, 1, "C", readonly=True)
#: The bits of float16.
halves_in = types.Array(types.uint16, 1, "C", readonly=True)
floats_out = types.Array(types.float32, 1, "C")
doubles_out = types.Array(types.float64, 1, "C")
ints_out = types.Array(types.int64, 1, "C")
bytes_out = types.Array(types.uint8, 1, "C")

#: `encode(values, row_length, params, importance, data, scales, zero_points) -> status`
ENCODE = types.int64(floats_in, types.int64, ints_in, floats_in, bytes_out, floats_out, floats_out)
#: `encode` of the bits of float16.
ENCODE_HALVES = types.int64(halves_in, types.int64, ints_in, floats_in, bytes_out, floats_out, floats_out)
#: `decode(data, scales, zero_points, row_length, params, values) -> status`
DECODE = types.int64(bytes_in, floats_in, floats_in, types.int64, ints_in, floats_out)

#: `error(values, position, row_length, params, importance, lanes, sums) -> status`
ERROR = types.int64(floats_in, types.int64, types.int64, ints_in, floats_in, doubles_out, doubles_out)

#: `measure(values, bounds) -> status`
MEASURE = types.int64(floats_in, ints_out)

encode_function = types.FunctionType(ENCODE)
encode_halves_function = types.FunctionType(ENCODE_HALVES)
decode_function = types.FunctionType(DECODE)
error_function = types.FunctionType(ERROR)
measure_function = types.FunctionType(MEASURE)


@functools.cache
def _compiler() -> ThreadPoolExecutor:
    """Return the one thread that compiles; a forked child makes its own."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="aq2-compile")


#: Held while a kernel is compiled. A fork waits for it: a child would inherit Numba's lock taken, and hang.
_compiling = threading.RLock()


def _after_fork() -> None:
    _compiling.release()
    _compiler.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_after_fork)


@functools.cache
def _find_blas() -> None:
    """Tell Numba whether SciPy's BLAS is there, without importing it: that is most of a first call's time.

    Numba asks once, when its first function is compiled, by importing
    `scipy.linalg`: 0.34 of 0.89 s. Whoever uses a BLAS function imports it then.
    """
    if "scipy.linalg" in sys.modules or "numba.np.arraymath" in sys.modules:
        return
    from numba.np import linalg  # noqa: PLC0415 - it is part of the first call

    asked = linalg.ensure_blas
    linalg.ensure_blas = _look_for_blas
    try:
        from numba.np import arraymath  # noqa: PLC0415

        vars(arraymath)["ensure_blas"] = asked
    finally:
        linalg.ensure_blas = asked


def _look_for_blas() -> None:
    found = importlib.util.find_spec("scipy")
    folders = (found.submodule_search_locations if found else None) or []
    if not any(next(Path(folder, "linalg").glob("cython_blas.*"), None) for folder in folders):
        raise ImportError


_PACKAGE = Path(__file__).parent.parent


@functools.cache
def _sources(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, time and size of every file of ours that a function of a folder may be compiled from."""
    folders = [Path(__file__).parent] + [folder] * folder.is_relative_to(_PACKAGE)
    found = ((path, path.stat()) for each in folders for path in sorted(each.glob("*.py")))
    return tuple((path.name, stat.st_mtime_ns, stat.st_size) for path, stat in found)


def _cache(compiled: Any, py_func: Callable[..., Any], name: str | None) -> None:
    """Let Numba keep a function, for as long as all that it is made of stays the same.

    What a factory made is known by its name: Numba would tell it by the functions in its closure, whose
    pickles are others in each process.

    Numba takes a cache for fresh if the function's own file is; what it calls is compiled into it, and a kernel
    of another package that kept an older `moments` would write where its sums no longer are.
    """
    compiled.enable_caching()
    file = compiled._cache._cache_file  # noqa: SLF001 - Numba has no other way
    file._source_stamp = (file._source_stamp, _sources(Path(py_func.__code__.co_filename).parent))  # noqa: SLF001
    if name is not None:
        compiled._cache._index_key = lambda signature, codegen: (signature, codegen.magic_tuple(), name)  # noqa: SLF001


class Kernel:
    """A function with one signature, compiled (or read from the cache) at its first use.

    Parameters
    ----------
    py_func : callable
        The Python function; tests run it as it stands.
    signature : numba signature
        The only types it is compiled for.
    name : str, optional
        What a factory's kernels are told apart by, where they differ in the
        functions that they call; it must say all that they are made of.
    """

    def __init__(self, py_func: Callable[..., Any], signature: Any, name: str | None = None) -> None:
        functools.update_wrapper(self, py_func)
        self.py_func = py_func
        self.signature = signature
        self.name = name
        self._dispatcher: Any = None

    @property
    def compiled(self) -> Any:
        """The Numba dispatcher.

        A helper thread makes it while this one waits: an interrupt that meets
        LLVM's callbacks would be swallowed, and a wait answers it.
        """
        if self._dispatcher:
            return self._dispatcher
        try:
            compiled = _compiler().submit(self._compile)
        except RuntimeError:  # no room for a thread's stack
            return self._compile()
        return compiled.result()

    def _compile(self) -> Any:
        with _compiling:
            return self._dispatcher or self._compile_now()

    def _compile_now(self) -> Any:
        dispatcher = self._dispatched()
        # Numba asks for these whenever one kernel is handed to another, and LLVM for the addresses under a lock that
        # an interrupt of the main thread can leave taken for ever; so they are looked up once, here. It makes such
        # a call 23 of 38 us cheaper, too.
        for found in getattr(dispatcher, "overloads", {}).values():  # none where the JIT is off
            dispatcher.get_compile_result = lambda _, only=found: only
            address_of = functools.cache(found.library.get_pointer_to_function)
            address_of(found.fndesc.llvm_cfunc_wrapper_name)
            address_of(found.fndesc.llvm_func_name)
            found.library.get_pointer_to_function = address_of
        self._dispatcher = dispatcher
        return dispatcher

    def _dispatched(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaWarning)
            try:
                return self._cached()
            except Exception:  # noqa: BLE001 - no folder holds a cache, or it is full or damaged, which costs time only
                self._empty_cache()
            with contextlib.suppress(Exception):
                return self._cached()
            _find_blas()
            return njit(self.signature, **OPTIONS)(self.py_func)  # what is wrong with the function itself is told here

    def _cached(self) -> Any:
        dispatcher = njit(**OPTIONS)(self.py_func)
        if not hasattr(dispatcher, "enable_caching"):  # the JIT is off
            return dispatcher
        _cache(dispatcher, self.py_func, self.name)
        found = False
        with contextlib.suppress(AttributeError):  # a Numba that is built otherwise reads by itself, in more time
            found = self._read(dispatcher)
        if not found:
            _find_blas()
            dispatcher.compile(self.signature)
        dispatcher.disable_compile()
        return dispatcher

    def _read(self, dispatcher: Any) -> bool:
        """Read the compiled function from the cache, if it is there; return whether it is.

        As `Dispatcher.compile` does it, but without the refresh of its target: that fills the registries that typing
        and lowering need, and takes 0.2 of the 0.6 s of a first call. Who compiles later refreshes it then.
        """
        context, cache, found = dispatcher.targetctx, dispatcher._cache, None  # noqa: SLF001 - Numba has no other way
        with global_compiler_lock:
            rtsys.initialize(context)  # part of a refresh: the symbols that compiled functions take arrays with
            with cache._guard_against_spurious_io_errors():  # noqa: SLF001
                found = cache._load_overload(self.signature, context)  # noqa: SLF001 - `load_overload` refreshes
            if found is None:
                return False
            dispatcher._cache_hits[self.signature] += 1  # noqa: SLF001
            context.insert_user_function(found.entry_point, found.fndesc, [found.library])
            dispatcher.add_overload(found)
            return True

    def _empty_cache(self) -> None:
        """Begin the function's cache anew, so that a damaged one does not cost every process its time."""
        with contextlib.suppress(Exception):
            njit(cache=True, **OPTIONS)(self.py_func)._cache.flush()  # noqa: SLF001 - Numba has no other way

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
            compiled = CFunc(self.py_func, sigutils.normalize_signature(self.signature), locals={}, options=options)
            with contextlib.suppress(Exception):  # as for a kernel
                _cache(compiled, self.py_func, self.name)
                compiled.compile()
                return compiled
            return cfunc(self.signature, **options)(self.py_func)

    def address(self) -> int:
        """Return where the compiled function is, for C."""
        return int(self.compiled.address)


def callback(signature: Any) -> Callable[[Callable[..., Any]], Callback]:
    """Declare a function for C with its signature; nothing compiles until its address is asked for."""
    return lambda py_func: Callback(py_func, signature)


def kernel(signature: Any, name: str | None = None) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel with its signature; nothing compiles until it runs."""
    return lambda py_func: Kernel(py_func, signature, name)
