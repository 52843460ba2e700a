"""How DuckDB comes to call us: a static extension, registered once a process, that adds the functions to new databases.

The registration is the process's and cannot be taken back, so its entry asks
each time whether this database is to have the functions: where `enable` was
called, and inside `wanted`, on that thread. A second registration under the
same name, or a failed one, would make every later `duckdb.connect()` fail; so
what is installed is remembered on DuckDB's own module, where a reload of ours, a
second import and another copy of this package find it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import subprocess
import sys
import threading
from ctypes import POINTER, c_bool, c_char_p, c_int32, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as pt

from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.udfs.duckdb_native import capi
from aq2_pipeline.udfs.duckdb_native.capi import TypeId
from aq2_pipeline.udfs.duckdb_native.plans import Plans
from aq2_pipeline.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aq2_pipeline.functions import Function

__all__ = ["SWITCH", "enable", "missing", "wanted"]

#: The environment variable that turns native functions off.
SWITCH = "AQ2_DUCKDB_NATIVE"
#: The attribute of `_duckdb` that remembers what is installed, and the form that it has.
_MARK, _FORM = "_aq2_pipeline_native", 1
_NAME = b"aq2_pipeline"
#: Releases of DuckDB that a registration was tested with; with others a child process tries it first.
_TESTED = ("2.0.",)

_ENTRY = ctypes.CFUNCTYPE(c_bool, c_void_p, POINTER(capi.Access))
_DESCRIBE = ctypes.CFUNCTYPE(c_int32, POINTER(capi.Descriptor))


class Installed:
    """What is installed in this process; plain data and one method, for every copy of this package to read."""

    def __init__(self) -> None:
        self.form = _FORM
        self.version = __version__
        self.works = self.everywhere = False
        self.here = threading.local()
        self.keep: list[Any] = []  # callbacks and records: DuckDB calls them as long as the process lives

    def asked(self) -> bool:
        """Whether a database that opens now, on this thread, is to have the functions."""
        return self.everywhere or getattr(self.here, "depth", 0) > 0


def _logical_type(api: Any, kind: pa.DataType) -> int:
    """Return the logical type of one of the result types of `functions`; the caller's to destroy."""
    if pt.is_struct(kind):
        children = (c_void_p * kind.num_fields)(*(_logical_type(api, field.type) for field in kind))
        names = (c_char_p * kind.num_fields)(*(field.name.encode() for field in kind))
        made = api.create_struct_type(children, names, kind.num_fields)
    elif pt.is_large_list(kind):
        children = (c_void_p * 1)(_logical_type(api, kind.value_type))
        made = api.create_list_type(children[0])
    else:
        simple = {
            pa.int64(): TypeId.BIGINT,
            pa.float32(): TypeId.FLOAT,
            pa.float64(): TypeId.DOUBLE,
            pa.large_string(): TypeId.VARCHAR,
            pa.large_binary(): TypeId.BLOB,
        }
        return int(api.create_logical_type(simple[kind]))
    for child in children:
        api.destroy_logical_type(ctypes.byref(c_void_p(child)))
    return int(made)


class _Native:
    """One function, as DuckDB is given it: its callbacks, and the record that they share."""

    def __init__(self, function: Function, plans: Plans) -> None:
        from aq2_pipeline.udfs.duckdb_native import binding, bodies, general  # noqa: PLC0415 - they load Numba

        self.function = function
        self.general = general.body_of(function)
        self.record = plans.record_of(self.general)
        self.bind = binding.bind_of(function, plans, self.record)
        self.choose = bodies.choose
        self.body = self.choose.address()

    def register(self, api: Any, connection: c_void_p) -> None:
        """Add the function to a database; it has no parameters but ANY varargs, which is what `path` knows it by."""
        made = c_void_p(api.create_scalar_function())
        api.scalar_function_set_name(made, self.function.sql_name.encode())
        anything, result = (
            c_void_p(api.create_logical_type(TypeId.ANY)),
            c_void_p(_logical_type(api, self.function.result)),
        )
        api.scalar_function_set_varargs(made, anything)
        api.scalar_function_set_return_type(made, result)
        api.scalar_function_set_special_handling(made)  # NULLs are ours
        api.scalar_function_set_bind(made, ctypes.cast(self.bind, c_void_p))
        api.scalar_function_set_function(made, self.body)
        api.scalar_function_set_extra_info(made, self.record.ctypes.data, None)
        api.register_scalar_function(connection, made)
        for kind in (anything, result):
            api.destroy_logical_type(ctypes.byref(kind))
        api.destroy_scalar_function(ctypes.byref(made))


