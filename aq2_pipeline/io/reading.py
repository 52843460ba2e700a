"""Any model file as a stream of Arrow batches, for DuckDB, pyarrow and whoever else takes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aq2_pipeline.io.opening import open_source
from aq2_pipeline.io.tables.frames import reader

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["open_reader"]


def open_reader(source: Any, *, raw: bool = False, chunk_weights: int | None = None) -> pa.RecordBatchReader:
    """Return the layer table of a model file of any format as a stream of record batches.

    Parameters
    ----------
    source : str, Path or list of them
        A file, folder or index; what it is, is told by how it begins, or else by
        its name. A list is files that make one safetensors model.
    raw : bool
        Give `weights` as the bytes of the file.
    chunk_weights : int, optional
        The most weights of a row: longer tensors come as chunk rows.

    Returns
    -------
    pyarrow.RecordBatchReader
        ``layer_name, shape, dtype`` and ``weights: large_list<float32>``, or
        ``quantized`` from formats that hold quantized tensors, such as GGUF.
        Batches of at most 64 MiB of weights, or of one row; read as they are
        asked for, and once. In DuckDB it is a table by its variable's name, or
        after ``con.register``, for one query.

    Raises
    ------
    InputTypeError, InputValueError
        If the source is no path, or `chunk_weights` no number of weights.
    FormatError
        If a file is not what it claims; here, or when its data is read.
    OSError
        If a file is missing or may not be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import duckdb
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from aq2_pipeline import open_reader
    >>> with TemporaryDirectory() as folder:
    ...     save_file({"w": np.ones((2, 3), np.float32)}, f"{folder}/m.safetensors")
    ...     layers = open_reader(f"{folder}/m.safetensors")
    ...     duckdb.sql("SELECT layer_name, list_sum(weights) FROM layers").fetchall()
    [('w', 6.0)]
    """
    found = open_source(source)
    form = "raw" if raw else "quantized" if found.native else "weights"
    return reader(found, form, chunk_weights)
