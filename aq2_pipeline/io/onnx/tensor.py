"""One TensorProto of an ONNX model: its name, its dtype, its shape, and where its numbers are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.onnx.protobuf import BYTES, VARINT
from aq2_pipeline.io.onnx.varints import Packed
from aq2_pipeline.io.tables.parts import Tensor

if TYPE_CHECKING:
    from aq2_pipeline.io.onnx.protobuf import Field, Wire

__all__ = ["INTEGERS", "Aside", "checked_shape", "dims_of", "pair_of", "tensor_of"]

MAX_AXIS = 2**63 - 1
_MAX_ENTRIES = 64
_MAX_ENTRY_BYTES = 4096
_MAX_DIGITS = 20
_MAX_DIM_BYTES = 10

_DIMS, _DATA_TYPE, _SEGMENT, _STRINGS, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 3, 6, 8, 9, 13, 14
#: The field, its wire type and what it is called, of what is there once; packed fields are so written since ONNX 1.0.
_ONCE = {
    _DATA_TYPE: (VARINT, "data_type"),
    _SEGMENT: (BYTES, "segment"),
    4: (BYTES, "float_data"),
    5: (BYTES, "int32_data"),
    7: (BYTES, "int64_data"),
    _NAME: (BYTES, "name"),
    _RAW: (BYTES, "raw_data"),
    10: (BYTES, "double_data"),
    11: (BYTES, "uint64_data"),
    _LOCATION: (VARINT, "data_location"),
}
_DATA = {4, 5, 7, 10, 11, _RAW}
#: The fields of varints, which are as long as their numbers ask for.
_PACKED = (5, 7, 11)
_MANY = (_DIMS, _STRINGS, _EXTERNAL)


class Kind(NamedTuple):
    """A data_type of ONNX.

    Attributes
    ----------
    dtype : str
        As safetensors spells it, or else ONNX.
    bits : int
        Of an element.
    field : int
        Which field has the elements where `raw_data` has not.
    """

    dtype: str
    bits: int
    field: int


_KINDS = {
    1: Kind("F32", 32, 4),
    2: Kind("U8", 8, 5),
    3: Kind("I8", 8, 5),
    4: Kind("U16", 16, 5),
    5: Kind("I16", 16, 5),
    6: Kind("I32", 32, 5),
    7: Kind("I64", 64, 7),
    8: Kind("STRING", 0, _STRINGS),
    9: Kind("BOOL", 8, 5),
    10: Kind("F16", 16, 5),
    11: Kind("F64", 64, 10),
    12: Kind("U32", 32, 11),
    13: Kind("U64", 64, 11),
    14: Kind("C64", 64, 4),
    15: Kind("COMPLEX128", 128, 10),
    16: Kind("BF16", 16, 5),
    17: Kind("F8_E4M3", 8, 5),
    18: Kind("F8_E4M3FNUZ", 8, 5),
    19: Kind("F8_E5M2", 8, 5),
    20: Kind("F8_E5M2FNUZ", 8, 5),
    21: Kind("UINT4", 4, 5),
    22: Kind("INT4", 4, 5),
    23: Kind("F4", 4, 5),
    24: Kind("F8_E8M0", 8, 5),
    25: Kind("UINT2", 2, 5),
    26: Kind("INT2", 2, 5),
    # Six bits are packed in raw_data alone: in int32_data an element has a number of its own.
    27: Kind("F6_E2M3", 6, _RAW),
    28: Kind("F6_E3M2", 6, _RAW),
}
#: The least and the largest number of a dtype's varint; other dtypes have bit patterns, of eight bits at the least.
INTEGERS = {"BOOL": (0, 1)} | {f"I{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)}


class Aside(NamedTuple):
    """What few tensors have, by name.

    Attributes
    ----------
    packed : dict of str to Packed
        Where the varints are that its numbers are written as; the tensor's own bytes are counted from 0.
    locations : dict of str to str
        The file of its external data as the model spells it; the tensor's bytes are counted in that file.
    """

    packed: dict[str, Packed]
    locations: dict[str, str]


class _Fields:
    """What a TensorProto has, of what matters: the places of fields that are there once, and the others."""

    def __init__(self, wire: Wire, begin: int, end: int) -> None:
        self.once: dict[int, tuple[int, int]] = {}
        self.dims: list[int] = []
        self.external: list[tuple[int, int]] = []
        self.n_strings = 0
        for number, kind, a, b in wire.fields(begin, end):
            if number in _ONCE:
                if kind != _ONCE[number][0] or number in self.once:
                    reason = f"{_ONCE[number][1]} of an initializer is there twice, or of the wire type {kind}"
                    raise wire.error(begin, reason)
                self.once[number] = a, b
            elif number in _MANY:
                self._add(wire, (number, kind, a, b), begin)

    def _add(self, wire: Wire, field: Field, begin: int) -> None:
        number, kind, a, b = field
        if number == _DIMS and len(self.dims) <= limits().rank:
            self.dims += dims_of(wire, field)
        elif kind != BYTES and number != _DIMS:
            raise wire.error(begin, f"the field {number} of an initializer is of the wire type {kind}")
        elif number == _STRINGS:
            self.n_strings += 1
        elif number == _EXTERNAL:
            self.external.append((a, b))
            if len(self.external) > _MAX_ENTRIES:
                raise wire.error(begin, f"an initializer has more than {_MAX_ENTRIES} entries of external_data")


def tensor_of(wire: Wire, begin: int, end: int, aside: Aside) -> Tensor:
    """Return the tensor of a message; without bytes where they are strings.

    Raises
    ------
    FormatError
        Naming the place, and the tensor where its name is known.
    """
    fields = _Fields(wire, begin, end)
    once = fields.once
    name = wire.text(*once.get(_NAME, (0, 0)), limits().name_bytes, "a tensor's name", to_change("name_bytes"))
    try:
        shape = checked_shape(wire, fields.dims, begin)
        number, location = once.get(_DATA_TYPE, (0, 0))[0], once.get(_LOCATION, (0, 0))[0]
        if number not in _KINDS:
            raise wire.error(begin, f"the data_type {number} is unknown")
        if location > 1 or _SEGMENT in once:
            raise wire.error(begin, f"segments, and the data_location {location}, are not read")
        tensor = Tensor(name, _KINDS[number].dtype, shape, begin, end)
        return (_external if location else _inline)(wire, fields, tensor, aside, _KINDS[number])
    except FormatError as error:
        raise error.at(layer=name) from None


def dims_of(wire: Wire, field: Field) -> list[int]:
    """Return the axes that one field of a shape has: one, or packed ones."""
    _, kind, a, b = field
    if kind not in (VARINT, BYTES):
        raise wire.error(a, f"a shape is of the wire type {kind}")
    return [a] if kind == VARINT else wire.varints(a, b, _MAX_DIM_BYTES * limits().rank, "a shape")


def checked_shape(wire: Wire, dims: list[int], at: int) -> tuple[int, ...]:
    """Return a shape of numbers as they were written: negative ones are the largest."""
    if max(dims, default=0) > MAX_AXIS:
        raise wire.error(at, "the shape is not one of axes in 0..2^63-1")
    most = limits().rank
    if len(dims) > most:
        raise wire.error(at, f"the shape has more than {most} axes", to_change("rank"))
    return tuple(dims)


def pair_of(wire: Wire, begin: int, end: int, limit: int) -> tuple[str, str]:
    """Return the key and the value of a StringStringEntryProto of at most so many bytes each."""
    found = {1: "", 2: ""}
    for number, kind, a, b in wire.fields(begin, end):
        if number in found:
            if kind != BYTES or found[number]:
                raise wire.error(begin, "an entry has a key or a value twice, or none that is text")
            found[number] = wire.text(a, b, limit, "an entry")
    return found[1], found[2]


def _inline(wire: Wire, fields: _Fields, tensor: Tensor, aside: Aside, kind: Kind) -> Tensor:
    """Return where a tensor's numbers are in the model itself."""
    name, dtype, shape, at, *_ = tensor
    size = math.prod(shape)
    data = [number for number in fields.once if number in _DATA and fields.once[number][1] > fields.once[number][0]]
    if fields.n_strings:
        data.append(_STRINGS)
    if len(data) > 1:
        raise wire.error(at, "the tensor has data in two fields")
    number = data[0] if data else kind.field
    if number != kind.field and (number != _RAW or kind.field == _STRINGS):
        raise wire.error(at, f"{dtype} is not read from {_name_of(number)}")
    if kind.field == _STRINGS:
        if fields.n_strings != size:
            raise wire.error(at, f"the shape {list(shape)} does not take the {fields.n_strings} strings it has")
        return Tensor(name, dtype, shape, 0, 0)
    n_bytes = (size * kind.bits + 7) // 8
    begin, end = fields.once[number] if data else (0, 0)
    if number in _PACKED and n_bytes:
        count = n_bytes * 8 // max(kind.bits, 8)
        if not count <= end - begin <= 10 * count:
            raise _wrong_size(wire, tensor, at, end - begin)
        aside.packed[name] = Packed(begin, end, count)
        return Tensor(name, dtype, shape, 0, n_bytes)
    if end - begin != n_bytes:
        raise _wrong_size(wire, tensor, at, end - begin)
    return Tensor(name, dtype, shape, begin, end)