def _entry_of(installed: Installed, natives: list[_Native]) -> Any:
    """Return what DuckDB calls for each database that opens. It never fails: that would fail the user's connect."""
    api = capi.load()

    def entry(info: int, access: Any) -> bool:
        with contextlib.suppress(BaseException):
            if not installed.asked():
                return True
            database = access.contents.get_database(info)
            connection = c_void_p()
            if database and not api.connect(c_void_p.from_address(database), ctypes.byref(connection)):
                for native in natives:
                    native.register(api, connection)
                api.disconnect(ctypes.byref(connection))
        return True

    return _ENTRY(entry)


def _describe_of(entry: Any) -> Any:
    def describe(descriptor: Any) -> int:
        filled = descriptor.contents
        filled.version, filled.name = 1, _NAME
        filled.extension_version, filled.api_version = __version__.encode(), b"v1.2.0"
        filled.entry_capi_v1 = ctypes.cast(entry, c_void_p).value
        return 0

    return _DESCRIBE(describe)


def _works_in_a_child() -> bool:
    """Try the registration where it can do no harm: a failed one would break every later connect of this process."""
    package = importlib.import_module("aq2_pipeline").__path__[0]
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; sys.path.insert(0, {str(Path(package).parent)!r})\n"
        "from aq2_pipeline.udfs.duckdb_native import installing\n"
        "import duckdb\n"
        "installing.install()\n"
        "with installing.wanted():\n"
        "    con = duckdb.connect()\n"
        "assert con.sql('SELECT aq2_weight_stats([1.0]).count').fetchall() == [(1,)]\n"
    )
    environment = os.environ | {SWITCH: "1"}
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-c", code], check=False, capture_output=True, timeout=120, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


@functools.cache
def _unfit() -> str | None:
    """Return why this DuckDB cannot be given native functions; None if it can."""
    duckdb = importlib.import_module("duckdb")
    if ctypes.sizeof(c_void_p) != ctypes.sizeof(c_uint64):
        return "this process does not have 64-bit addresses"
    try:
        capi.load()
    except (AttributeError, ImportError, OSError) as error:
        return f"DuckDB {duckdb.__version__} does not export what is needed: {error}"
    if not duckdb.__version__.startswith(_TESTED) and not _works_in_a_child():
        return f"DuckDB {duckdb.__version__} refused them in a child process"
    return None


def _mark() -> Any:
    return getattr(importlib.import_module("_duckdb"), _MARK, None)


def missing() -> str | None:
    """Install, where that was not done; return why native functions cannot be had, or None if they can."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    if _mark() is None and (reason := _unfit()):
        return reason
    try:
        mark = install()
    except Exception as error:  # noqa: BLE001 - whatever it is, there are the Arrow functions
        return f"they cannot be made: {type(error).__name__}: {error}"
    if getattr(mark, "form", None) != _FORM:
        return "another version of aq2_pipeline has installed its own"
    return None if mark.works else "DuckDB refused them"


def install() -> Any:
    """Install once a process; return what is installed, whichever copy of this package did it."""
    with vars(importlib.import_module("_duckdb")).setdefault(f"{_MARK}_lock", threading.RLock()):
        mark = _mark()
        if mark is not None:
            return mark
        api, installed = capi.load(), Installed()
        plans = Plans()
        natives = [_Native(function, plans) for function in FUNCTIONS.values()]
        entry = _entry_of(installed, natives)
        describe = _describe_of(entry)
        installed.keep += [plans, natives, entry, describe]
        # Before the registration: a second try after a failed one could do no good.
        setattr(importlib.import_module("_duckdb"), _MARK, installed)
        installed.works = not api.register_static_extension(ctypes.cast(describe, c_void_p))
        return installed


@contextlib.contextmanager
def wanted() -> Iterator[None]:
    """Give the databases that open inside, on this thread, the functions."""
    here = install().here
    here.depth = getattr(here, "depth", 0) + 1
    try:
        yield
    finally:
        here.depth -= 1


def enable() -> None:
    """Give every database that opens from now on the functions."""
    install().everywhere = True
