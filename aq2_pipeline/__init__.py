"""Quantization of neural-network weights as a dataflow plugin for Polars and DuckDB.

A function is row-local: Arrow columns in, an Arrow column of the same length
out. One row is one list of weights, and its groups live inside the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aq2_pipeline.errors import (
    Aq2Error,
    EngineError,
    FormatError,
    InputTypeError,
    InputValueError,
    SchemeError,
)
from aq2_pipeline.quantizer import ArrowQuantV2
from aq2_pipeline.udfs import polars as _polars  # noqa: F401 - registers the namespaces
from aq2_pipeline.udfs.python import dequantize, policy_scheme, quantization_error, quantize, weight_stats
from aq2_pipeline.version import __version__ as __version__

if TYPE_CHECKING:
    from os import PathLike

    from duckdb import DuckDBPyConnection
    from polars import LazyFrame

__all__ = [
    "Aq2Error",
    "ArrowQuantV2",
    "EngineError",
    "FormatError",
    "InputTypeError",
    "InputValueError",
    "SchemeError",
    "dequantize",
    "policy_scheme",
    "quantization_error",
    "quantize",
    "register",
    "register_pyarrow",
    "scan_safetensors",
    "unregister",
    "weight_stats",
]


def register(con: DuckDBPyConnection) -> None:
    """Give a DuckDB connection the functions: see `aq2_pipeline.duckdb.register`."""
    from aq2_pipeline import duckdb  # noqa: PLC0415 - duckdb is imported when it is used

    duckdb.register(con)


def unregister(con: DuckDBPyConnection) -> None:
    """Take them back: see `aq2_pipeline.duckdb.unregister`."""
    from aq2_pipeline import duckdb  # noqa: PLC0415 - duckdb is imported when it is used

    duckdb.unregister(con)


def register_pyarrow() -> None:
    """Register the functions with `pyarrow.compute`: see `aq2_pipeline.udfs.pyarrow.register_pyarrow`."""
    from aq2_pipeline.udfs import pyarrow  # noqa: PLC0415 - the registry is built when it is used

    pyarrow.register_pyarrow()


def scan_safetensors(source: str | PathLike[str], *, raw: bool = False) -> LazyFrame:
    """Return a safetensors file as a lazy layer table: see `aq2_pipeline.io.safetensors.scan_safetensors`."""
    from aq2_pipeline.io import safetensors  # noqa: PLC0415 - the extra [files] is imported when it is used

    return safetensors.scan_safetensors(source, raw=raw)
