"""Numba's view of DuckDB: its functions by name, and arrays at addresses. Handles and addresses are int64."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba.np.arrayobj as numba_arrays
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from aq2_pipeline.kernels import _jit
from aq2_pipeline.udfs.duckdb_native.capi import library_path

# By name, so that compiled bodies can be cached: they hold no address of this process.
llvm.load_library_permanently(library_path())

_I, _V = types.int64, types.void


def _external(name: str, result: Any, *arguments: Any) -> Any:
    return types.ExternalFunction(f"duckdb_{name}", result(*arguments))


allocate = _external("malloc", _I, _I)
array_child = _external("array_vector_get_child", _I, _I)
assign_string = _external("vector_assign_string_element_len", _V, _I, _I, _I, _I)
bind_data = _external("scalar_function_get_bind_data", _I, _I)
chunk_size = _external("data_chunk_get_size", _I, _I)
chunk_vector = _external("data_chunk_get_vector", _I, _I, _I)
extra_info = _external("scalar_function_get_extra_info", _I, _I)
free = _external("free", _V, _I)
list_child = _external("list_vector_get_child", _I, _I)
list_size = _external("list_vector_get_size", _I, _I)
reserve_list = _external("list_vector_reserve", types.int32, _I, _I)
resize_list = _external("list_vector_set_size", types.int32, _I, _I)
struct_child = _external("struct_vector_get_child", _I, _I, _I)
vector_data = _external("vector_get_data", _I, _I)
vector_validity = _external("vector_get_validity", _I, _I)
writable_validity = _external("vector_ensure_validity_writable", _V, _I)


def _array_at(kind: Any) -> Any:
    """Return a function that makes an array of this type from an address and a number of elements."""

    @intrinsic
    def array_at(_typing: Any, _address: Any, _n: Any) -> Any:
        def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            array = context.make_array(kind)(context, builder)
            item = context.get_constant(_I, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
            data = builder.inttoptr(args[0], array.data.type)
            numba_arrays.populate_array(array, data, [args[1]], [item], item, meminfo=None, parent=None)
            return array._getvalue()  # noqa: SLF001 - as Numba's own code does

        return kind(_I, _I), emit

    return array_at


bytes_at = _array_at(_jit.bytes_in)
floats_at = _array_at(_jit.floats_in)
ints_at = _array_at(_jit.ints_in)
bytes_out_at = _array_at(_jit.bytes_out)
floats_out_at = _array_at(_jit.floats_out)
doubles_out_at = _array_at(_jit.doubles_out)
ints_out_at = _array_at(_jit.ints_out)
shorts_at = _array_at(types.Array(types.int32, 1, "C", readonly=True))


@intrinsic
def address_of(_typing: Any, array: Any) -> Any:
    """Return where an array's elements begin."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.ptrtoint(found.data, ir.IntType(64))

    return _I(array), emit


def _function_at(kind: Any) -> Any:
    """Return a function that makes a compiled kernel of this type from its address."""

    @intrinsic
    def function_at(_typing: Any, _address: Any) -> Any:
        def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            made = cgutils.create_struct_proxy(kind)(context, builder)
            address = builder.inttoptr(args[0], context.get_value_type(types.voidptr))
            made.c_addr, made.py_addr, made.jit_addr = address, address, address  # only the last is used
            return made._getvalue()  # noqa: SLF001

        return kind(_I), emit

    return function_at


encoder_at = _function_at(_jit.encode_function)
decoder_at = _function_at(_jit.decode_function)
error_at = _function_at(_jit.error_function)


@intrinsic
def call_c(_typing: Any, _address: Any, _first: Any, _second: Any, _third: Any) -> Any:
    """Call a C function of three int64 that returns one."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word] * 3).as_pointer()
        return builder.call(builder.inttoptr(args[0], kind), args[1:])

    return _I(_I, _I, _I, _I), emit


@intrinsic
def load_published(_typing: Any, _address: Any) -> Any:
    """Load an int64; what was stored before it was published is seen after."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return _I(_I), emit


@intrinsic
def publish(_typing: Any, _address: Any, _value: Any) -> Any:
    """Store an int64 after all that was stored before."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store_atomic(args[1], pointer, "release", 8)
        return args[1]

    return _I(_I, _I), emit


@intrinsic
def integer_at(_typing: Any, _address: Any, _n_bytes: Any) -> Any:
    """Load a little-endian integer of 1, 2, 4 or 8 bytes, sign-extended."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word, slot = ir.IntType(64), cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(64), 0))
        for size in (1, 2, 4, 8):
            kind = ir.IntType(8 * size)
            with builder.if_then(builder.icmp_signed("==", args[1], ir.Constant(word, size))):
                value = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)
                builder.store(builder.sext(value, word) if kind != word else value, slot)
        return builder.load(slot)

    return _I(_I, _I), emit
