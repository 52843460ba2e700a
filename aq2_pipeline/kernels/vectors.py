"""What Numba makes of functions of lanes: a vector is a value, and arithmetic an instruction. See `kernels.lanes`."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, overload, register_model

from aq2_pipeline.kernels._jit import helper
from aq2_pipeline.kernels.lane_arrays import (
    LANES,
    magnitude,
    maximum,
    minimum,
    nearest,
    plus_product,
    ramp,
    reinterpreted,
    splat,
    square_root,
    to,
    where,
)

#: Untyped, as Numba's decorators are: what a typing function declares is called with one argument less.
intrinsic: Any = extending.intrinsic


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


def is_vector(kind: Any) -> bool:
    """Whether a type of Numba's is a vector."""
    return isinstance(kind, Vector)


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


def arithmetic(of_floats: str, of_integers: str) -> Any:
    """Return what emits one instruction for floats and another for integers."""
    return lambda builder, kind, a, b: getattr(builder, of_floats if _is_float(kind) else of_integers)(a, b)


def _compared(sign: str) -> Any:
    def emit(builder: Any, kind: Any, a: Any, b: Any) -> Any:
        if _is_float(kind):
            return builder.fcmp_ordered(sign, a, b)
        return (builder.icmp_signed if kind.signed else builder.icmp_unsigned)(sign, a, b)

    return emit


def chosen(sign: str) -> Any:
    """Return what emits the one of two elements that stands so to the other."""
    return lambda builder, kind, a, b: builder.select(_compared(sign)(builder, kind, a, b), a, b)


_elementwise(operator.add, arithmetic("fadd", "add"))
_elementwise(operator.sub, arithmetic("fsub", "sub"))
_elementwise(operator.mul, arithmetic("fmul", "mul"))
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
_elementwise(maximum, chosen(">"))
_elementwise(minimum, chosen("<"))


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
def _where(_typing: Any, mask: Any, chosen: Any, other: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.select(*args)

    return chosen(mask, chosen, other), emit


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
overload(nearest)(lambda vector: (lambda vector: _nearest(vector)) if is_vector(vector) else None)
overload(magnitude)(lambda vector: (lambda vector: _magnitude(vector)) if is_vector(vector) else None)
overload(square_root)(lambda vector: (lambda vector: _square_root(vector)) if is_vector(vector) else None)
overload(ramp)(lambda: lambda: _ramp())
overload(splat)(lambda scalar: lambda scalar: _repeat(scalar))
overload(reinterpreted)(
    lambda vector, dtype: (lambda vector, dtype: _reinterpret(vector, dtype)) if is_vector(vector) else None
)
overload(to)(lambda vector, dtype: (lambda vector, dtype: _to(vector, dtype)) if is_vector(vector) else None)
overload(where)(lambda mask, a, b: (lambda mask, a, b: _where(mask, a, b)) if is_vector(mask) and a == b else None)
