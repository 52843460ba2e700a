"""Parquet files of quantized layers as a source: rows are read by row group, and decoded where floats are wanted."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from aq2_pipeline import build, layout
from aq2_pipeline.errors import Aq2Error
from aq2_pipeline.functions import FUNCTIONS
from aq2_pipeline.io.parquet.file import QuantizedFile
from aq2_pipeline.io.parquet.writing import RAW
from aq2_pipeline.io.paths import bad_file, open_regular, source_path, stamp_of
from aq2_pipeline.io.tables.dtypes import decoded, is_float, numpy_dtype
from aq2_pipeline.io.tables.parts import Part, Tensor
from aq2_pipeline.io.tables.source import FORMS, Source, listing

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
            metadata, self._has_raw = file.source_metadata, file.has_raw
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

    def is_stored(self, tensor: Tensor) -> bool:
        """Whether the file has the tensor's codes or bytes: some writers keep the names of what they leave out."""
        return self._schemes[tensor.name] is not None or self._has_raw

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
        empty: Callable[[int, Any], Array] | None = None,  # noqa: ARG002 - pyarrow has its own
    ) -> Iterator[pa.Table]:
        """Yield rows as `Source.batches` does, but in the order of the file."""
        wanted = {self._rows[part.tensor.name, part.start]: part for part in parts}
        if form is None or not wanted:
            yield from [] if form else [listing([wanted[row] for row in sorted(wanted)], chunked=chunked)]
            return
        if form == "raw" and not self._has_raw:  # rows of codes have no bytes of their own
            some = [wanted[row] for row in sorted(wanted)]
            none = pa.nulls(len(some), FORMS[form].arrow)
            yield listing(some, chunked=chunked).append_column(FORMS[form].column, none)
            return
        columns = [RAW.name if form == "raw" else "quantized"]
        if form == "weights" and self._has_raw and any(self._schemes[part.tensor.name] is None for part in parts):
            columns.append(RAW.name)
        with QuantizedFile(self.path) as file:
            for rows, held in file.columns(columns, sorted(wanted)):
                self._check_unchanged()
                for at in range(0, len(rows), max_rows or len(rows)):
                    some = [wanted[row] for row in rows[at : at + (max_rows or len(rows))]]
                    values = self._as(form, held.slice(at, len(some)), some)
                    yield listing(some, chunked=chunked).append_column(FORMS[form].column, values)
                del held

    def _check_unchanged(self) -> None:
        with open_regular(self.path) as file:
            if stamp_of(file) != self.stamps[0]:
                raise bad_file(self.path, "the file has changed since its layers were listed", "scan it again")

    def _as(self, form: str, rows: pa.RecordBatch, parts: Sequence[Part]) -> pa.Array:
        if form != "weights":
            return rows[0].cast(FORMS[form].arrow)
        try:
            floats = FUNCTIONS["dequantize"](rows[0].cast(layout.QUANTIZED))
        except Aq2Error as error:
            layer = parts[error.row].tensor.name if error.row is not None else None
            raise error.at(function=self.function, layer=layer, row=None) from None
        return floats if rows.num_columns == 1 else self._with_raw(floats, rows[1], parts)

    def _with_raw(self, floats: pa.Array, raw: pa.Array, parts: Sequence[Part]) -> pa.Array:
        """Return weights, where there are no codes from the bytes of a float dtype."""
        rows = [
            self._decoded(part, given.as_py()) if one.values is None and given.is_valid else one.values
            for one, given, part in zip(floats, raw, parts, strict=True)
        ]
        sizes = np.array([0 if row is None else len(row) for row in rows], np.int64)
        arrays = [np.empty(0, np.float32), *(np.asarray(row) for row in rows if row is not None)]
        mask = build.bitmap(np.array([row is not None for row in rows], bool))
        return build.float_lists(build.offsets_of(sizes), np.concatenate(arrays), mask)

    def _decoded(self, part: Part, raw: bytes) -> Array | None:
        dtype = part.tensor.dtype
        if not is_float(dtype):
            return None
        kind = numpy_dtype(dtype)
        if len(raw) != part.size * kind.itemsize:
            msg = f"{len(raw)} bytes for {part.size} elements of {dtype}"
            raise bad_file(self.path, msg, layer=part.tensor.name)
        values = np.frombuffer(raw, kind)
        floats = decoded(values, dtype)
        if dtype == "F64":
            self._check_fits(values, floats, part, 0)
        return floats
