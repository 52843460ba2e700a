"""Vectors of a fixed number of lanes: arithmetic that LLVM never splits into single values.

Whether LLVM vectorises a loop depends on what else is in it: an index that may be
negative, sums that live in memory, codes that fill no byte. What is written over
lanes is a vector instruction by construction, and gives the same bits on every
CPU: a vector wider than its registers becomes several instructions. Compiled, a
vector is a value type of Numba's; where a kernel runs as a Python function it is a
NumPy array, whose operators mean the same. A scalar beside a vector must have its
element's type, and stands for all lanes.
"""

from aq2_pipeline.kernels import vector_memory, vector_shuffles  # noqa: F401 - they give the functions their instructions
from aq2_pipeline.kernels.lane_arrays import (
    LANES,
    butterfly,
    join,
    lane,
    largest,
    load,
    load_half,
    local,
    magnitude,
    maximum,
    minimum,
    nearest,
    only_read,
    packed,
    plus_product,
    ramp,
    read,
    reinterpreted,
    shared_largest,
    shared_total,
    splat,
    square_root,
    store,
    to,
    total,
    transpose,
    unpacked,
    where,
)
from aq2_pipeline.kernels.vectors import Vector, intrinsic

__all__ = [
    "LANES",
    "Vector",
    "butterfly",
    "intrinsic",
    "join",
    "lane",
    "largest",
    "load",
    "load_half",
    "local",
    "magnitude",
    "maximum",
    "minimum",
    "nearest",
    "only_read",
    "packed",
    "plus_product",
    "ramp",
    "read",
    "reinterpreted",
    "shared_largest",
    "shared_total",
    "splat",
    "square_root",
    "store",
    "to",
    "total",
    "transpose",
    "unpacked",
    "where",
]
