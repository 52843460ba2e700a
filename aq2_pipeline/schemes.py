"""Schemes: what a user asks for, as data: a name of one of the families, with a method and an input dtype."""

from __future__ import annotations

import difflib
import functools
import itertools
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aq2_pipeline import rotations
from aq2_pipeline.errors import SchemeError
from aq2_pipeline.families import (
    DEFAULT_GROUP,
    FAMILIES,
    INPUT_DTYPES,
    LARGEST_GROUP,
    PER_CHANNEL,
    PER_TENSOR,
    SMALLEST_BLOCK,
    WIDTHS,
    Family,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aq2_pipeline.codecs import Codec

__all__ = [
    "DEFAULT_GROUP",
    "FAMILIES",
    "INPUT_DTYPES",
    "PER_CHANNEL",
    "PER_TENSOR",
    "WIDTHS",
    "Family",
    "Scheme",
    "add_family",
    "heeding_importance",
    "known_names",
    "matrix_row",
    "on_change",
    "parse",
    "spelled",
]


@dataclass(frozen=True)
class Scheme:
    """One way to store weights.

    Attributes
    ----------
    name : str
        The canonical name, which is what is stored.
    codec : Codec
        Its kernels.
    params : tuple of int
        What the kernels are told.
    bit_width : int
        Bits a code.
    group : int
        Weights a group; 0 for a channel, -1 for the whole tensor, 1 where there are no groups.
    method : str or None
        How codes are found; not stored.
    input_dtype : str or None
        What Binary or UInt16 weights hold; not stored.
    block : int
        What the length of a matrix row must be a multiple of.
    fallback : str
        The scheme that llama.cpp takes for other rows; empty where there is none.
    rotation : int
        Weights of the blocks that are rotated, which divide a matrix row; 0 without a rotation.
    """

    name: str
    codec: Codec
    params: tuple[int, ...]
    bit_width: int
    group: int
    method: str | None = None
    input_dtype: str | None = None
    block: int = 1
    fallback: str = ""
    rotation: int = 0

    def __str__(self) -> str:
        return self.name

    def row_length(self, shape: Sequence[int]) -> int:
        """Return the weights of a matrix row, where groups restart.

        Rank 0 and 1: everything. Rank 2: the last axis. More: trailing axes are
        joined from the last until a row holds a group, never the first axis.

        Examples
        --------
        >>> parse("int4_g128").row_length([64, 32, 3, 3])
        288
        >>> parse("int4_channel").row_length([64, 32, 3, 3])
        288
        >>> parse("int4_g128").row_length([10, 100])
        100
        """
        return int(matrix_row(shape, self.group))

    def sizes(self, length: int, row_length: int) -> tuple[int, int, int]:
        """Return the bytes of data, the scales and the zero points of so many weights."""
        return _sizes_of_one(self.codec, length, row_length, self.params)

    def n_bytes(self, length: int, row_length: int) -> int:
        """Return the bytes that all of them take."""
        data, scales, zero_points = self.sizes(length, row_length)
        return data + 4 * (scales + zero_points)

    def row_error(self, row_length: int) -> SchemeError | None:
        """Return what is wrong with matrix rows of a length, if anything is."""
        if row_length % self.block == 0:
            return None
        if self.rotation:
            return rotations.other_rows(self.name, self.rotation, row_length)
        msg = f"{self.name!r} takes rows of a multiple of {self.block} weights, this one has rows of {row_length}"
        if self.fallback in {"", "f16"}:
            return SchemeError(msg, f"store this layer as {self.fallback or 'f32'!r}")
        taken = self.fallback if row_length % SMALLEST_BLOCK == 0 else "f16"
        return SchemeError(msg, f"llama.cpp falls back to {taken!r} there")


@functools.lru_cache(maxsize=4096)
def _sizes_of_one(codec: Codec, length: int, row_length: int, params: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `Codec.sizes_of`; rows of equal layers ask for the same."""
    return codec.sizes_of(length, row_length, params)


def matrix_row(shape: Any, group: int) -> int:
    """Return the weights of a matrix row: see `Scheme.row_length`. Written so that Numba compiles it, too."""
    rank = len(shape)
    if rank == 2:  # noqa: PLR2004 - a matrix
        return int(shape[1])
    first = 0 if rank <= 1 else 1
    row = 1
    for k in range(rank - 1, first - 1, -1):
        row *= shape[k]
        if first and 0 < group <= row:
            break
    return row


def add_family(family: Family) -> None:
    """Make a family known to every engine of this process.

    Raises
    ------
    SchemeError
        If its names are taken.
    """
    groups = ("g128", "channel", "tensor")
    names = [family.template.format(group=group) for group in groups]
    known = next((n for n in names if any(f.pattern.fullmatch(n) for f in FAMILIES)), None)
    taken = known or next((f.template for f in FAMILIES if family.pattern.fullmatch(f.template)), None)
    if taken is not None:
        msg = f"a family already has the name {taken!r}"
        raise SchemeError(msg)
    FAMILIES.append(family)
    _forget()


def remove_family(family: Family) -> None:
    """Take back what `add_family` added; rows stored under its names cannot be read in this process any more."""
    FAMILIES.remove(family)
    _forget()


#: Called when the families have changed, by adapters that keep what `parse` gave them.
_LISTENERS: list[Callable[[], None]] = []


def on_change(listener: Callable[[], None]) -> None:
    """Call something, for the life of the process, whenever the families have changed."""
    _LISTENERS.append(listener)


def _forget() -> None:
    _parse_text.cache_clear()
    for listener in _LISTENERS:
        listener()


def known_names() -> list[str]:
    """Return a name or more of each family, for messages and pages."""
    groups = ("g32", "g64", "g128", "channel", "tensor")
    plain = [f.template.format(group=g) for f in FAMILIES for g in (groups if f.grouped else groups[:1])]
    return plain + [f"{f.template.format(group=f'g{g}')}_rot{g}" for f in FAMILIES if f.rotates for g in (64, 128)]


def parse(
    scheme: Any,
    *,
    group_size: int | str | None = None,
    symmetric: bool | None = None,
    method: str | None = None,
    rotate: bool | None = None,
) -> Scheme:
    """Return the scheme that an integer (bits) or a name stands for.

    Parameters
    ----------
    scheme : int or str or Scheme
        Bits (2 to 8, in groups of 128), or
        ``<canonical name>[:<method>][@<input dtype>]``.
    group_size : int or {"channel", "tensor"}, optional
    symmetric : bool, optional
    method : str, optional
    rotate : bool, optional
        Sugar for the parts of a name; what contradicts a name is an error.

    Raises
    ------
    SchemeError
        For an unknown name, an impossible width, or a contradiction.

    Examples
    --------
    >>> parse(4).name
    'int4_g128'
    >>> parse(4, group_size=64, symmetric=False).name
    'int4_g64_asym'
    >>> parse("int4_g64@bf16").input_dtype
    'bf16'
    """
    rotate = _truth("rotate", rotate)
    symmetric = _truth("symmetric", symmetric)
    if isinstance(scheme, Scheme):
        scheme = spelled(scheme)
    if isinstance(scheme, str):
        found = _parse_text(scheme)
    else:
        found = _parse_text(_name_of_bits(scheme, group_size, symmetric))
    _check_keywords(found, group_size, symmetric)
    found = _rotated(found, rotate)
    if method is not None:
        if found.method not in (None, method) and ":" in str(scheme):
            msg = f"method={method!r} contradicts the scheme {scheme!r}"
            raise SchemeError(msg)
        found = _parse_text(spelled(replace(found, method=method)))
    return found


def refuse_keywords(keywords: dict[str, Any]) -> None:
    """Refuse the sugar beside a column of schemes.

    Raises
    ------
    SchemeError
        If any keyword is given.
    """
    if any(value is not None for value in keywords.values()):
        msg = "scheme: a column of schemes takes no keywords"
        raise SchemeError(msg, "spell them in the column's names, e.g. 'int4_g64_asym'")


def _truth(name: str, value: Any) -> bool | None:
    """Return a keyword that is True, False or None, of Python's or NumPy's; nothing else is taken for one."""
    if value is None or isinstance(value, bool):
        return value
    if type(value).__name__ in {"bool", "bool_"} and type(value).__module__ == "numpy":
        return bool(value)
    msg = f"{name}={value!r} is neither True nor False"
    raise SchemeError(msg)


def spelled(scheme: Scheme) -> str:
    """Return the text that `parse` reads back: the name, the method and the input dtype."""
    method = f":{scheme.method}" if scheme.method else ""
    dtype = f"@{scheme.input_dtype}" if scheme.input_dtype else ""
    return scheme.name + method + dtype


def _name_of_bits(bits: Any, group_size: int | str | None, symmetric: bool | None) -> str:  # noqa: FBT001
    hint = f"bits must be an integer from {WIDTHS.start} to {WIDTHS.stop - 1}, or a name such as 'int4_g64'"
    try:
        width = None if isinstance(bits, bool) or type(bits).__name__ == "bool" else operator.index(bits)
    except TypeError:
        width = None
    if width is None or width not in WIDTHS:
        msg = f"scheme: {bits!r} is no scheme"
        raise SchemeError(msg, hint)
    return f"int{width}_{_group_suffix(group_size)}" + ("_asym" if symmetric is False else "")


def _group_suffix(group_size: int | str | None) -> str:
    if group_size is None:
        return f"g{DEFAULT_GROUP}"
    if group_size in ("channel", "tensor"):
        return str(group_size)
    try:
        size = -1 if isinstance(group_size, bool) else operator.index(group_size)  # type: ignore[arg-type]
    except TypeError:
        size = -1
    if not 1 <= size <= LARGEST_GROUP:
        msg = f"group_size: {group_size!r} is no group size"
        raise SchemeError(msg, f"an integer from 1 to {LARGEST_GROUP}, 'channel' or 'tensor'")
    return f"g{size}"


def _check_keywords(scheme: Scheme, group_size: int | str | None, symmetric: bool | None) -> None:  # noqa: FBT001
    parts = scheme.name.split("_")
    if group_size is not None and _group_suffix(group_size) not in parts:
        msg = f"group_size={group_size!r} contradicts the scheme {scheme.name!r}"
        raise SchemeError(msg)
    if symmetric is not None and symmetric is ("asym" in parts):
        msg = f"symmetric={symmetric!r} contradicts the scheme {scheme.name!r}"
        raise SchemeError(msg)


def _rotated(scheme: Scheme, rotate: bool | None) -> Scheme:  # noqa: FBT001
    """Return the scheme as the keyword wants it."""
    if rotate is None or rotate is (scheme.rotation > 0):
        return scheme
    if not rotate:
        msg = f"rotate=False contradicts the scheme {scheme.name!r}"
        raise SchemeError(msg)
    rotates = any(family.rotates for family in FAMILIES if family.pattern.fullmatch(scheme.name))
    name = rotations.named(scheme.name, scheme.group, rotates=rotates)
    return _parse_text(spelled(replace(scheme, name=name)))


@functools.lru_cache(maxsize=4096)
def _parse_text(text: str) -> Scheme:
    head, at, dtype = text.partition("@")
    name, colon, method = head.partition(":")
    for family in FAMILIES:
        match = family.pattern.fullmatch(name)
        if match:
            break
    else:
        msg = f"scheme: {text[:200]!r}{'...' * (len(text) > 200)} is unknown"  # noqa: PLR2004 - a few lines
        raise SchemeError(msg, _nearest(name[:200].strip().lower()))
    if colon and method not in family.methods:
        known = ", ".join(map(repr, family.methods)) or "none"
        msg = f"scheme: {text!r} has the unknown method {method!r}"
        raise SchemeError(msg, f"methods of {name!r}: {known}")
    if at and dtype not in INPUT_DTYPES:
        msg = f"scheme: {text!r} has the unknown input dtype {dtype!r}"
        raise SchemeError(msg, f"one of {', '.join(map(repr, INPUT_DTYPES))}")
    group = PER_TENSOR if family.whole else family.block
    if family.grouped:
        group = _group_of(match["group"], text)
    params = family.params + ((group,) if family.grouped else ())
    method = method or (family.methods[0] if family.methods else "")
    codec = family.others.get(method, family.codec)
    found = Scheme(
        name, codec, params, family.bit_width, group, method or None, dtype or None, family.block, family.fallback
    )
    return _in_rotated_blocks(found, match["rotation"], text) if family.rotates and match["rotation"] else found


def heeding_importance(scheme: Scheme) -> list[str]:
    """Return the names, with methods, under which an importance is heeded in a scheme's format."""
    family = next((f for f in FAMILIES if f.pattern.fullmatch(scheme.name)), None)
    if family is None or scheme.rotation:
        return []
    return [f"{scheme.name}:{method}" for method, codec in family.others.items() if codec.weighted is not None]


def _in_rotated_blocks(scheme: Scheme, digits: str, text: str) -> Scheme:
    """Return a scheme of groups behind a rotation."""
    k = int(digits[:10])  # no number as long is a block
    rotations.check(k, scheme.group, scheme.codec, text)
    params = (k, scheme.bit_width, *scheme.params)
    return replace(scheme, codec=rotations.rotated(scheme.codec), params=params, block=k, rotation=k)


def _nearest(name: str) -> str:
    """Return a hint at what an unknown name may have meant: names that begin alike come first."""
    if name.isdecimal():
        return f"bits are an integer, {name}, and a name is 'int{name}_g{DEFAULT_GROUP}'"

    def likeness(known: str) -> tuple[int, float]:
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, known, strict=False))
        return len(list(alike)), difflib.SequenceMatcher(None, name, known).ratio()

    known = (one for one in known_names() if "_rot" in name or "_rot" not in one)
    close = sorted(known, key=likeness, reverse=True)[:3]
    return f"the closest known names are {', '.join(map(repr, close))}"


def _group_of(suffix: str, text: str) -> int:
    if suffix in ("channel", "tensor"):
        return PER_CHANNEL if suffix == "channel" else PER_TENSOR
    size = int(suffix[1:]) if len(suffix) <= len(str(LARGEST_GROUP)) + 1 else LARGEST_GROUP + 1
    if size > LARGEST_GROUP:
        msg = f"scheme: {text!r} has too large a group"
        raise SchemeError(msg, f"at most {LARGEST_GROUP}")
    return size
