"""A column of weights as kernels find it: the caller's own memory, and where the rows lie in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.errors import InputValueError
from aq2_pipeline.floats import float32_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aq2_pipeline.errors import Aq2Error

    Array = NDArray[Any]

NUMPY_OF_DTYPE = {"f32": "<f4", "f64": "<f8", "f16": "<f2", "bf16": "<u2"}


def frozen_view(values: Array) -> Array:
    """Return a read-only view, as kernels take their inputs."""
    view = values.view()
    view.flags.writeable = False
    return view


#: Defaults of `Weights`, which a column of few rows would take longer to make than to fill.
_NO_NULLS, _NO_BYTES = frozen_view(np.empty(0, np.int64)), frozen_view(np.empty(0, np.uint8))
_NO_SKEW = frozen_view(np.zeros(1, np.int64))


@dataclass
class Weights:
    """A column of weights as a flat buffer and spans.

    Attributes
    ----------
    values : float32 array, read-only
        The caller's own buffer, where it holds aligned float32; else empty.
    starts, stops : int64 arrays
        The span of each row in elements; empty where the row is null or failed.
    valid : bool array
        False for null and failed rows.
    shape : tuple of int or None
        The shape that the column's type gives every row.
    nulls : int64 array
        Elements that are null, ascending.
    kind : {"f32", "f16", "bf16", "f64"} or None
        How the bytes `raw`, the caller's own, hold weights that are not in `values`.
    raw : uint8 array, read-only
    skew : int64 array
        Bytes from a row's first element to where `raw` holds it: binary rows may begin anywhere.
    failures : dict
        Row -> what is wrong with it.
    """

    values: Array
    starts: Array
    stops: Array
    valid: Array
    shape: tuple[int, ...] | None = None
    nulls: Array = field(default_factory=lambda: _NO_NULLS)
    kind: str | None = None
    raw: Array = field(default_factory=lambda: _NO_BYTES)
    skew: Array = field(default_factory=lambda: _NO_SKEW)
    failures: dict[int, Aq2Error] = field(default_factory=dict)

    @property
    def lengths(self) -> Array:
        """Weights a row; int64."""
        return self.stops - self.starts

    @property
    def item_size(self) -> int:
        """Bytes an element."""
        return np.dtype(NUMPY_OF_DTYPE[self.kind or "f32"]).itemsize

    @property
    def is_aligned(self) -> bool:
        """Whether `raw` holds every row at multiples of its elements' size."""
        return not (self.raw.ctypes.data % self.item_size or (self.skew % self.item_size).any())

    def value(self, row: int, position: int) -> float:
        """Return one weight as the caller wrote it."""
        at = int(self.starts[row]) + position
        if self.kind is None:
            return float(self.values[at])
        first = at * self.item_size + int(self.skew[row])
        one = self.raw[first : first + self.item_size].view(NUMPY_OF_DTYPE[self.kind])
        return float(one[0] if self.kind == "f64" else float32_of(one, self.kind)[0])

    def with_nan(self) -> Weights:
        """Return a copy, in float32, with NaN for its null elements."""
        values = self.as_float32().copy()
        values[self.nulls] = np.nan
        return replace(self, values=frozen_view(values), kind=None)

    def as_float32(self) -> Array:
        """Return the elements of a list column as float32, for columns of few values."""
        return self.values if self.kind is None else float32_of(self.raw.view(NUMPY_OF_DTYPE[self.kind]), self.kind)

    def fail_null_elements(self) -> None:
        """Set aside every row that holds a null element."""
        if not self.nulls.size:
            return
        first = np.searchsorted(self.nulls, self.starts)
        for row in np.flatnonzero(self.valid & (first < np.searchsorted(self.nulls, self.stops))):
            position = int(self.nulls[first[row]] - self.starts[row])
            error = InputValueError("an element is null", "fill it, or filter the row out")
            self.fail(int(row), error.at(position=position))

    def fail(self, row: int, error: Aq2Error) -> None:
        """Set a row aside with the reason; the first reason stays."""
        self.failures.setdefault(row, error.at(row=row))
        self.valid[row] = False
        self.starts[row] = self.stops[row] = 0
