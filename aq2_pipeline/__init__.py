"""Quantization of neural-network weights as a dataflow plugin for Polars and DuckDB.

A function is row-local: Arrow columns in, an Arrow column of the same length
out. One row is one list of weights, and its groups live inside the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aq2_pipeline.errors import (
    Aq2Error,
    EngineError,
    FormatError,
    InputTypeError,
    InputValueError,
    SchemeError,
)
from aq2_pipeline.functions import thread_count
from aq2_pipeline.quantizer import ArrowQuantV2
from aq2_pipeline.threads import set_limit, thread_limit
from aq2_pipeline.udfs import polars as _polars  # noqa: F401 - registers the namespaces
from aq2_pipeline.udfs.python import dequantize, policy_scheme, quantization_error, quantize, weight_stats
from aq2_pipeline.version import __version__ as __version__
from aq2_pipeline.warming import warmup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike

    from duckdb import DuckDBPyConnection
    from polars import DataFrame, LazyFrame
    from pyarrow import RecordBatchReader

    from aq2_pipeline.comparing import ComparedLayer
    from aq2_pipeline.io.limits import Limits

__all__ = [
    "Aq2Error",
    "ArrowQuantV2",
    "EngineError",
    "FormatError",
    "InputTypeError",
    "InputValueError",
    "SchemeError",
    "compare",
    "dequantize",
    "diff",
    "gguf_metadata",
    "limits",
    "open_reader",
    "policy_scheme",
    "quantization_error",
    "quantize",
    "register",
    "register_pyarrow",
    "scan_gguf",
    "scan_npz",
    "scan_onnx",
    "scan_parquet",
    "scan_safetensors",
    "set_limits",
    "set_threads",
    "sink_compressed_tensors",
    "sink_gguf",
    "sink_mlx",
    "sink_parquet",
    "sink_safetensors",
    "thread_limit",
    "unregister",
    "warmup",
    "weight_stats",
]


def set_threads(n: int | None) -> None:
    """Set how many threads may work at once in this process, engines' threads that call in included.

    Parameters
    ----------
    n : int or None
        None goes back to the default: `AQ2_NUM_THREADS`, else the cores that
        this process may use (its affinity and the quota of its control groups).

    Raises
    ------
    InputValueError
        For anything else.

    Examples
    --------
    >>> import aq2_pipeline
    >>> aq2_pipeline.set_threads(1)
    >>> aq2_pipeline.thread_limit()
    1
    >>> aq2_pipeline.set_threads(None)
    """
    set_limit(thread_count(n))


def limits() -> Limits:
    """Return what readers of files take at the most: see `set_limits`.

    Returns
    -------
    Limits
        Frozen, with the fields that `set_limits` takes.

    Raises
    ------
    InputValueError
        If an environment variable is no number that its limit may be.

    Examples
    --------
    >>> import aq2_pipeline
    >>> aq2_pipeline.limits().tensors
    1000000
    """
    from aq2_pipeline.io import limits as of_files  # noqa: PLC0415 - files are read where they are asked for

    return of_files.limits()


def set_limits(**changes: int) -> None:
    """Change what readers of files take at the most, in this process; what is not named goes back to its default.

    The default is the environment variable, `AQ2_MAX_HEADER_BYTES` for
    `header_bytes`, else the number below; variables are read once.

    Parameters
    ----------
    **changes : int
        `header_bytes` (100,000,000), `tensors` (1,000,000), `rank` (8),
        `name_bytes` (1,024), `key_values` (65,536), `alignment` (1,048,576),
        `inflation` (100), `inflated_bytes` (67,108,864); what each is of is in
        `SECURITY.md`. None at all go back to the defaults.

    Raises
    ------
    InputTypeError
        If one is no int.
    InputValueError
        If there is no limit of a name, or it may not be so small or large.

    Examples
    --------
    >>> import aq2_pipeline
    >>> aq2_pipeline.set_limits(tensors=10, rank=4)
    >>> aq2_pipeline.limits().tensors, aq2_pipeline.limits().rank, aq2_pipeline.limits().name_bytes
    (10, 4, 1024)
    >>> aq2_pipeline.set_limits()
    """
    from aq2_pipeline.io import limits as of_files  # noqa: PLC0415 - files are read where they are asked for

    of_files.set_limits(**changes)


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


def open_reader(
    source: str | PathLike[str] | Sequence[str | PathLike[str]], *, raw: bool = False, chunk_weights: int | None = None
) -> RecordBatchReader:
    """Return a model file of any format as Arrow batches: see `aq2_pipeline.io.reading.open_reader`."""
    from aq2_pipeline.io import reading  # noqa: PLC0415 - formats are imported when they are used

    return reading.open_reader(source, raw=raw, chunk_weights=chunk_weights)


def scan_safetensors(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    raw: bool = False,
    chunk_weights: int | None = None,
    mmap: bool = False,
    metadata: bool = False,
) -> LazyFrame:
    """Return a safetensors model as a lazy layer table: see `aq2_pipeline.io.safetensors.source.scan_safetensors`."""
    from aq2_pipeline.io.safetensors import source as safetensors  # noqa: PLC0415 - formats are imported when they are used

    return safetensors.scan_safetensors(source, raw=raw, chunk_weights=chunk_weights, mmap=mmap, metadata=metadata)


def sink_compressed_tensors(
    given: Any,
    folder: str | PathLike[str],
    *,
    config_from: str | PathLike[str] | None = None,
    scale_dtype: str = "F32",
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Write a layer table to a folder: see `aq2_pipeline.io.folders.compressed_tensors.sink_compressed_tensors`."""
    from aq2_pipeline.io.folders import compressed_tensors  # noqa: PLC0415 - writers are imported when they are used

    compressed_tensors.sink_compressed_tensors(
        given, folder, config_from=config_from, scale_dtype=scale_dtype, progress=progress
    )


