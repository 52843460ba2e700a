"""The rows of a file as its layers: which rows make a layer, and where the weights of each one go."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from aq2_pipeline.io.paths import bad_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Part", "Place", "StoredLayer", "joined"]


class StoredLayer(NamedTuple):
    """What a file says of a layer, without its codes.

    Attributes
    ----------
    name : str
    shape : list of int
    dtype : str or None
        Of the source.
    scheme : str or None
        None where nothing is stored: the layer was not of floats.
    length, n_bytes : int
        Weights, and the bytes of their codes, scales and zero points.
    row_length : int
        The weights of a matrix row.
    """

    name: str
    shape: list[int]
    dtype: str | None
    scheme: str | None
    length: int
    n_bytes: int
    row_length: int = 0


class Part(NamedTuple):
    """What a file says of a row that is a chunk, or a whole layer.

    Attributes
    ----------
    stored : StoredLayer
        Of the row alone.
    chunk : bool
    start : int or None
        The weights of the layer before it.
    tensor_shape : list or None
        The layer's shape.
    """

    stored: StoredLayer
    chunk: bool = False
    start: int | None = None
    tensor_shape: list[int | None] | None = None


class Place(NamedTuple):
    """Where the weights of a row go: which layer, and after how many of its weights."""

    layer: int
    start: int


def joined(parts: Sequence[Part], path: Path) -> tuple[list[StoredLayer], list[Place]]:
    """Return the layers that rows make, in order of their first rows, and the place of each row.

    Raises
    ------
    FormatError
        Naming the layer that is there twice, or whose chunks contradict each other, overlap, or are not all there.
    """
    of_layer: list[list[int]] = []
    chunked: dict[str, list[int]] = {}
    whole: set[str] = set()
    for row, part in enumerate(parts):
        if part.chunk and part.stored.name in chunked:
            chunked[part.stored.name].append(row)
            continue
        of_layer.append([row])
        if part.chunk:
            chunked[part.stored.name] = of_layer[-1]
        elif part.stored.name in whole:
            raise bad_file(path, "the layer is there twice", "a layer is one row, or its chunks", part.stored.name)
        else:
            whole.add(part.stored.name)
    places = [Place(0, 0)] * len(parts)
    layers = []
    for k, rows in enumerate(of_layer):
        first = parts[rows[0]]
        if not first.chunk and first.stored.name in chunked:
            raise bad_file(path, "the layer is there whole and in chunks", layer=first.stored.name)
        layers.append(_layer([parts[row] for row in rows], path) if first.chunk else first.stored)
        for row in rows:
            places[row] = Place(k, parts[row].start or 0)
    return layers, places


def _layer(chunks: list[Part], path: Path) -> StoredLayer:
    """Return the layer of chunks that follow one another from its first weight to its last."""
    name, _, dtype, scheme, _, _, row_length = chunks[0].stored
    shape = [-1 if axis is None else axis for axis in chunks[0].tensor_shape or ()]
    length = math.prod(shape) if scheme else 0
    row_length = length if len(shape) <= 1 else row_length
    fault = _contradiction(chunks) or (_gap(chunks, length) if scheme else None)
    if fault:
        raise bad_file(path, fault, "a file has every chunk of a layer, each once", name)
    return StoredLayer(name, shape, dtype, scheme, length, sum(chunk.stored.n_bytes for chunk in chunks), row_length)


def _contradiction(chunks: list[Part]) -> str | None:
    """Return what chunks of one layer say of it differently, or wrongly."""
    vector = all(len(chunk.tensor_shape or ()) <= 1 for chunk in chunks)  # its chunks are rows of their own length
    for what, told in (
        ("tensor_shape", [chunk.tensor_shape for chunk in chunks]),
        ("dtype", [chunk.stored.dtype for chunk in chunks]),
        ("scheme", [chunk.stored.scheme for chunk in chunks]),
        ("row_length", [] if vector else [chunk.stored.row_length for chunk in chunks]),
    ):
        if what == "tensor_shape" and None in told:
            return "a chunk is without a tensor_shape"
        for other in told:
            if other != told[0]:
                return f"chunks have the {what} {told[0]} and {other}"
    shape = chunks[0].tensor_shape or ()
    if any(axis is None or axis < 0 for axis in shape):
        return f"the tensor_shape {shape} has an axis that is null or negative"
    return None


def _gap(chunks: list[Part], length: int) -> str | None:
    """Return where the chunks of a layer do not hold each of its weights once."""
    at = 0
    for start, n_weights in sorted(
        (-1 if chunk.start is None else chunk.start, chunk.stored.length) for chunk in chunks
    ):
        if start < 0:
            return "a chunk is without a start, or has one before the layer"
        if start != at:
            return f"the weights {at} to {start} are missing" if start > at else f"the weight {start} is in two chunks"
        at += n_weights
    if at > length:
        return f"the chunks hold {at} weights, the tensor_shape {chunks[0].tensor_shape} holds {length}"
    return f"the weights {at} to {length} are missing" if at < length else None
