"""Parquet files of quantized layers as a source: rows are read by row group, and decoded where floats are wanted."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from aq2_pipeline import layout
from aq2_pipeline.errors import Aq2Error
from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.io.dtypes import is_float
from aq2_pipeline.io.parquet import RAW, QuantizedFile
from aq2_pipeline.io.parts import Part, Tensor
from aq2_pipeline.io.paths import open_regular, source_path, stamp_of
from aq2_pipeline.io.source import FORMS, Source, listing

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.weights import Array

__all__ = ["ParquetSource", "open_parquet", "scan_parquet"]


def scan_parquet(source: str | os.PathLike[str]) -> pl.LazyFrame:
    """Return a Parquet file of quantized layers as a lazy layer table.

    Parameters
    ----------
    source : str or Path
        Written by `sink_parquet`, or any Parquet file with the columns
        ``layer_name`` and ``quantized``.

    Returns
    -------
    LazyFrame
        `polars.scan_parquet` of the file, once its layers have been checked:
        ``layer_name``, ``shape``, ``dtype``, ``quantized`` and what else it has.

    Raises
    ------
    FormatError
        If it is no such file, or a layer of it contradicts itself.
    OSError
        If it is missing or may not be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import polars as pl
    >>> import aq2_pipeline
    >>> df = pl.DataFrame({"layer_name": ["w"], "shape": [[2, 2]], "dtype": ["F32"], "weights": [[1.0, 2, 3, 4]]})
    >>> with TemporaryDirectory() as folder:
    ...     aq2_pipeline.sink_parquet(df.with_columns(quantized=pl.col("weights").aq2.quantize(8)), f"{folder}/q")
    ...     aq2_pipeline.scan_parquet(f"{folder}/q").select(pl.col("quantized").struct["scheme"]).collect().item()
    'int8_g128'
    """
    with QuantizedFile(source) as file:
        file.layers  # noqa: B018 - the check
        return pl.scan_parquet(file.path)


def open_parquet(source: Any) -> Source:
    """Return the layers of a Parquet file, checked."""
    return ParquetSource(source)


class ParquetSource(Source):
    """Layers whose parts are the rows of the file."""

    has_own_chunks = True

    def __init__(self, source: Any) -> None:
        path = source_path(source, "scan_parquet")
        with open_regular(path) as opened:
            stamp = stamp_of(opened)
        with QuantizedFile(path) as file:
            layers, places, sizes = file.layers, file.places, file.sizes
            metadata, self._has_raw = file.source_metadata, RAW.name in file.schema.names
        ends = [*itertools.accumulate((layer.n_bytes for layer in layers), initial=0)]
        tensors = [
            Tensor(layer.name, layer.dtype or "F32", tuple(layer.shape), *ends[k : k + 2])
            for k, layer in enumerate(layers)
        ]
        super().__init__(path, [path], [stamp], tensors, metadata, "scan_parquet", native=True)
        self._row_lengths = {layer.name: layer.row_length for layer in layers}
        self._schemes = {layer.name: layer.scheme for layer in layers}
        n_rows, numbers = Counter(place.layer for place in places), Counter[int]()
        self._rows: dict[tuple[str, int], int] = {}
        self._parts: list[Part] = []
        for row, (layer, start) in enumerate(places):
            chunk = numbers[layer] if n_rows[layer] > 1 else None
            self._parts.append(Part(tensors[layer], start, start + sizes[row], chunk))
            self._rows[tensors[layer].name, start] = row
            numbers[layer] += 1

    def holds_weights(self, tensor: Tensor) -> bool:
        """Whether the tensor has codes, or the bytes of floats."""
        return self._schemes[tensor.name] is not None or (self._has_raw and is_float(tensor.dtype))

    def scheme_of(self, tensor: Tensor) -> str | None:
        """Return the scheme of the tensor's codes."""
        return self._schemes[tensor.name]

    def row_length(self, tensor: Tensor, scheme: Scheme) -> int:  # noqa: ARG002 - the file says it
        """Return the weights of a matrix row, as the file has it."""
        return self._row_lengths[tensor.name]

    def parts(self, chunk_weights: int | None = None) -> list[Part]:
        """Return the rows of the file; they are not cut again."""
        super().parts(chunk_weights)
        return self._parts

    def batches(
        self,
        parts: Sequence[Part],
        form: str | None = "weights",
        *,
        chunked: bool = False,
        max_rows: int | None = None,
        max_bytes: int | None = None,  # noqa: ARG002 - row groups are bounded
        made: Callable[[Array], object] = id,  # noqa: ARG002 - nobody reads a Parquet file ahead
    ) -> Iterator[pa.Table]:
        """Yield rows as `Source.batches` does, but in the order of the file."""
        wanted = {self._rows[part.tensor.name, part.start]: part for part in parts}
        if form is None:
            yield listing([wanted[row] for row in sorted(wanted)], chunked=chunked)
            return
        column = RAW.name if form == "raw" else "quantized"
        if column == RAW.name and not self._has_raw:  # rows of codes have no bytes of their own
            some = [wanted[row] for row in sorted(wanted)]
            yield listing(some, chunked=chunked).append_column(
                FORMS[form].column, pa.nulls(len(some), FORMS[form].arrow)
            )
            return
        with QuantizedFile(self.path) as file:
            for rows, held in file.column(column, sorted(wanted)):
                for at in range(0, len(rows), max_rows or len(rows)):
                    some = [wanted[row] for row in rows[at : at + (max_rows or len(rows))]]
                    values = self._as(form, held.slice(at, len(some)), some)
                    yield listing(some, chunked=chunked).append_column(FORMS[form].column, values)
                del held

    def _as(self, form: str, rows: pa.Array, parts: Sequence[Part]) -> pa.Array:
        if form != "weights":
            return rows.cast(FORMS[form].arrow)
        try:
            return FUNCTIONS["dequantize"](rows.cast(layout.QUANTIZED))
        except Aq2Error as error:
            layer = parts[error.row].tensor.name if error.row is not None else None
            raise error.at(function=self.function, layer=layer, row=None) from None
