"""Vectors of a fixed number of lanes: arithmetic that LLVM never splits into single values.

Whether LLVM vectorises a loop depends on what else is in it: an index that may be
negative, sums that live in memory, codes that fill no byte. What is written over
lanes is a vector instruction by construction, and gives the same bits on every
CPU: a vector wider than its registers becomes several instructions. Compiled, a
vector is a value type of Numba's; where a kernel runs as a Python function it is a
NumPy array, whose operators mean the same. A scalar beside a vector must have its
element's type, and stands for all lanes.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, overload, register_model
from numba.np.arrayobj import populate_array

from aq2_pipeline.kernels._jit import helper

#: Untyped, as Numba's decorators are: what a typing function declares is called with one argument less.
intrinsic: Any = extending.intrinsic

#: Lanes that kernels work with: an AVX-512 register of float32.
LANES = 16


class Vector(types.Type):
    """A vector of `n` elements of one of Numba's number types."""

    def __init__(self, element: Any, n: int) -> None:
        self.element, self.n = element, n
        super().__init__(name=f"Vector({element}, {n})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Any) -> None:
        element = manager.lookup(vector.element).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.n))


def load(values: Any, at: Any) -> Any:
    """Return the 16 elements of an array from `at` on."""
    return values[at : at + LANES].copy()


