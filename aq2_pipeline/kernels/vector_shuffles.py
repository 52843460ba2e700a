"""Lanes among themselves: sums, maxima, single lanes, masks as bits."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import overload

from aq2_pipeline.kernels.lane_arrays import (
    LANES,
    butterfly,
    join,
    lane,
    largest,
    packed,
    shared_largest,
    shared_total,
    total,
    unpacked,
)
from aq2_pipeline.kernels.vectors import Vector, arithmetic, chosen, intrinsic, is_vector


@intrinsic
def _join(_typing: Any, low: Any, high: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        order = ir.Constant(ir.VectorType(ir.IntType(32), 2 * low.n), list(range(2 * low.n)))
        return builder.shuffle_vector(args[0], args[1], order)

    return Vector(low.element, 2 * low.n)(low, high), emit


@intrinsic
def _packed(_typing: Any, mask: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(64))

    return types.int64(mask), emit


@intrinsic
def _unpacked(_typing: Any, bits: Any) -> Any:
    kind = Vector(types.boolean, LANES)

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.trunc(args[0], ir.IntType(LANES)), context.get_value_type(kind))

    return kind(bits), emit


@intrinsic
def _lane(_typing: Any, vector: Any, k: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], ir.IntType(32)))

    return vector.element(vector, k), emit


def _reduction(combine: Any) -> Any:
    @intrinsic
    def reduce(_typing: Any, vector: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            found, n = args[0], vector.n
            while n > 1:
                n //= 2
                halves = (
                    builder.shuffle_vector(found, found, ir.Constant(ir.VectorType(ir.IntType(32), n), order))
                    for order in (list(range(n)), list(range(n, 2 * n)))
                )
                found = combine(builder, vector.element, *halves)
            return builder.extract_element(found, ir.IntType(32)(0))

        return vector.element(vector), emit

    return reduce


def _sharing(combine: Any) -> Any:
    """Return what combines each lane with its neighbours, by steps of one, two, four and eight lanes."""

    @intrinsic(prefer_literal=True)
    def share(_typing: Any, vector: Any, n: Any) -> Any:
        if not isinstance(n, types.IntegerLiteral):
            return None

        def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            found, step = args[0], 1
            while step < n.literal_value:
                order = ir.Constant(ir.VectorType(ir.IntType(32), vector.n), [k ^ step for k in range(vector.n)])
                found = combine(builder, vector.element, found, builder.shuffle_vector(found, found, order))
                step *= 2
            return found

        return vector(vector, n), emit

    return share


@intrinsic(prefer_literal=True)
def _butterfly(_typing: Any, vector: Any, n: Any) -> Any:
    if not isinstance(n, types.IntegerLiteral):
        return None

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        lanes, step, own = range(vector.n), n.literal_value, args[0]
        shuffled = ir.VectorType(ir.IntType(32), vector.n)
        other = builder.shuffle_vector(own, own, ir.Constant(shuffled, [k ^ step for k in lanes]))
        sums, differences = builder.fadd(own, other), builder.fsub(other, own)
        chosen = ir.Constant(shuffled, [k + vector.n if k & step else k for k in lanes])
        return builder.shuffle_vector(sums, differences, chosen)

    return vector(vector, n), emit


_shared_total = _sharing(arithmetic("fadd", "add"))
_shared_largest = _sharing(chosen(">"))
_total = _reduction(arithmetic("fadd", "add"))
_largest = _reduction(chosen(">"))


overload(lane)(lambda vector, k: (lambda vector, k: _lane(vector, k)) if is_vector(vector) else None)
overload(join)(lambda low, high: (lambda low, high: _join(low, high)) if is_vector(low) and low == high else None)
overload(packed)(lambda mask: (lambda mask: _packed(mask)) if is_vector(mask) else None)
overload(unpacked)(lambda bits: lambda bits: _unpacked(bits))
overload(total)(lambda vector: (lambda vector: _total(vector)) if is_vector(vector) else None)
overload(largest)(lambda vector: (lambda vector: _largest(vector)) if is_vector(vector) else None)
overload(butterfly, prefer_literal=True)(
    lambda vector, n: (lambda vector, n: _butterfly(vector, n)) if is_vector(vector) else None
)
overload(shared_total, prefer_literal=True)(
    lambda vector, n: (lambda vector, n: _shared_total(vector, n)) if is_vector(vector) else None
)
overload(shared_largest, prefer_literal=True)(
    lambda vector, n: (lambda vector, n: _shared_largest(vector, n)) if is_vector(vector) else None
)
