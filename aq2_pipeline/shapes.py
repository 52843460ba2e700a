"""Shapes: what a type says of every row, and how many weights a shape holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.types as pt

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["n_weights", "nested_shape"]


def nested_shape(kind: pa.DataType) -> tuple[int, ...] | None:
    """Return the shape that a type gives every row: a tensor's, or that of nested fixed-size lists."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape)
    shape = []
    while pt.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    return tuple(shape) if len(shape) > 1 else None


def n_weights(shape: Sequence[int | None]) -> int:
    """Return the product of a shape; -1 where an axis is null or negative."""
    if any(axis is None or axis < 0 for axis in shape):
        return -1
    return math.prod(axis for axis in shape if axis is not None)
