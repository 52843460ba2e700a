"""safetensors models as lazy layer tables: Polars asks for columns and rows, and only their bytes are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aq2_pipeline.io.paths import open_regular
from aq2_pipeline.io.safetensors.header import read_header
from aq2_pipeline.io.safetensors.shards import find_shards, joined
from aq2_pipeline.io.tables.collecting import collector_paused
from aq2_pipeline.io.tables.frames import lazy_frame
from aq2_pipeline.io.tables.mapping import Mapped
from aq2_pipeline.io.tables.source import Opened, Source

if TYPE_CHECKING:
    import polars as pl

__all__ = ["open_safetensors", "scan_safetensors"]


def scan_safetensors(
    source: Any, *, raw: bool = False, chunk_weights: int | None = None, mmap: bool = False, metadata: bool = False
) -> pl.LazyFrame:
    """Return a safetensors model as a lazy layer table.

    Parameters
    ----------
    source : str, Path or list of them
        A file, an index (``*.index.json``), the folder of a model, or files that
        make one model. A folder stands for its index, or else for all its
        ``*.safetensors`` in the order of their names. Headers are checked at once.
    raw : bool
        Give `weights` as Binary, the little-endian bytes of the file, for
        schemes such as ``'int4_g64@bf16'``; of any dtype.
    chunk_weights : int, optional
        The most weights of a row: longer tensors are cut along their first axis,
        vectors at multiples of 256, and come as chunk rows, with the columns
        ``chunk``, ``start`` and ``tensor_shape``. What one index of the first axis
        or 256 weights of a vector have, is never cut.
    mmap : bool
        Map the files into memory: F32 tensors that follow one another are a
        column where they are, without a copy; others are read. Only for files
        that nobody shortens as long as the columns live: where one does, the
        process dies (SIGBUS). Without it such a file is a FormatError.
    metadata : bool
        Add the column ``metadata: String``, the files' own ``__metadata__`` as a
        JSON object, the same in every row; of files that contradict each other
        the first one's word counts.

    Returns
    -------
    LazyFrame
        ``layer_name: String, shape: List(Int64), dtype: String`` (F32, BF16,
        I64, ...), ``weights: List(Float32)``, a row a tensor, file after file,
        in the order of their data. F16, BF16, F8_E4M3 and F8_E5M2 are exact, F64
        is rounded; `weights` of other dtypes are null. Tensors are read when a
        query wants `weights`, a batch of rows at a time, and only those of the
        rows that pass what a filter says of the other columns.

    Raises
    ------
    FormatError
        If a file is not what it or the index claims; here, or where its data is
        read and the file has changed since.
    InputValueError
        Where an F64 value does not fit float32, when its layer is read.
    OSError
        If a file is missing or may not be read.

    Notes
    -----
    An index is checked before any file is opened: its entries are files of its
    own folder, each spelled in one way (or, in a cache of links, of the folder
    where the index itself lies). Tensors that it does not name are an error, as
    are tensors in two files, and a wrong ``total_size``.

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
    found = open_safetensors(source, mmap=mmap)
    return lazy_frame(found, "raw" if raw else "weights", chunk_weights, metadata=metadata)


def open_safetensors(source: Any, *, mmap: bool = False) -> Source:
    """Return the tensors of safetensors files, their headers checked."""
    shards = find_shards(source, "scan_safetensors")
    headers = []
    with collector_paused():
        for path in shards.files:
            with open_regular(path) as file:
                headers.append(read_header(file, path))
        tensors, metadata = joined(shards, headers)
    stamps = [header.stamp for header in headers]
    opened = Mapped if mmap else Opened
    return Source(shards.path, shards.files, stamps, tensors, metadata, "scan_safetensors", opened=opened)
