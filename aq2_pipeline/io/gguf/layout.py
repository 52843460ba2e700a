"""The header of a GGUF file to be written, and where each tensor's data goes: the inverse of `header`."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aq2_pipeline.errors import FormatError, InputValueError, SchemeError
from aq2_pipeline.io.gguf.header import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_KEY_BYTES,
    MAX_RANK,
    VERSIONS,
    is_alignment,
)
from aq2_pipeline.io.gguf.types import GGML_NAMES, GGML_TYPES, VALUE_NAMES
from aq2_pipeline.io.gguf.values import KeyValue, Metadata, key_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aq2_pipeline.errors import Aq2Error

__all__ = ["LONGEST_NAME", "Layout", "header_of"]

#: ggml's GGML_MAX_NAME is 64 with the NUL at the end.
LONGEST_NAME = 63
MAX_AXIS = 2**63 - 1
_COUNTS = struct.Struct("<4sIQQ")


class Layout(NamedTuple):
    """What a file begins with, and where the rest goes.

    Attributes
    ----------
    header : bytes
        With the padding, so that the first tensor's data follows.
    offsets : tuple of int
        Where each tensor's data begins in the file, in the order given; between the data of one and the next are zeros.
    size : int
        The bytes of the whole file: zeros follow the last tensor, too, without which ggml does not load it.
    """

    header: bytes
    offsets: tuple[int, ...]
    size: int


def header_of(
    tensors: Iterable[tuple[str, Sequence[int], str, int]],
    metadata: Iterable[KeyValue] | Mapping[str, Any] = (),
    alignment: int | None = None,
    version: int = 3,
) -> Layout:
    """Return the header of a GGUF file of tensors in an order, and where their data goes.

    Parameters
    ----------
    tensors : iterable of (str, sequence of int, str, int)
        Name, shape with the slowest axis first, dtype (``Q4_K``, ``F32``, ...) and bytes of data. A scalar, of the
        shape (), is written with one axis of 1.
    metadata : iterable of KeyValue, or mapping of str to value
        Those of a file that was read are written as they were; values of a mapping have the types that `key_value`
        takes for them.
    alignment : int, optional
        Of the data, in bytes; one that the metadata does not say is added to them, and one that they say otherwise is
        changed in them. Default: what they say, or 32.
    version : {2, 3}

    Raises
    ------
    SchemeError
        Naming the tensor whose dtype GGUF does not have, or whose rows are no whole blocks.
    FormatError
        Naming the tensor or key that ggml's C code would not load.
    InputTypeError, InputValueError
        For values that GGUF does not have.

    Notes
    -----
    The same arguments give the same bytes, and a header that was read and is
    written again with its tensors in order gives its own, if there were no holes.

    Examples
    --------
    >>> layout = header_of([("w", (2, 32), "Q4_0", 36), ("b", (2,), "F32", 8)], {"general.architecture": "none"})
    >>> layout.header[:4], len(layout.header), layout.offsets, layout.size
    (b'GGUF', 160, (160, 224), 256)
    """
    entries = _entries(metadata, alignment)
    if version not in VERSIONS:
        msg = f"GGUF version {version} is not written"
        raise InputValueError(msg, "one of 2 and 3")
    given = {entry.key: entry for entry in entries}.get(ALIGNMENT_KEY)
    step = DEFAULT_ALIGNMENT if given is None else int(given.value)
    infos, offsets, at, seen = [], [], 0, set()
    for name, shape, dtype, n_bytes in tensors:
        if name in seen:
            raise _bad(name, "two tensors have this name")
        seen.add(name)
        infos.append(_info(name, tuple(shape), dtype, n_bytes, at))
        offsets.append(at)
        at += -(-n_bytes // step) * step
    parts = [_COUNTS.pack(MAGIC, version, len(infos), len(entries))]
    parts += [_string(entry.key.encode()) + struct.pack("<I", entry.kind) + entry.raw for entry in entries]
    header = b"".join(parts + infos)
    header += bytes(-len(header) % step)
    return Layout(header, tuple(len(header) + offset for offset in offsets), len(header) + at)


def _entries(metadata: Iterable[KeyValue] | Mapping[str, Any], alignment: int | None) -> list[KeyValue]:
    """Return the key-values to write, their keys checked, with the alignment if it is another than ggml's own."""
    if isinstance(metadata, Metadata):
        entries = list(metadata.entries)
    elif isinstance(metadata, Mapping):
        entries = [key_value(key, value) for key, value in metadata.items()]
    else:
        entries = list(metadata)
    places: dict[str, int] = {}
    for k, (key, _, _) in enumerate(entries):
        if places.setdefault(key, k) != k:
            msg = f"the key {key[:64]!r} is there twice, as key-values {places[key]} and {k}"
            raise FormatError(msg)
        if not 1 <= len(_encoded(key, None)) <= MAX_KEY_BYTES:
            msg = f"the key {key[:64]!r} does not have 1 to {MAX_KEY_BYTES} bytes"
            raise FormatError(msg)
    at = places.get(ALIGNMENT_KEY)
    if alignment is not None and not is_alignment(alignment):
        raise _bad_alignment(alignment)
    if at is None and alignment not in (None, DEFAULT_ALIGNMENT):
        entries.append(key_value(ALIGNMENT_KEY, alignment, "u32"))
    elif at is not None and alignment is not None:
        entries[at] = key_value(ALIGNMENT_KEY, alignment, "u32")
    elif at is not None and (entries[at].kind != VALUE_NAMES["u32"] or not is_alignment(entries[at].value)):
        raise _bad_alignment(entries[at].value)
    return entries


