"""Sources as lazy frames of Polars and as readers of Arrow: only what a query asks for is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from aq2_pipeline.io.source import FORMS, Source, listing

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lazy_frame", "reader"]

_COLUMNS = {"layer_name": pl.String(), "shape": pl.List(pl.Int64), "dtype": pl.String()}
_CHUNKS = {"chunk": pl.Int32(), "start": pl.Int64(), "tensor_shape": pl.List(pl.Int64)}


def lazy_frame(source: Source, form: str, chunk_weights: int | None = None) -> pl.LazyFrame:
    """Return a source as a lazy layer table.

    A predicate on anything but the weights decides which rows are read; a
    query without the weights reads none.
    """
    parts = source.parts(chunk_weights)
    chunked = chunk_weights is not None
    column = FORMS[form].column
    schema = pl.Schema({**_COLUMNS, **(_CHUNKS if chunked else {}), column: FORMS[form].polars})

    def frames(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        """Yield the table as Polars asks for it: see `polars.io.plugins.register_io_source`.

        Polars 2.1 means the first `n_rows` rows of the file, of which it wants
        those that meet the predicate.
        """
        rows = parts[:n_rows]
        roots = set(predicate.meta.root_names()) if predicate is not None else set()
        wanted = schema.names() if with_columns is None else with_columns
        if predicate is not None and column not in roots:  # decide before anything is read
            told = pl.DataFrame(listing(rows, chunked=chunked)).with_row_index("__aq2_row")
            rows = [rows[row] for row in told.filter(predicate)["__aq2_row"]]
            predicate = None
        read = form if column in wanted or column in roots else None
        for batch in source.batches(rows, read, chunked=chunked, max_rows=batch_size):
            frame = pl.DataFrame(batch)
            frame = (frame if predicate is None else frame.filter(predicate)).select(wanted)
            yield frame
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
            yield from table.combine_chunks().to_batches()
            del table

    return pa.RecordBatchReader.from_batches(source.schema(form, chunked=chunked), batches())
