"""Vectors from and to arrays, and arrays on the stack."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.extending import overload
from numba.np.arrayobj import populate_array

from aq2_pipeline.kernels.lane_arrays import (
    LANES,
    load,
    load_half,
    local,
    only_read,
    read,
    store,
    transpose,
)
from aq2_pipeline.kernels.vectors import Vector, intrinsic


def _address(context: Any, builder: Any, array_type: Any, array: Any, at: Any, pointee: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), pointee.as_pointer())


def _loader(n: int) -> Any:
    @intrinsic
    def read(_typing: Any, values: Any, at: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointee = context.get_value_type(signature.return_type)
            return builder.load(
                _address(context, builder, values, args[0], args[1], pointee), align=values.dtype.bitwidth // 8
            )

        return Vector(values.dtype, n)(values, at), emit

    return read


_load, _load_half = _loader(LANES), _loader(LANES // 2)


@intrinsic
def _read(_typing: Any, data: Any, at: Any, dtype: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointee = context.get_value_type(signature.return_type)
        return builder.load(_address(context, builder, data, args[0], args[1], pointee), align=1)

    return Vector(dtype.dtype, LANES)(data, at, dtype), emit


@intrinsic
def _store(_typing: Any, values: Any, at: Any, vector: Any) -> Any:
    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address = _address(context, builder, values, args[0], args[1], context.get_value_type(vector))
        builder.store(args[2], address, align=values.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(values, at, vector), emit


# Not overloads: where nothing is counted, Numba lets no function return an array that it made, an intrinsic aside.
@extending.type_callable(only_read)
def _type_of_only_read(_context: Any) -> Any:
    return lambda values: types.Array(values.dtype, 1, "C", readonly=True)


@extending.lower_builtin(only_read, types.Array)
def _emit_only_read(_context: Any, _builder: Any, _signature: Any, args: Any) -> Any:
    return args[0]  # the two types have the same fields


@extending.type_callable(local)
def _type_of_local(_context: Any) -> Any:
    def typed(n: Any, dtype: Any) -> Any:
        return types.Array(dtype.dtype, 1, "C") if isinstance(n, types.IntegerLiteral) else None

    return typed


@extending.lower_builtin(local, types.IntegerLiteral, types.Any)
def _emit_local(context: Any, builder: Any, signature: Any, _args: Any) -> Any:
    kind, size = signature.return_type, signature.args[0].literal_value
    element = context.get_data_type(kind.dtype)
    # Not `cgutils.alloca_once`: that stores zeros, as one value of the array's type, and LLVM took 20 s for some.
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(element, size))
    memory.align = 64
    item = context.get_abi_sizeof(element)
    shape, strides, item_size = (context.get_constant(types.intp, k) for k in (size, item, item))
    array = context.make_array(kind)(context, builder)
    data = builder.bitcast(memory, element.as_pointer())
    populate_array(array, data=data, shape=[shape], strides=[strides], itemsize=item_size, meminfo=None)
    return array._getvalue()  # noqa: SLF001 - Numba has no other way


def _interleaved(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Return the lanes of two vectors in turn: those of the lower halves, and those of the upper."""
    halves = ([k // 2 + n + k % 2 * LANES for k in range(LANES)] for n in (0, LANES // 2))
    low, high = (builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), o)) for o in halves)
    return low, high


@intrinsic
def _transpose(_typing: Any, values: Any, at: Any, stride: Any, target: Any, to_at: Any) -> Any:
    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, start, step, sink, end = args
        pointee = ir.VectorType(context.get_data_type(values.dtype), LANES)
        align = values.dtype.bitwidth // 8
        rows = []
        for k in range(LANES):
            run = builder.add(start, builder.mul(step, step.type(k)))
            rows.append(builder.load(_address(context, builder, values, source, run, pointee), align=align))
        for _ in range(4):  # each turn interleaves the vectors eight apart
            pairs = (_interleaved(builder, rows[k], rows[k + LANES // 2]) for k in range(LANES // 2))
            rows = [half for pair in pairs for half in pair]
        for k, row in enumerate(rows):
            place = builder.add(end, end.type(LANES * k))
            builder.store(row, _address(context, builder, target, sink, place, pointee), align=align)
        return context.get_dummy_value()

    return types.none(values, at, stride, target, to_at), emit


# Lambdas, because Numba compares an overload's parameters with its implementation's, annotations included.
overload(load)(lambda values, at: lambda values, at: _load(values, at))
overload(load_half)(lambda values, at: lambda values, at: _load_half(values, at))
overload(transpose)(
    lambda values, at, stride, target, to_at: (
        lambda values, at, stride, target, to_at: _transpose(values, at, stride, target, to_at)
    )
)
overload(read)(lambda data, at, dtype: lambda data, at, dtype: _read(data, at, dtype))
overload(store)(lambda values, at, vector: lambda values, at, vector: _store(values, at, vector))