def _bad_alignment(alignment: Any) -> FormatError:
    return FormatError(f"{ALIGNMENT_KEY} is {alignment!r}", "a power of two up to 2^20, of the type u32")


def _bad(name: str, reason: str, hint: str | None = None) -> Aq2Error:
    return FormatError(reason, hint).at(layer=name)


def _encoded(text: str, layer: str | None) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        error = FormatError(f"the name {text[:64]!r} is not Unicode")
        raise error.at(layer=layer) if layer is not None else error from None


def _string(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw


def _info(name: str, shape: tuple[int, ...], dtype: str, n_bytes: int, offset: int) -> bytes:
    """Return what the header says of a tensor, whose data begins so many bytes after the first one's."""
    raw = _encoded(name, name)
    if len(raw) > LONGEST_NAME or b"\0" in raw:
        fault = "holds a NUL" if b"\0" in raw else f"has {len(raw)} bytes"
        raise _bad(name, f"the name {fault}; ggml reads at most {LONGEST_NAME}, without NUL", "rename the tensor")
    if len(shape) > MAX_RANK:
        raise _bad(name, f"the shape {list(shape)} has {len(shape)} axes; GGUF has at most {MAX_RANK}")
    if any(not 1 <= axis <= MAX_AXIS for axis in shape) or math.prod(shape) > MAX_AXIS:
        raise _bad(name, f"the shape {list(shape)} is empty or beyond 2^63-1", "GGUF holds no such tensor")
    if dtype not in GGML_NAMES:
        error = SchemeError(f"GGUF has no type {dtype}", f"one of {', '.join(GGML_NAMES)}")
        raise error.at(layer=name)
    kind = GGML_TYPES[GGML_NAMES[dtype]]
    axes = shape[::-1] or (1,)
    if axes[0] % kind.block:
        error = SchemeError(f"{dtype} takes rows of a multiple of {kind.block} weights, these have {axes[0]}")
        raise error.at(layer=name)
    wanted = math.prod(axes) // kind.block * kind.n_bytes
    if n_bytes != wanted:
        raise _bad(name, f"the shape {list(shape)} of {dtype} takes {wanted} bytes, not {n_bytes}")
    numbers = (len(axes), *axes, GGML_NAMES[dtype], offset)
    return _string(raw) + struct.pack(f"<I{len(axes)}QIQ", *numbers)
