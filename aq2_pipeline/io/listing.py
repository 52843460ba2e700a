"""What is in a file, and which schemes there are, as rows to print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aq2_pipeline import schemes
from aq2_pipeline.io.headers import open_regular
from aq2_pipeline.io.parquet import QuantizedFile, stored_bytes
from aq2_pipeline.io.safetensors import SafetensorsFile
from aq2_pipeline.udfs.python import weight_stats

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    Row = dict[str, Any]

__all__ = ["inspect_file", "list_schemes"]

_PARQUET_MAGIC = b"PAR1"
#: Of `aq2_weight_stats`, those that fit a line.
_STATS = ("std", "abs_max", "kurtosis", "outlier_ratio", "non_finite")
#: The side of the matrix that bits per weight are told of.
SIDE = 4096


def inspect_file(source: str | os.PathLike[str], *, stats: bool = True) -> tuple[str, list[Row]]:
    """Return a line about a file and a row for each of its layers.

    Parameters
    ----------
    source : str or Path
        safetensors, or Parquet with a column ``quantized``.
    stats : bool
        Read the weights of a safetensors file for `aq2_weight_stats`.

    Raises
    ------
    FormatError
        If the file is neither.
    OSError
    """
    path = Path(source).expanduser()
    with open_regular(path) as file:
        magic = file.read(len(_PARQUET_MAGIC))
    if magic == _PARQUET_MAGIC:
        with QuantizedFile(path) as stored:
            about = f"quantized by {stored.metadata.get('aq2.recipe', 'an unknown recipe')}"
            return about, list(_stored_rows(stored))
    tensors = SafetensorsFile(path)
    n_bytes = sum(tensor.n_bytes for tensor in tensors.header.tensors)
    rows = [row for table in tensors.batches(with_weights=stats) for row in _rows(table, stats=stats)]
    for row, tensor in zip(rows, tensors.header.tensors, strict=True):
        row["bytes"] = tensor.n_bytes
    return f"{len(rows)} tensors, {n_bytes} bytes", rows


def _rows(table: Any, *, stats: bool) -> Iterator[Row]:
    figures = weight_stats(table["weights"].combine_chunks()).to_pylist() if stats else [None] * len(table)
    for layer, found in zip(table.select(["layer_name", "shape", "dtype"]).to_pylist(), figures, strict=True):
        row = {"layer": layer["layer_name"], "shape": layer["shape"], "dtype": layer["dtype"], "bytes": 0}
        if stats:
            row |= {name: found[name] if found else None for name in _STATS}
        yield row


def _stored_rows(file: QuantizedFile) -> Iterator[Row]:
    for layer in file.layers:
        yield {
            "layer": layer.name,
            "shape": layer.shape,
            "dtype": layer.dtype,
            "bytes": layer.n_bytes,
            "scheme": layer.scheme,
            "bits_per_weight": 8 * layer.n_bytes / layer.length if layer.length else None,
        }


def list_schemes() -> list[Row]:
    """Return a row for each known scheme: its name, what it takes, and its family's summary."""
    rows = []
    for name in schemes.known_names():
        scheme = schemes.parse(name)
        bits = 8 * stored_bytes(scheme, SIDE * SIDE, SIDE) / SIDE**2
        family = next(family for family in schemes.FAMILIES if family.pattern.fullmatch(name))
        rows.append({"scheme": name, "bits_per_weight": bits, "summary": family.summary})
    return rows
