"""The key-values of GGUF: kept as the bytes of the file with their type, and read when they are asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aq2_pipeline.errors import InputTypeError, InputValueError
from aq2_pipeline.io.gguf.types import ARRAY, BOOL, STRING, VALUE_NAMES, VALUE_TYPES

__all__ = ["KeyValue", "Metadata", "key_value"]

_ARRAY_HEAD = struct.Struct("<IQ")
_LENGTH = struct.Struct("<Q")


class KeyValue(NamedTuple):
    """One entry of the metadata, as a file has it.

    Attributes
    ----------
    key : str
    kind : int
        The number of its type in `types.VALUE_TYPES`.
    raw : bytes
        The value, as it follows its type in the file; checked, where it was read from a file.

    Examples
    --------
    >>> KeyValue("general.file_type", 4, bytes([15, 0, 0, 0])).value
    15
    """

    key: str
    kind: int
    raw: bytes

    @property
    def value(self) -> Any:
        """The value: int, float, bool, str, or a list of them; bytes for a string that is not UTF-8."""
        if self.kind == STRING:
            return _text(self.raw[8:])
        if self.kind != ARRAY:
            return _numbers(self.raw, self.kind)[0]
        element, n = _ARRAY_HEAD.unpack_from(self.raw)
        body = self.raw[_ARRAY_HEAD.size :]
        return _strings(body, n) if element == STRING else _numbers(body, element)


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:  # tokens of some vocabularies are bytes
        return raw


def _strings(raw: bytes, n: int) -> list[str | bytes]:
    found, at = [], 0
    for _ in range(n):
        begin = at + 8
        at = begin + int.from_bytes(raw[at:begin], "little")
        found.append(_text(raw[begin:at]))
    return found


def _numbers(raw: bytes, kind: int) -> list[Any]:
    found = np.frombuffer(raw, VALUE_TYPES[kind].dtype)
    listed: list[Any] = (found != 0 if kind == BOOL else found).tolist()
    return listed


class Metadata(Mapping[str, Any]):
    """Key-values as a mapping of values; each is read when it is asked for, because vocabularies are long.

    Parameters
    ----------
    entries : sequence of KeyValue
        In the order of the file; their keys are unique.

    Examples
    --------
    >>> metadata = Metadata([key_value("general.architecture", "gemma3"), key_value("general.file_type", 15)])
    >>> metadata["general.file_type"], list(metadata)
    (15, ['general.architecture', 'general.file_type'])
    """

    def __init__(self, entries: Sequence[KeyValue]) -> None:
        self._entries = {entry.key: entry for entry in entries}

    @property
    def entries(self) -> tuple[KeyValue, ...]:
        """The key-values with their types, as `layout.header_of` takes them."""
        return tuple(self._entries.values())

    def __getitem__(self, key: str) -> Any:
        return self._entries[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{len(self)} key-values of GGUF>"


def key_value(key: str, value: Any, kind: str | None = None) -> KeyValue:
    r"""Return an entry of the metadata to be written.

    Parameters
    ----------
    key : str
    value : bool, int, float, str, bytes, or a sequence of one of them
    kind : str, optional
        ``u8``, ``i8``, ``u16``, ``i16``, ``u32``, ``i32``, ``u64``, ``i64``, ``f32``, ``f64``, ``bool`` or ``string``:
        of the value, or of a sequence's elements. Default: ``f32`` for floats; the first of ``u32``, ``i32``,
        ``u64`` and ``i64`` that holds an integer, and of ``i32``, ``i64`` and ``u64`` that holds a sequence of them, as
        llama.cpp wants them.

    Raises
    ------
    InputTypeError
        If GGUF has no such values, or there is no type to take for an empty sequence.
    InputValueError
        If the type does not hold the value.

    Examples
    --------
    >>> key_value("general.quantization_version", 2)
    KeyValue(key='general.quantization_version', kind=4, raw=b'\x02\x00\x00\x00')
    >>> key_value("tokenizer.ggml.scores", [0.5, 1.0]).value
    [0.5, 1.0]
    """
    listed = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    values = list(value) if listed else [value]
    number = _kind_of(key, values, kind, listed=listed)
    if number == STRING:
        body = b"".join(map(_spelled, values))
    else:
        try:
            body = struct.pack(f"<{len(values)}{_struct_code(number)}", *values)
        except (struct.error, OverflowError, ValueError) as error:
            msg = f"the key {key!r}: {VALUE_TYPES[number].name} does not hold the value: {error}"
            raise InputValueError(msg) from None
    return KeyValue(key, ARRAY, _ARRAY_HEAD.pack(number, len(values)) + body) if listed else KeyValue(key, number, body)


def _spelled(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return _LENGTH.pack(len(raw)) + raw


def _struct_code(number: int) -> str:
    return "?" if number == BOOL else np.dtype(VALUE_TYPES[number].dtype).char.replace("l", "q").replace("L", "Q")


def _kind_of(key: str, values: list[Any], kind: str | None, *, listed: bool) -> int:
    """Return the number of the type to write, which all values fit in kind."""
    of = _common(values)
    takes = {"bool": (bool,), "string": (str,), "f32": (int, float), "f64": (int, float)}
    names = [name for name in VALUE_NAMES if name != "array"]
    if kind is not None and kind not in names:
        msg = f"the key {key!r}: {kind!r} is no type of values"
        raise InputTypeError(msg, f"one of {', '.join(names)}")
    if of is None and (values or kind is None):
        what = f"a {type(values[0]).__name__}" if values else "an empty sequence without a kind="
        msg = f"the key {key!r}: GGUF holds no value such as {what}"
        raise InputTypeError(msg, "give a bool, int, float or string, or a sequence of one of them")
    if kind is None:
        kind = _default(of, values, listed=listed)
    elif of is not None and of not in takes.get(kind, (int,)):
        msg = f"the key {key!r}: {kind} does not hold a {of.__name__}"
        raise InputTypeError(msg)
    return VALUE_NAMES[kind]


def _common(values: list[Any]) -> type | None:
    """Return what all values are: bool, int, float or str, which stands for bytes too; None where they are not."""
    kinds = {bool: (bool, np.bool_), int: (int, np.integer), float: (float, np.floating), str: (str, bytes)}
    found = {next((kind for kind, ours in kinds.items() if isinstance(value, ours)), None) for value in values}
    if found == {int, float}:
        return float
    return found.pop() if len(found) == 1 else None


def _default(of: type | None, values: list[Any], *, listed: bool) -> str:
    if of is not int:
        return "bool" if of is bool else "f32" if of is float else "string"
    for name in ("i32", "i64", "u64") if listed else ("u32", "i32", "u64", "i64"):
        limits = np.iinfo(VALUE_TYPES[VALUE_NAMES[name]].dtype)
        if limits.min <= min(values) and max(values) <= limits.max:
            return name
    return "u64" if min(values) >= 0 else "i64"
