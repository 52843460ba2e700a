"""Layer tables as safetensors files: decoded weights, and what was left alone as it came."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline import build
from aq2_pipeline.errors import FormatError, InputTypeError, InputValueError
from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.io.paths import open_regular
from aq2_pipeline.io.safetensors.header import read_header
from aq2_pipeline.io.safetensors.layout import one_file
from aq2_pipeline.io.tables.dtypes import DTYPE_BITS, IDENTITIES
from aq2_pipeline.io.writing.sinks import Sink, layer_of, sink_rows, unknown_dtype
from aq2_pipeline.io.writing.staging import Piece, Spec
from aq2_pipeline.stored import decoded

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.targets import Options
    from aq2_pipeline.io.writing.sinks import Layer, Progress
    from aq2_pipeline.io.writing.staging import OutFile, Staging
    from aq2_pipeline.weights import Array

__all__ = ["SafetensorsSink", "float_bytes", "plain_piece", "plain_spec", "sink_safetensors"]

#: The dtypes that weights are written in.
FLOATS = ("F32", "F16", "BF16")


def sink_safetensors(
    given: Any,
    target: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a layer table to a safetensors file, its codes decoded.

    Parameters
    ----------
    given : LazyFrame, DataFrame, Table, RecordBatch, reader, or anything with ``__arrow_c_stream__``
        A layer table with ``quantized`` or ``weights``; its chunk rows become one
        tensor. It is read once, a batch in memory at a time.
    target : str or Path
        Replaced once the new file is complete.
    dtype : {"F32", "F16", "BF16"}, optional
        Of all weights. By default a row's `dtype` where that is one of these,
        else F32. Weights given as bytes, and tensors that hold none, keep their dtype.
    metadata : mapping of str to str, optional
        The file's ``__metadata__``.
    progress : callable, optional
        Called with a layer's name and the bytes written, row by row.

    Raises
    ------
    InputValueError
        If `dtype` is another, or a weight does not fit it.
    InputTypeError, FormatError, SchemeError
        Naming the layer; nothing is written then.
    OSError
        If the file cannot be written; an earlier one stays.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import polars as pl
    >>> import aq2_pipeline
    >>> df = pl.DataFrame({"layer_name": ["w"], "shape": [[2, 2]], "dtype": ["F32"], "weights": [[1.0, 2, 3, 4]]})
    >>> lf = df.lazy().select("layer_name", "shape", "dtype", quantized=pl.col("weights").aq2.quantize("int8_g4"))
    >>> with TemporaryDirectory() as folder:
    ...     aq2_pipeline.sink_safetensors(lf, f"{folder}/w.safetensors")
    ...     aq2_pipeline.scan_safetensors(f"{folder}/w.safetensors").select("dtype", "shape").collect().rows()
    [('F32', [2, 2])]
    """
    sink_rows(given, target, SafetensorsSink(dtype, metadata), "sink_safetensors", progress=progress)


class SafetensorsSink(Sink):
    """Decoded weights in one safetensors file."""

    name = "safetensors"
    takes = "every scheme, decoded"

    def __init__(self, dtype: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        if dtype is not None and dtype not in FLOATS:
            msg = f"sink_safetensors: the dtype {dtype!r} is not written"
            raise InputValueError(msg, f"one of {', '.join(FLOATS)}")
        self.dtype, self.metadata = dtype, dict(metadata or {})

    def refusal(self, layer: Layer) -> str | None:
        """Return why a layer is not written: only bytes of a dtype that safetensors does not know are not."""
        return unknown_dtype(layer, DTYPE_BITS)

    def tensors(self, layer: Layer) -> list[Spec]:
        """Return the layer, under its own name."""
        return [plain_spec(layer, self._dtype_of(layer))]

    def _dtype_of(self, layer: Layer) -> str:
        if layer.scheme is None and not layer.is_float:
            return str(layer.dtype)
        return self.dtype or (layer.dtype if layer.dtype in FLOATS else "F32")

    def pieces(self, row: Row) -> Iterator[Piece]:
        """Yield the row's weights, or its bytes as they came."""
        if row.quantized is None and row.weights is None:
            yield plain_piece(row)
            return
        dtype = self._dtype_of(layer_of(row))
        begin = row.start * DTYPE_BITS[dtype] // 8
        if row.quantized is not None and row.quantized.scheme.name == IDENTITIES.get(dtype):
            yield Piece(row.name, begin, row.quantized.data)
            return
        weights = row.weights
        if row.quantized is not None:
            try:
                weights = decoded(row.quantized)
            except InputValueError as error:
                raise error.at(layer=row.name, position=row.start + (error.position or 0)) from None
        yield Piece(row.name, begin, float_bytes(weights, dtype, row.name, row.start))

    def files(self, specs: Sequence[Spec]) -> list[OutFile]:
        """Lay out the file."""
        return [one_file(specs, self.metadata)]

    def finish(self, staging: Staging) -> None:
        """Read the header again."""
        with open_regular(staging.out) as file:
            read_header(file, staging.out)


def from_options(options: Options) -> SafetensorsSink:
    """Return the sink of a command: the source's metadata goes along."""
    texts = {name: value for name, value in options.source.metadata.items() if isinstance(value, str)}
    return SafetensorsSink(options.dtype, texts)


def plain_spec(layer: Layer, dtype: str) -> Spec:
    """Return a layer as a tensor of its own name and shape."""
    return Spec(layer.name, dtype, layer.shape, math.prod(layer.shape) * DTYPE_BITS[dtype] // 8)


def plain_piece(row: Row) -> Piece:
    """Return the bytes of a row that is not quantized, as they came.

    Raises
    ------
    InputTypeError
        If the row has none.
    FormatError
        If they are not those of its shape.
    """
    if row.raw is None:
        error = InputTypeError(
            "the row has neither codes nor weights", "scan with raw=True, so that tensors of other dtypes come as bytes"
        )
        raise error.at(layer=row.name)
    bits = DTYPE_BITS[row.dtype or ""]
    if 8 * row.raw.size != bits * math.prod(row.shape):
        msg = f"{row.raw.size} bytes for the shape {list(row.shape)} of {row.dtype}"
        raise FormatError(msg).at(layer=row.name)
    return Piece(row.name, row.start * bits // 8, row.raw)


def _ends(array: Array) -> Array:
    return np.array([0, array.size], np.int64)


def float_bytes(weights: Any, dtype: str, layer: str, start: int = 0) -> Array:
    """Return weights in a float dtype, rounded half to even.

    Raises
    ------
    InputValueError
        Naming the layer and the position of a weight that does not fit.
    """
    if dtype == "F32":
        return np.asarray(weights)
    column = build.float_lists(_ends(weights), weights, None)
    try:
        quantized = FUNCTIONS["quantize"](column, {"F16": "f16", "BF16": "bf16"}[dtype])
    except InputValueError as error:
        position = None if error.position is None else start + error.position
        raise error.at(function=None, layer=layer, row=None, position=position) from None
    return np.frombuffer(quantized.field("quantized_data").buffers()[2], np.uint8)
