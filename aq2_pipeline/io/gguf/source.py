"""GGUF files as lazy layer tables: the blocks of each tensor as they are, which any engine decodes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aq2_pipeline.io.gguf.header import Header, read_header
from aq2_pipeline.io.gguf.values import Metadata
from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import bad_file, open_regular, source_path
from aq2_pipeline.io.tables.frames import lazy_frame
from aq2_pipeline.io.tables.source import Source

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from aq2_pipeline.io.tables.parts import Tensor

__all__ = ["gguf_metadata", "open_gguf", "scan_gguf"]

#: What llama.cpp's gguf-split calls its files, and says in them.
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def scan_gguf(source: Any, *, raw: bool = False, chunk_weights: int | None = None) -> pl.LazyFrame:
    """Return a GGUF file as a lazy layer table.

    Parameters
    ----------
    source : str or Path
        A regular file, of GGUF version 2 or 3; its header is checked at once. Of files that llama.cpp's gguf-split
        made, any one: the others are read beside it.
    raw : bool
        Give `weights` as Binary, the bytes of the file, of any dtype.
    chunk_weights : int, optional
        The most weights of a row: longer tensors are cut along their first axis, vectors between blocks, and come as
        chunk rows, with the columns ``chunk``, ``start`` and ``tensor_shape``.

    Returns
    -------
    LazyFrame
        ``layer_name: String, shape: List(Int64)`` (the slowest axis first), ``dtype: String`` (Q4_K, F32, ...),
        ``quantized: Struct``, which `dequantize` reads: the bytes of the file under the scheme of their dtype, with
        ``f32``, ``f16`` and ``bf16`` for floats, and null for dtypes without a scheme. A row a tensor, in the order of
        the file's data. Tensors are read when a query wants them, a batch of rows at a time, and only those of the
        rows that it keeps.

    Raises
    ------
    FormatError
        If the file is not what it claims to be; here, or where its data is read and the file has changed since.
    OSError
        If the file is missing or may not be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np, polars as pl
    >>> import aq2_pipeline
    >>> from aq2_pipeline.io.gguf.layout import header_of
    >>> row = aq2_pipeline.quantize(np.arange(32, dtype=np.float32), "q8_0").to_pylist()[0]
    >>> header = header_of([("w", (1, 32), "Q8_0", 34)]).header
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "m.gguf"
    ...     _ = path.write_bytes(header + row["quantized_data"])
    ...     layers = aq2_pipeline.scan_gguf(path)
    ...     layers.select("layer_name", "dtype", pl.col("quantized").aq2.dequantize().list.max()).collect().rows()
    [('w', 'Q8_0', 31.0)]
    """
    return lazy_frame(open_gguf(source), "raw" if raw else "quantized", chunk_weights)


def gguf_metadata(source: Any) -> dict[str, Any]:
    """Return the key-values of a GGUF file.

    Parameters
    ----------
    source : str or Path
        As `scan_gguf` takes it; of several files, those of the first.

    Returns
    -------
    dict of str to bool, int, float, str or list
        In the order of the file. A string that is not UTF-8 is bytes. Nothing in them is interpreted.

    Raises
    ------
    FormatError
        If the file is not what it claims to be.
    OSError
        If the file is missing or may not be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from aq2_pipeline import gguf_metadata
    >>> from aq2_pipeline.io.gguf.layout import header_of
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "m.gguf"
    ...     _ = path.write_bytes(header_of([], {"general.architecture": "gemma3", "gemma3.block_count": 18}).header)
    ...     gguf_metadata(path)
    {'general.architecture': 'gemma3', 'gemma3.block_count': 18}
    """
    return dict(open_gguf(source).metadata)


def open_gguf(source: Any) -> Source:
    """Return the tensors of a GGUF file or of its parts, their headers checked; its `metadata` is a `Metadata`."""
    path = source_path(source, "scan_gguf")
    header = _header_of(path)
    metadata = Metadata(header.key_values)
    if metadata.get(_COUNT, 1) == 1:
        return Source(path, [path], [header.stamp], header.tensors, metadata, "scan_gguf", native=True)
    paths = _split_paths(path, metadata[_COUNT])
    headers = [header if one == path else _header_of(one) for one in paths]
    metadata = Metadata(headers[0].key_values)
    tensors = _joined(paths, headers)
    stamps = [one.stamp for one in headers]
    return Source(path, paths, stamps, tensors, metadata, "scan_gguf", native=True)


def _header_of(path: Path) -> Header:
    with open_regular(path) as file:
        return read_header(file, path)


def _split_paths(path: Path, count: Any) -> list[Path]:
    """Return the files that one of them belongs to, by its own name: nothing in a file is ever a path."""
    named = _SPLIT_NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        hint = f"keep the name that llama.cpp gave it, such as {path.stem}-00001-of-00003.gguf"
        raise bad_file(path, f"the file is one of {count!r}, which its name does not say", hint)
    names = [f"{named['stem']}-{k + 1:05}-of-{named['count']}.gguf" for k in range(int(named["count"]))]
    paths = [path.with_name(name) for name in names]
    if path not in paths:
        raise bad_file(path, f"the file is one of {count}, and its name says number {int(named['number'])}")
    for missing in (one for one in paths if not one.exists()):
        raise bad_file(path, f"the file is one of {count}, and {missing.name!r} is missing", "put them in one folder")
    return paths


def _joined(paths: list[Path], headers: list[Header]) -> list[Tensor]:
    """Return the tensors of all files of a model, once they are known to belong together."""
    tensors: list[Tensor] = []
    most = limits().tensors
    files: dict[str, int] = {}
    total = Metadata(headers[0].key_values).get(_TENSORS)
    for k, (path, header) in enumerate(zip(paths, headers, strict=True)):
        metadata = Metadata(header.key_values)
        found = metadata.get(_NUMBER), metadata.get(_COUNT)
        if found != (k, len(paths)):
            raise bad_file(path, f"{_NUMBER} and {_COUNT} are {found[0]!r} and {found[1]!r}, not {k} and {len(paths)}")
        for tensor in header.tensors:
            first = files.setdefault(tensor.name, k)
            if first != k:
                raise bad_file(path, f"the tensor is in {paths[first].name!r}, too", layer=tensor.name)
        tensors += [tensor._replace(file=k) for tensor in header.tensors]
        if len(tensors) > most:
            raise bad_file(paths[0], f"the files hold more than {most} tensors", to_change("tensors"))
    if total is not None and total != len(tensors):
        raise bad_file(paths[0], f"{_TENSORS} is {total!r}, the {len(paths)} files hold {len(tensors)}")
    return tensors