def sink_mlx(
    given: Any,
    folder: str | PathLike[str],
    *,
    config_from: str | PathLike[str] | None = None,
    scale_dtype: str = "F32",
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Write a layer table to a folder: see `aq2_pipeline.io.folders.mlx.sink_mlx`."""
    from aq2_pipeline.io.folders import mlx  # noqa: PLC0415 - writers are imported when they are used

    mlx.sink_mlx(given, folder, config_from=config_from, scale_dtype=scale_dtype, progress=progress)


def sink_safetensors(
    given: Any,
    target: str | PathLike[str],
    *,
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Write a layer table to a safetensors file: see `aq2_pipeline.io.safetensors.sink.sink_safetensors`."""
    from aq2_pipeline.io.safetensors import sink as safetensors_sink  # noqa: PLC0415 - readers and writers are imported when they are used

    safetensors_sink.sink_safetensors(given, target, dtype=dtype, metadata=metadata, progress=progress)


def sink_gguf(
    given: Any,
    target: str | PathLike[str],
    *,
    metadata_from: str | PathLike[str] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Write a layer table to a GGUF file: see `aq2_pipeline.io.gguf.sink.sink_gguf`."""
    from aq2_pipeline.io.gguf import sink as gguf_sink  # noqa: PLC0415 - readers and writers are imported when they are used

    gguf_sink.sink_gguf(given, target, metadata_from=metadata_from, progress=progress)


def sink_parquet(
    given: Any,
    target: str | PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    compression: str = "uncompressed",
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Write a layer table of quantized layers to a Parquet file: see `aq2_pipeline.io.parquet.sink.sink_parquet`."""
    from aq2_pipeline.io.parquet import sink as parquet_sink  # noqa: PLC0415 - readers and writers are imported when they are used

    parquet_sink.sink_parquet(given, target, metadata=metadata, compression=compression, progress=progress)


def scan_parquet(source: str | PathLike[str]) -> LazyFrame:
    """Return a Parquet file of quantized layers as a lazy table: see `aq2_pipeline.io.parquet.source.scan_parquet`."""
    from aq2_pipeline.io.parquet import source as parquet_source  # noqa: PLC0415 - readers and writers are imported when they are used

    return parquet_source.scan_parquet(source)


def diff(
    first: str | PathLike[str],
    second: str | PathLike[str],
    *,
    layers: str = "*",
    threads: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> DataFrame:
    """Return how far the layers of two models are apart: see `aq2_pipeline.differing.diff`."""
    from aq2_pipeline import differing  # noqa: PLC0415 - readers and writers are imported when they are used

    return differing.diff(first, second, layers=layers, threads=threads, progress=progress)


def scan_gguf(source: str | PathLike[str], *, raw: bool = False, chunk_weights: int | None = None) -> LazyFrame:
    """Return a GGUF file as a lazy layer table: see `aq2_pipeline.io.gguf.source.scan_gguf`."""
    from aq2_pipeline.io.gguf import source as gguf  # noqa: PLC0415 - imported when it is used

    return gguf.scan_gguf(source, raw=raw, chunk_weights=chunk_weights)


def gguf_metadata(source: str | PathLike[str]) -> dict[str, Any]:
    """Return the key-values of a GGUF file: see `aq2_pipeline.io.gguf.source.gguf_metadata`."""
    from aq2_pipeline.io.gguf import source as gguf  # noqa: PLC0415 - imported when it is used

    return gguf.gguf_metadata(source)


def scan_onnx(source: str | PathLike[str], *, raw: bool = False, chunk_weights: int | None = None) -> LazyFrame:
    """Return an ONNX model's initializers as a lazy layer table: see `aq2_pipeline.io.onnx.source.scan_onnx`."""
    from aq2_pipeline.io.onnx import source as onnx  # noqa: PLC0415 - files are read where they are asked for

    return onnx.scan_onnx(source, raw=raw, chunk_weights=chunk_weights)


def scan_npz(source: str | PathLike[str], *, raw: bool = False, chunk_weights: int | None = None) -> LazyFrame:
    """Return the arrays of an .npz file as a lazy layer table: see `aq2_pipeline.io.npz.source.scan_npz`."""
    from aq2_pipeline.io.npz import source as npz  # noqa: PLC0415 - files are read where they are asked for

    return npz.scan_npz(source, raw=raw, chunk_weights=chunk_weights)


def compare(
    source: str | PathLike[str],
    schemes: Iterable[int | str],
    *,
    layers: str = "*",
    vectors: bool = False,
    threads: int | None = None,
    progress: Callable[[ComparedLayer], None] | None = None,
) -> DataFrame:
    """Return what schemes take and lose on the layers of a file: see `aq2_pipeline.comparing.compare`."""
    from aq2_pipeline import comparing  # noqa: PLC0415 - the extra [files] is imported when it is used

    return comparing.compare(source, schemes, layers=layers, vectors=vectors, threads=threads, progress=progress)
