"""Columns of weights of any make as one `Weights`: an array, the chunks of one, or ndarrays where they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from aq2_pipeline import arrow, layout, windows
from aq2_pipeline.arrow import Weights
from aq2_pipeline.tensors import rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aq2_pipeline.arrow import Array

__all__ = ["Column", "Tensors", "read", "validity"]


class Tensors:
    """Contiguous ndarrays of one dtype as a column: a row each, of any shape."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)


#: What `quantize` takes as weights.
Column: TypeAlias = "pa.Array | pa.ChunkedArray | Tensors"


def validity(column: Column) -> Array:
    """Return which rows are not null."""
    if isinstance(column, pa.Array):
        return arrow.validity(column)
    if isinstance(column, Tensors):
        return np.ones(len(column), bool)
    return np.concatenate([np.empty(0, bool), *(arrow.validity(chunk) for chunk in column.chunks)])


def read(column: Column, dtype: str | None, active: Array) -> Weights:
    """Read a column of weights; parameters are those of `arrow.read_weights`.

    The chunks of a chunked array, and tensors, become one column whose spans lie
    in a window over all their buffers, so that one job works through them and
    nothing is copied.
    """
    if isinstance(column, pa.Array):
        return arrow.read_weights(column, dtype, active)
    if isinstance(column, Tensors):
        return _read_tensors([array.reshape(-1) for array in column.arrays], dtype, active)
    parts, row = [], 0
    for chunk in column.chunks or [pa.nulls(0, column.type)]:
        parts.append(arrow.read_weights(chunk, dtype, active[row : row + len(chunk)]))
        row += len(chunk)
    return _joined(parts)


def _read_tensors(arrays: list[Array], dtype: str | None, active: Array) -> Weights:
    if arrays and arrays[0].dtype == np.float32 and dtype is None:
        values, starts = windows.window(arrays)
        stops = starts + np.array([array.size for array in arrays], np.int64)
        stops[~active] = starts[~active]
        return Weights(values, starts, stops, active.copy())
    rows = [rows_of(array, 1) for array in arrays] or [pa.array([], layout.FLOATS)]
    return _joined([arrow.read_weights(row, dtype, active[k : k + 1]) for k, row in enumerate(rows)])


def _joined(parts: list[Weights]) -> Weights:
    """Return columns of one type as one."""
    if len(parts) == 1:
        return parts[0]
    values, source = [part.values for part in parts], None
    n_rows = np.cumsum([0, *(part.valid.size for part in parts)]).tolist()
    try:
        if any(part.source is not None for part in parts):
            source = np.concatenate([part.values if part.source is None else part.source for part in parts])
            raise ValueError  # noqa: TRY301 - a position must be that of the source, too
        whole, firsts = windows.window(values)
    except ValueError:
        whole, firsts = np.concatenate(values), np.cumsum([0, *(part.size for part in values)])[:-1]
        whole.flags.writeable = False
    failures = {
        row + first: error.at(row=row + first)
        for part, first in zip(parts, n_rows, strict=False)
        for row, error in part.failures.items()
    }
    return replace(
        parts[0],
        values=whole,
        starts=np.concatenate([part.starts + first for part, first in zip(parts, firsts, strict=True)]),
        stops=np.concatenate([part.stops + first for part, first in zip(parts, firsts, strict=True)]),
        valid=np.concatenate([part.valid for part in parts]),
        nulls=np.sort(np.concatenate([part.nulls + first for part, first in zip(parts, firsts, strict=True)])),
        source=source,
        failures=failures,
    )
