"""Columns of weights of any make as one `Weights`: an array, the chunks of one, or ndarrays where they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from aq2_pipeline import arrow, layout, windows
from aq2_pipeline.errors import InputTypeError
from aq2_pipeline.tensors import rows_of
from aq2_pipeline.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aq2_pipeline.weights import Array

__all__ = ["Column", "Tensors", "read", "undescribed", "validity"]


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


def undescribed(column: Column, n_rows: int) -> str | None:
    """Return an input dtype with which a column is read that no row describes: 16 bits of integers need one."""
    try:
        read(column, "bf16", np.zeros(n_rows, bool))
    except InputTypeError:
        return None
    return "bf16"


def _read_tensors(arrays: list[Array], dtype: str | None, active: Array) -> Weights:
    if arrays and arrays[0].dtype == np.float32 and dtype is None:
        values, starts = windows.window(arrays)
        stops = starts + np.array([array.size for array in arrays], np.int64)
        stops[~active] = starts[~active]
        return Weights(values, starts, stops, active.copy())
    rows = [rows_of(array, 1) for array in arrays] or [pa.array([], layout.FLOATS)]
    return _joined([arrow.read_weights(row, dtype, active[k : k + 1]) for k, row in enumerate(rows)])


def _joined(parts: list[Weights]) -> Weights:
    """Return columns of one type as one, over a window of the memory of all."""
    if len(parts) == 1:
        return parts[0]
    kind = next((part.kind for part in parts if part.kind is not None), None)
    if kind is None:
        values, firsts = windows.window([part.values for part in parts])
        joined = replace(parts[0], values=values)
        skews = parts[0].skew
    else:
        raw, begins = windows.window([part.values.view(np.uint8) if part.kind is None else part.raw for part in parts])
        size = next(part.item_size for part in parts if part.kind is not None)
        firsts, rest = np.divmod(begins, size)
        joined = replace(parts[0], values=parts[0].values[:0], kind=kind, raw=raw)
        skews = np.concatenate(
            [np.zeros(p.valid.size, np.int64) + p.skew + r for p, r in zip(parts, rest, strict=True)]
        )
    n_rows = np.cumsum([0, *(part.valid.size for part in parts)]).tolist()
    failures = {
        row + first: error.at(row=row + first)
        for part, first in zip(parts, n_rows, strict=False)
        for row, error in part.failures.items()
    }
    return replace(
        joined,
        starts=np.concatenate([part.starts + first for part, first in zip(parts, firsts, strict=True)]),
        stops=np.concatenate([part.stops + first for part, first in zip(parts, firsts, strict=True)]),
        valid=np.concatenate([part.valid for part in parts]),
        nulls=np.sort(np.concatenate([part.nulls + first for part, first in zip(parts, firsts, strict=True)])),
        skew=skews,
        failures=failures,
    )


def _skewed(part: Weights) -> Weights:
    """Return a column with an entry of `skew` for each row, which aligned float32 do without."""
    return part if part.kind is not None else replace(part, skew=np.zeros(part.valid.size, np.int64))