def load_half(values: Any, at: Any) -> Any:
    """Return the 8 elements of an array from `at` on."""
    return values[at : at + LANES // 2].copy()


def local(n: Any, dtype: Any) -> Any:
    """Return `n` elements on the stack, whatever they hold; `n` is a constant, and its function keeps the array."""
    return np.empty(n, dtype)


def transpose(values: Any, at: Any, stride: Any, target: Any, to_at: Any) -> None:
    """Write the 16 elements of 16 runs that begin `stride` apart so that lane k of each vector is of run k."""
    runs = [values[at + k * stride : at + k * stride + LANES] for k in range(LANES)]
    target[to_at : to_at + LANES * LANES] = np.stack(runs, axis=1).reshape(-1)


def read(data: Any, at: Any, dtype: Any) -> Any:
    """Return 16 little-endian elements of a type from a byte of an array of bytes on."""
    return data[at : at + LANES * np.dtype(dtype).itemsize].view(dtype).copy()


def store(values: Any, at: Any, vector: Any) -> None:
    """Write a vector, or a scalar, to an array from `at` on; to an array of bytes, in little-endian order."""
    flat = np.atleast_1d(vector).view(values.dtype)
    values[at : at + flat.size] = flat


def reinterpreted(vector: Any, dtype: Any) -> Any:
    """Return the same bits as elements of another type."""
    return vector.view(dtype)


def to(vector: Any, dtype: Any) -> Any:
    """Return the elements converted to another type; integers keep their low bits."""
    return vector.astype(dtype)


def join(low: Any, high: Any) -> Any:
    """Return one vector of the lanes of two."""
    return np.concatenate([low, high])


def lane(vector: Any, k: Any) -> Any:
    """Return one element."""
    return vector[k]


def ramp() -> Any:
    """Return 0 to 7 as a vector of uint64."""
    return np.arange(8, dtype=np.uint64)


def splat(scalar: Any) -> Any:
    """Return a scalar 16 times."""
    return np.full(LANES, scalar, np.asarray(scalar).dtype)


def plus_product(addend: Any, a: Any, b: Any) -> Any:
    """Return `addend + a * b`, where every product is exact: a fused multiply-add, which this allows, rounds alike."""
    return addend + a * b


def magnitude(vector: Any) -> Any:
    """Return the absolute values of float32."""
    return np.abs(vector)


def square_root(vector: Any) -> Any:
    """Return the square roots, correctly rounded."""
    return np.sqrt(vector)


def nearest(vector: Any) -> Any:
    """Return the nearest integers of float32 below 2**22 in magnitude, ties to even; a zero's sign is either."""
    return np.rint(vector)


def where(mask: Any, chosen: Any, other: Any) -> Any:
    """Return, lane by lane, the one or the other vector."""
    return np.where(mask, chosen, other)


def packed(mask: Any) -> Any:
    """Return 16 lanes of a mask as the bits of an integer, the first lane lowest."""
    return int(np.packbits(mask, bitorder="little").view("<u2")[0])


def unpacked(bits: Any) -> Any:
    """Return the low 16 bits of an integer as a mask, the lowest first."""
    return (int(bits) >> np.arange(LANES)) & 1 == 1


def maximum(a: Any, b: Any) -> Any:
    """Return the larger of two vectors' elements; no NaN."""
    return np.where(a > b, a, b)


def minimum(a: Any, b: Any) -> Any:
    """Return the smaller of two vectors' elements; no NaN."""
    return np.where(a < b, a, b)


def total(vector: Any) -> Any:
    """Return the sum of the lanes: halves are added until one lane is left."""
    while vector.size > 1:
        vector = vector[: vector.size // 2] + vector[vector.size // 2 :]
    return vector[0]


def largest(vector: Any) -> Any:
    """Return the largest element; no NaN."""
    return vector.max()


def shared_total(vector: Any, n: Any) -> Any:
    """Return, in each lane, the sum over its `n` neighbours: pairs, then pairs of pairs; `n` is a constant."""
    found, step = vector, 1
    while step < n:
        found, step = found + found[np.arange(found.size) ^ step], 2 * step
    return found


def shared_largest(vector: Any, n: Any) -> Any:
    """Return, in each lane, the largest of its `n` neighbours; no NaN; `n` is a constant."""
    return np.repeat(vector.reshape(-1, n).max(axis=1), n)


def butterfly(vector: Any, n: Any) -> Any:
    """Return `a + b` in the place of `a` and `a - b` in that of `b`, for lanes `n` apart; `n` is a constant."""
    lanes = np.arange(vector.size)
    other = vector[lanes ^ n]
    return np.where(lanes & n, other - vector, vector + other)


# --- what Numba makes of them ----------------------------------------------------------------------------------------


def _is_vector(kind: Any) -> bool:
    return isinstance(kind, Vector)


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


# Not an overload: where nothing is counted, Numba lets no function return an array that it made, an intrinsic aside.
@extending.type_callable(local)
def _type_of_local(_context: Any) -> Any:
    def typed(n: Any, dtype: Any) -> Any:
        return types.Array(dtype.dtype, 1, "C") if isinstance(n, types.IntegerLiteral) else None

    return typed


@extending.lower_builtin(local, types.IntegerLiteral, types.Any)
def _emit_local(context: Any, builder: Any, signature: Any, _args: Any) -> Any:
    kind, size = signature.return_type, signature.args[0].literal_value
    element = context.get_data_type(kind.dtype)
    memory = cgutils.alloca_once(builder, ir.ArrayType(element, size))
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


def _splat(context: Any, builder: Any, kind: Any, scalar: Any, scalar_type: Any) -> Any:
    """Return a vector of one scalar; integers are cast to the element's width, which is never a question for a mask."""
    element = context.cast(builder, scalar, scalar_type, kind.element)
    vector = context.get_value_type(kind)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), element, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.n), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _elementwise(function: Any, emit: Any, *, mask: bool = False) -> None:
    """Give a function of two vectors, or of a vector and a scalar, its instruction."""

    @intrinsic
    def apply(_typing: Any, a: Any, b: Any) -> Any:
        kind = a if isinstance(a, Vector) else b

        def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            both = (
                value if isinstance(given, Vector) else _splat(context, builder, kind, value, given)
                for value, given in zip(args, signature.args, strict=True)
            )
            return emit(builder, kind.element, *both)

        return (Vector(types.boolean, kind.n) if mask else kind)(a, b), lower

    def takes(a: Any, b: Any) -> bool:
        if not (isinstance(a, Vector) or isinstance(b, Vector)):
            return False
        if isinstance(a, Vector) and isinstance(b, Vector):
            return bool(a == b)
        vector, scalar = (a, b) if isinstance(a, Vector) else (b, a)
        return bool(scalar == vector.element) or {type(scalar), type(vector.element)} <= _INTEGERS

    overload(function)(lambda a, b: (lambda a, b: apply(a, b)) if takes(a, b) else None)


