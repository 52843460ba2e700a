"""safetensors files as lazy layer tables: Polars asks for columns and rows, and only their bytes are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aq2_pipeline.io.frames import lazy_frame
from aq2_pipeline.io.paths import bad_file, open_regular, source_path
from aq2_pipeline.io.safetensors_header import read_header
from aq2_pipeline.io.source import Source

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

__all__ = ["open_safetensors", "scan_safetensors"]


def scan_safetensors(source: Any, *, raw: bool = False, chunk_weights: int | None = None) -> pl.LazyFrame:
    """Return a safetensors file as a lazy layer table.

    Parameters
    ----------
    source : str or Path
        A regular file; its header is checked at once.
    raw : bool
        Give `weights` as Binary, the little-endian bytes of the file, for
        schemes such as ``'int4_g64@bf16'``; of any dtype.
    chunk_weights : int, optional
        The most weights of a row: longer tensors are cut along their first axis,
        and come as chunk rows, with the columns ``chunk``, ``start`` and
        ``tensor_shape``.

    Returns
    -------
    LazyFrame
        ``layer_name: String, shape: List(Int64), dtype: String`` (F32, BF16,
        I64, ...), ``weights: List(Float32)``, a row a tensor, in the order of
        the file's data. F16, BF16, F8_E4M3 and F8_E5M2 are exact, F64 is
        rounded; `weights` of other dtypes are null. Tensors are read when a
        query wants `weights`, a batch of rows at a time, and only those of the
        rows that it keeps.

    Raises
    ------
    FormatError
        If the file is not what it claims to be; here, or where its data is read
        and the file has changed since.
    InputValueError
        Where an F64 value does not fit float32, when its layer is read.
    ImportError
        Without the extra ``[files]``.
    OSError
        If the file is missing or may not be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from aq2_pipeline import scan_safetensors
    >>> with TemporaryDirectory() as folder:
    ...     save_file({"w": np.ones((2, 3), np.float16)}, f"{folder}/m.safetensors")
    ...     scan_safetensors(f"{folder}/m.safetensors").collect().rows()
    [('w', [2, 3], 'F16', [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
    """
    return lazy_frame(open_safetensors(source), "raw" if raw else "weights", chunk_weights)


def open_safetensors(source: Any) -> Source:
    """Return the tensors of a safetensors file, its header checked."""
    path = source_path(source, "scan_safetensors")
    with open_regular(path) as file:
        header = read_header(file, path)
    _ask_library(path)
    return Source(path, [path], [header.stamp], header.tensors, header.metadata, "scan_safetensors")


def _ask_library(path: Path) -> None:
    """Have the format's own library check the header too.

    Raises
    ------
    ImportError
        If it is not installed.
    FormatError
        If it finds what we did not.
    """
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - an extra
    except ImportError:
        msg = "safetensors files need the extra [files]: pip install 'aq2-pipeline[files]'"
        raise ImportError(msg) from None
    try:
        with safe_open(path, framework="np", backend="pread"):
            pass
    except SafetensorError as error:
        raise bad_file(path, f"the safetensors library refuses it: {error}") from None
