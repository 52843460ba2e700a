"""Sources as lazy frames of Polars and as readers of Arrow: only what a query asks for is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from aq2_pipeline.io.tables.in_flight import InFlight
from aq2_pipeline.io.tables.predicates import split
from aq2_pipeline.io.tables.source import FORMS, Source, listing

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lazy_frame", "reader"]

_COLUMNS = {"layer_name": pl.String(), "shape": pl.List(pl.Int64), "dtype": pl.String()}
_CHUNKS = {"chunk": pl.Int32(), "start": pl.Int64(), "tensor_shape": pl.List(pl.Int64)}


def lazy_frame(source: Source, form: str, chunk_weights: int | None = None, *, metadata: bool = False) -> pl.LazyFrame:
    """Return a source as a lazy layer table.

    What a predicate says of anything but the weights decides which rows are
    read; a query without the weights reads none. With `metadata` the last
    column is the model's metadata as JSON, the same in every row.
    """
    parts = source.parts(chunk_weights)
    chunked = chunk_weights is not None
    column = FORMS[form].column
    schema = pl.Schema({**_COLUMNS, **(_CHUNKS if chunked else {}), column: FORMS[form].polars})
    constant = []
    if metadata:
        schema["metadata"] = pl.String()
        constant = [pl.lit(json.dumps(source.metadata, ensure_ascii=False), pl.String()).alias("metadata")]

    def frames(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        """Yield the table as Polars asks for it: see `polars.io.plugins.register_io_source`.

        Polars 2.1 means the first `n_rows` rows of the file, of which it wants
        those that meet the predicate.
        """
        rows = parts[:n_rows]
        wanted = schema.names() if with_columns is None else with_columns
        known, rest = split(predicate, column)
        if known is not None:  # decide before anything is read
            told = pl.DataFrame(listing(rows, chunked=chunked)).with_columns(constant).with_row_index("__aq2_row")
            rows = [rows[row] for row in told.filter(known)["__aq2_row"]]
        read = form if column in wanted or rest is not None else None
        in_flight = InFlight()
        for batch in source.batches(rows, read, chunked=chunked, max_rows=batch_size, empty=in_flight.empty):
            frame = pl.DataFrame(batch).with_columns(constant)
            yield (frame if rest is None else frame.filter(rest)).select(wanted)
            del batch, frame
            in_flight.wait()
        if not rows:
            yield schema.to_frame().select(wanted)

    name = source.function.removeprefix("scan_")
    detail = str(source.path)
    return register_io_source(
        frames, schema=schema, explain_name=name, explain_detail=detail if detail.isprintable() else repr(detail)
    )


def reader(source: Source, form: str, chunk_weights: int | None = None) -> pa.RecordBatchReader:
    """Return a source as a stream of record batches, for DuckDB and Arrow."""
    parts = source.parts(chunk_weights)
    chunked = chunk_weights is not None

    def batches() -> Iterator[pa.RecordBatch]:
        for table in source.batches(parts, form, chunked=chunked):
            yield from table.to_batches()
            del table

    return pa.RecordBatchReader.from_batches(source.schema(form, chunked=chunked), batches())