_INTEGERS = {types.Integer, types.IntegerLiteral}


def _is_float(kind: Any) -> bool:
    return isinstance(kind, types.Float)


def _arithmetic(of_floats: str, of_integers: str) -> Any:
    return lambda builder, kind, a, b: getattr(builder, of_floats if _is_float(kind) else of_integers)(a, b)


def _compared(sign: str) -> Any:
    def emit(builder: Any, kind: Any, a: Any, b: Any) -> Any:
        if _is_float(kind):
            return builder.fcmp_ordered(sign, a, b)
        return (builder.icmp_signed if kind.signed else builder.icmp_unsigned)(sign, a, b)

    return emit


def _chosen(sign: str) -> Any:
    return lambda builder, kind, a, b: builder.select(_compared(sign)(builder, kind, a, b), a, b)


_elementwise(operator.add, _arithmetic("fadd", "add"))
_elementwise(operator.sub, _arithmetic("fsub", "sub"))
_elementwise(operator.mul, _arithmetic("fmul", "mul"))
_elementwise(operator.truediv, lambda builder, _kind, a, b: builder.fdiv(a, b))
_elementwise(operator.and_, lambda builder, _kind, a, b: builder.and_(a, b))
_elementwise(operator.or_, lambda builder, _kind, a, b: builder.or_(a, b))
_elementwise(operator.xor, lambda builder, _kind, a, b: builder.xor(a, b))
_elementwise(operator.lshift, lambda builder, _kind, a, b: builder.shl(a, b))
_elementwise(operator.rshift, lambda builder, kind, a, b: (builder.ashr if kind.signed else builder.lshr)(a, b))
_elementwise(operator.lt, _compared("<"), mask=True)
_elementwise(operator.gt, _compared(">"), mask=True)
_elementwise(operator.eq, _compared("=="), mask=True)
_elementwise(operator.le, _compared("<="), mask=True)
_elementwise(operator.ge, _compared(">="), mask=True)
_elementwise(maximum, _chosen(">"))
_elementwise(minimum, _chosen("<"))


@intrinsic
def _reinterpret(_typing: Any, vector: Any, dtype: Any) -> Any:
    element = dtype.dtype
    kind = Vector(element, vector.n * vector.element.bitwidth // element.bitwidth)

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(kind))

    return kind(vector, dtype), emit


def _conversion(source: Any, target: Any) -> str:
    """Return the name of LLVM's instruction that converts an element."""
    if _is_float(source) and _is_float(target):
        return "fpext" if target.bitwidth > source.bitwidth else "fptrunc"
    if _is_float(target):
        return "sitofp" if source.signed else "uitofp"
    if _is_float(source):
        return "fptosi"
    if target.bitwidth < source.bitwidth:
        return "trunc"
    return "sext" if source.signed else "zext"


@intrinsic
def _to(_typing: Any, vector: Any, dtype: Any) -> Any:
    kind = Vector(dtype.dtype, vector.n)

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        name = _conversion(vector.element, kind.element)
        return getattr(builder, name)(args[0], context.get_value_type(kind))

    return kind(vector, dtype), emit


