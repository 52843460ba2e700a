"""The JSON of a safetensors header, an entry at a time, so that a million tensors are never there twice."""

from __future__ import annotations

import functools
import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import bad_file
from aq2_pipeline.io.tables.dtypes import DTYPE_BITS
from aq2_pipeline.io.tables.parts import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["parse_entries", "strict_json"]

MAX_AXIS = 2**63 - 1

_METADATA = "__metadata__"
#: The shapes that `_plain_entries` remembers.
_MOST_KEPT = 1 << 12
#: Characters of a tensor's JSON: 64 axes and two offsets of 20 digits, a dtype, three keys, and much white space.
_MOST_ENTRY = 1 << 14
#: An error so near the end of what is parsed is of something that is cut there.
_MOST_TOKEN = 64
_COUNT = "(?:0|[1-9][0-9]{0,18})"
_SPACE = re.compile(r"[ \t\n\r]*").match


@functools.cache
def _plain_entry(rank: int, name_bytes: int) -> Callable[[str, int], re.Match[str] | None]:
    """Return what matches an entry as the format's own library or `json.dumps` writes it, with another behind it."""
    return re.compile(
        rf'"([^"\\\x00-\x1f]{{0,{name_bytes // 4}}})": ?'
        rf'\{{"dtype": ?"([A-Z0-9_]+)", ?"shape": ?\[((?:{_COUNT}(?:, ?{_COUNT}){{0,{rank - 1}}})?)\], ?'
        rf'"data_offsets": ?\[({_COUNT}), ?({_COUNT})\]\}}, ?(?=")'
    ).match


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        _twice(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return found


def _twice(name: str) -> NoReturn:
    msg = f"the key {name[:64]!r} is there twice"
    raise ValueError(msg)


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON number"
    raise ValueError(msg)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def strict_json(text: str, path: Path, what: str) -> Any:
    """Return what JSON says; duplicate keys, constants such as NaN and deep nesting are FormatErrors."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise bad_file(path, f"{what} is nested too deep") from None
    except ValueError as error:
        raise bad_file(path, f"{what} is not JSON: {error}") from None


def parse_entries(text: str, path: Path, data_at: int, size: int) -> tuple[list[Tensor], dict[str, str]]:
    """Return the tensors of a header in its order, each checked against the file's size, and the metadata.

    Parameters
    ----------
    text : str
        It begins with ``{``.
    path : Path
        What messages call the file.
    data_at, size : int
        Where its data begins, and where it ends.

    Raises
    ------
    FormatError
        If the header is not strict JSON of the format.
    """
    try:
        return _parsed(text, path, data_at, size)
    except FormatError:
        raise
    except RecursionError:
        raise bad_file(path, "the header is nested too deep") from None
    except ValueError as error:
        raise bad_file(path, f"the header is not JSON: {error}") from None


def _parsed(text: str, path: Path, data_at: int, size: int) -> tuple[list[Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] | None = None
    most = limits().tensors
    at = _space(text, 1)
    more = text[at : at + 1] != "}"
    while more:
        at = _plain_entries(text, at, data_at, size, tensors)
        name, at = _key(text, at)
        if name in tensors or (name == _METADATA and metadata is not None):
            _twice(name)
        if name == _METADATA:
            metadata, at = _metadata(text, at, path)
        else:
            checked_name(path, name)
            entry, at = _entry(text, at, path, name)
            tensors[name] = checked_tensor(path, name, entry, data_at, size)
        if len(tensors) > most:
            raise bad_file(path, f"the header names more than {most} tensors", to_change("tensors"))
        at = _space(text, at)
        more = text[at : at + 1] == ","
        if more:
            at = _space(text, at + 1)
    at = _space(text, _expect("}", text, at))
    if at != len(text):
        msg = f"more follows its end at character {at}"
        raise ValueError(msg)
    return list(tensors.values()), metadata or {}


def _plain_entries(text: str, at: int, data_at: int, size: int, tensors: dict[str, Tensor]) -> int:
    """Add tensors up to the first entry that is spelled unusually or wrong, or the last; return where it begins.

    Twice as fast as `json` and one check after another, which is how all others are read.
    """
    kept: dict[tuple[str, str], tuple[tuple[int, ...], int]] = {}
    room, new, before, behind = size - data_at, tuple.__new__, 0, data_at
    taken = limits()
    plain, most = _plain_entry(taken.rank, taken.name_bytes), taken.tensors
    while match := plain(text, at):
        name, dtype, axes, first, last = match.groups()
        begin, end = int(first), int(last)
        shape, n_bits = kept.get((dtype, axes)) or _kept_shape(kept, dtype, axes)
        wrong = n_bits != 8 * (end - begin) or end > room
        if wrong or name in tensors or name == _METADATA or len(tensors) >= most:
            break
        if begin != before:  # else its first byte is the number that is kept as the last one's end
            behind = data_at + begin
        tensors[name] = new(Tensor, (name, dtype, shape, behind, behind := data_at + end, 0, 1))
        before, at = end, match.end()
    return at


def _kept_shape(
    kept: dict[tuple[str, str], tuple[tuple[int, ...], int]], dtype: str, axes: str
) -> tuple[tuple[int, ...], int]:
    """Return a shape and the bits that it takes, or -1 where it is not right."""
    shape = tuple(map(int, axes.split(","))) if axes else ()
    right = dtype in DTYPE_BITS and _fits(shape)
    if len(kept) >= _MOST_KEPT:
        kept.clear()
    kept[dtype, axes] = found = shape, math.prod(shape) * DTYPE_BITS[dtype] if right else -1
    return found


def _space(text: str, at: int) -> int:
    """Return where JSON's white space ends."""
    return _SPACE(text, at).end()  # type: ignore[union-attr]  # it matches anything


def _expect(mark: str, text: str, at: int) -> int:
    """Return where the text goes on after a mark."""
    if text[at : at + 1] != mark:
        msg = f"expected {mark!r} at character {at}"
        raise ValueError(msg)
    return at + 1


def _key(text: str, at: int) -> tuple[str, int]:
    """Return a key, and where its value begins."""
    _expect('"', text, at)
    name, at = _DECODER.raw_decode(text, at)
    return name, _space(text, _expect(":", text, _space(text, at)))


def _entry(text: str, at: int, path: Path, name: str) -> tuple[Any, int]:
    """Return the JSON of a tensor, and where the text goes on.

    Only so much is parsed as a tensor can take: 100 MB of empty lists would be 2.5 GB of them.
    """
    try:
        entry, n = _DECODER.raw_decode(text[at : at + _MOST_ENTRY])
    except json.JSONDecodeError as error:
        is_cut = error.pos >= _MOST_ENTRY - _MOST_TOKEN or error.msg.startswith("Unterminated")
        if is_cut and at + _MOST_ENTRY < len(text):
            raise bad_file(path, f"the entry has more than {_MOST_ENTRY} characters", layer=name) from None
        raise json.JSONDecodeError(error.msg, text, at + error.pos) from None
    return entry, at + n


def _fits(shape: tuple[int, ...] | list[int]) -> bool:
    """Whether no product of axes wraps in 64 bits, in whatever order; zero does not hide one."""
    return math.prod(axis or 1 for axis in shape) <= MAX_AXIS


def _metadata(text: str, at: int, path: Path) -> tuple[dict[str, str], int]:
    """Return the metadata, a string at a time, and where the text goes on."""
    found: dict[str, str] = {}
    most = limits().key_values
    more = text[at : at + 1] == "{"
    if not more:
        raise bad_file(path, "__metadata__ is not an object of strings")
    at = _space(text, at + 1)
    more = text[at : at + 1] != "}"
    while more:
        key, at = _key(text, at)
        if text[at : at + 1] != '"':
            raise bad_file(path, "__metadata__ is not an object of strings")
        value, at = _DECODER.raw_decode(text, at)
        if key in found:
            _twice(key)
        found[key] = value
        if len(found) > most:
            raise bad_file(path, f"__metadata__ has more than {most} entries", to_change("key_values"))
        at = _space(text, at)
        more = text[at : at + 1] == ","
        if more:
            at = _space(text, at + 1)
    return found, _expect("}", text, at)


def _are_counts(values: Any, largest: int) -> bool:
    """Whether it is a list of integers in 0..largest."""
    return type(values) is list and all(type(value) is int and 0 <= value <= largest for value in values)


def checked_name(path: Path, name: str) -> None:
    """Raise a FormatError for a name that is too long or not Unicode."""
    try:
        n_name = len(name.encode())
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        raise bad_file(path, f"the tensor's name {name[:64]!r} is not Unicode") from None
    most = limits().name_bytes
    if n_name > most:
        reason = f"a tensor's name has {n_name} bytes; at most {most} are read"
        raise bad_file(path, reason, to_change("name_bytes"), name)


def checked_tensor(path: Path, name: str, entry: Any, data_at: int, size: int) -> Tensor:
    """Return the tensor of an entry, or say what is wrong with it."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad_file(path, "the entry does not have exactly dtype, shape and data_offsets", layer=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise bad_file(path, f"the dtype {str(dtype)[:64]!r} is unknown", f"one of {', '.join(DTYPE_BITS)}", name)
    if not _are_counts(shape, MAX_AXIS):
        raise bad_file(path, "the shape is not a list of axes in 0..2^63-1", layer=name)
    most = limits().rank
    if len(shape) > most:
        raise bad_file(path, f"the shape has {len(shape)} axes; at most {most} are read", to_change("rank"), name)
    if not _fits(shape):
        raise bad_file(path, f"the shape {shape} has more than 2^63-1 elements", layer=name)
    if not _are_counts(offsets, size - data_at) or len(offsets) != 2:  # noqa: PLR2004 - begin and end
        told = str(offsets)[:64]
        raise bad_file(path, f"the data_offsets {told} are not within the {size - data_at} bytes of data", layer=name)
    begin, end = offsets
    if math.prod(shape) * DTYPE_BITS[dtype] != 8 * (end - begin):
        raise bad_file(path, f"the shape {shape} of {dtype} does not take the {end - begin} bytes it has", layer=name)
    return Tensor(name, dtype, tuple(shape), data_at + begin, data_at + end)