def _name_of(number: int) -> str:
    return "string_data" if number == _STRINGS else _ONCE[number][1]


def _wrong_size(wire: Wire, tensor: Tensor, at: int, n_bytes: int) -> FormatError:
    reason = f"the shape {list(tensor.shape)} of {tensor.dtype} does not take the {n_bytes} bytes it has"
    return wire.error(at, reason)


def _external(wire: Wire, fields: _Fields, tensor: Tensor, aside: Aside, kind: Kind) -> Tensor:
    """Return where a tensor's numbers are in another file."""
    at = tensor.begin
    if fields.n_strings or any(
        fields.once[number][1] > fields.once[number][0] for number in _DATA & fields.once.keys()
    ):
        raise wire.error(at, "the tensor has data here, and says that it is elsewhere")
    if kind.field == _STRINGS:
        raise wire.error(at, "strings are not read from other files")
    found = dict.fromkeys(("location", "offset", "length"), "")
    for begin, end in fields.external:
        key, value = pair_of(wire, begin, end, _MAX_ENTRY_BYTES)
        if found.get(key):
            raise wire.error(begin, f"external_data has the key {key[:64]!r} twice")
        found[key] = value
    for key in ("offset", "length"):
        told = found[key]
        if told and not (told.isascii() and told.isdigit() and len(told) <= _MAX_DIGITS):
            raise wire.error(at, f"the {key} {told[:64]!r} of external data is no number")
    if not found["location"]:
        raise wire.error(at, "external_data has no location")
    n_bytes = (math.prod(tensor.shape) * kind.bits + 7) // 8
    if found["length"] and int(found["length"]) != n_bytes:
        raise _wrong_size(wire, tensor, at, int(found["length"]))
    aside.locations[tensor.name] = found["location"]
    begin = int(found["offset"] or 0)
    return Tensor(tensor.name, tensor.dtype, tensor.shape, begin, begin + n_bytes)