@intrinsic
def _join(_typing: Any, low: Any, high: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        order = ir.Constant(ir.VectorType(ir.IntType(32), 2 * low.n), list(range(2 * low.n)))
        return builder.shuffle_vector(args[0], args[1], order)

    return Vector(low.element, 2 * low.n)(low, high), emit


@intrinsic
def _where(_typing: Any, mask: Any, chosen: Any, other: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.select(*args)

    return chosen(mask, chosen, other), emit


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


@intrinsic
def _square_root(_typing: Any, vector: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = args[0].type
        name = f"llvm.sqrt.v{vector.n}f{vector.element.bitwidth}"
        function = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, args)

    return vector(vector), emit


@intrinsic
def _ramp(_typing: Any) -> Any:
    kind = Vector(types.uint64, 8)

    def emit(context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return ir.Constant(context.get_value_type(kind), list(range(kind.n)))

    return kind(), emit


@intrinsic
def _repeat(_typing: Any, scalar: Any) -> Any:
    kind = Vector(scalar, LANES)

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _splat(context, builder, kind, args[0], scalar)

    return kind(scalar), emit


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


_shared_total = _sharing(_arithmetic("fadd", "add"))
_shared_largest = _sharing(_chosen(">"))
_total = _reduction(_arithmetic("fadd", "add"))
_largest = _reduction(_chosen(">"))


@intrinsic
def _plus_product(_typing: Any, addend: Any, a: Any, b: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        product = builder.fmul(args[1], args[2], flags=("contract",))
        return builder.fadd(args[0], product, flags=("contract",))

    return addend(addend, a, b), emit


@intrinsic
def _nearest(_typing: Any, vector: Any) -> Any:
    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = args[0].type
        if "+sse4.1" in context.codegen()._tm_features:  # noqa: SLF001 - Numba has no other way
            function = ir.FunctionType(kind, [kind])
            name = f"llvm.rint.v{kind.count}f32"
            return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)
        whole = ir.Constant(kind, [1.5 * 2**23] * kind.count)  # as `bits.ROUND`; a call for each lane is slower
        return builder.fsub(builder.fadd(args[0], whole), whole)

    return vector(vector), emit


@helper
def _magnitude(vector: Any) -> Any:
    return reinterpreted(reinterpreted(vector, np.int32) & np.int32(0x7FFFFFFF), np.float32)


overload(plus_product)(
    lambda addend, a, b: (lambda addend, a, b: _plus_product(addend, a, b)) if addend == a == b else None
)
overload(nearest)(lambda vector: (lambda vector: _nearest(vector)) if _is_vector(vector) else None)
overload(magnitude)(lambda vector: (lambda vector: _magnitude(vector)) if _is_vector(vector) else None)
overload(square_root)(lambda vector: (lambda vector: _square_root(vector)) if _is_vector(vector) else None)
overload(ramp)(lambda: lambda: _ramp())
overload(splat)(lambda scalar: lambda scalar: _repeat(scalar))
overload(lane)(lambda vector, k: (lambda vector, k: _lane(vector, k)) if _is_vector(vector) else None)
overload(reinterpreted)(
    lambda vector, dtype: (lambda vector, dtype: _reinterpret(vector, dtype)) if _is_vector(vector) else None
)
overload(to)(lambda vector, dtype: (lambda vector, dtype: _to(vector, dtype)) if _is_vector(vector) else None)
overload(join)(lambda low, high: (lambda low, high: _join(low, high)) if _is_vector(low) and low == high else None)
overload(where)(lambda mask, a, b: (lambda mask, a, b: _where(mask, a, b)) if _is_vector(mask) and a == b else None)
overload(packed)(lambda mask: (lambda mask: _packed(mask)) if _is_vector(mask) else None)
overload(unpacked)(lambda bits: lambda bits: _unpacked(bits))
overload(total)(lambda vector: (lambda vector: _total(vector)) if _is_vector(vector) else None)
overload(largest)(lambda vector: (lambda vector: _largest(vector)) if _is_vector(vector) else None)
overload(butterfly, prefer_literal=True)(
    lambda vector, n: (lambda vector, n: _butterfly(vector, n)) if _is_vector(vector) else None
)
overload(shared_total, prefer_literal=True)(
    lambda vector, n: (lambda vector, n: _shared_total(vector, n)) if _is_vector(vector) else None
)
overload(shared_largest, prefer_literal=True)(
    lambda vector, n: (lambda vector, n: _shared_largest(vector, n)) if _is_vector(vector) else None
)
