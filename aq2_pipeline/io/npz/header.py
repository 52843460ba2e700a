"""The header of an .npy array: no Python is evaluated, and no pickle is ever read.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, NamedTuple

from aq2_pipeline.io.limits import OverLimitError, limits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Header", "read_npy"]

MAX_AXIS = 2**63 - 1
#: As NumPy.
MAX_HEADER_BYTES = 10_000

_MAGIC = b"\x93NUMPY"
#: Major version -> the bytes of the header's size, and the header's encoding.
_VERSIONS = {1: (2, "latin-1"), 2: (4, "latin-1"), 3: (4, "utf-8")}
_VALUE = r"""'[^'\\]*'|"[^"\\]*"|True|False|\(\s*\)|\((?:\s*\d{1,19}L?\s*,)+\s*(?:\d{1,19}L?\s*)?\)"""
_ITEM = re.compile(rf"""\s*(?:'(\w+)'|"(\w+)")\s*:\s*({_VALUE})\s*(?:,|(?=\}}))""", re.ASCII)
_DESCR = re.compile(r"([<>|])([a-zA-Z])(\d{1,9})((?:\[\w{1,16}\])?)", re.ASCII)
#: What safetensors has a spelling for, and those of NumPy's that would be taken for one.
_DTYPES = {
    "b1": "BOOL",
    **{f"{kind}{n}": f"{kind.upper()}{8 * n}" for kind in "iu" for n in (1, 2, 4, 8)},
    **{f"f{n}": f"F{8 * n}" for n in (2, 4, 8)},
    "c8": "C64",
    "c16": "COMPLEX128",
    "f16": "FLOAT128",
    "c32": "COMPLEX256",
}
_UCS_4 = 4


class Header(NamedTuple):
    """What an .npy array is.

    Attributes
    ----------
    dtype : str
        As safetensors spells it, or else NumPy without the byte order: S3, U5, V2, M8[ns].
    item_bytes : int
        The bytes of an element.
    swap : int
        The bytes of the numbers that are big-endian; 0 where none are.
    shape : tuple of int
    fortran : bool
        Whether the first axis is the fastest, and that makes a difference.
    n_bytes : int
        The bytes of the header, after which the elements begin.
    """

    dtype: str
    item_bytes: int
    swap: int
    shape: tuple[int, ...]
    fortran: bool
    n_bytes: int


def read_npy(start: bytes, first: Callable[[int], bytes]) -> Header:
    """Return the header of an array.

    Parameters
    ----------
    start : bytes
        The first bytes of the array's file, as many as are at hand.
    first : callable
        Returns the first bytes of it, as many as asked for unless there are less.

    Raises
    ------
    ValueError
        If it is none, or one of Python objects.
    """
    if len(start) < len(_MAGIC) + 6:
        start = first(len(_MAGIC) + 6)
    version, minor = start[6:8] if len(start) > len(_MAGIC) + 1 else (0, 0)
    if start[:6] != _MAGIC or version not in _VERSIONS or minor:
        msg = f"the member is no .npy array of the versions 1 to 3: it begins with {start[:8]!r}"
        raise ValueError(msg)
    width, encoding = _VERSIONS[version]
    at = len(_MAGIC) + 2 + width
    n = int.from_bytes(start[at - width : at], "little")
    if n > MAX_HEADER_BYTES:
        msg = f"the header claims {n} bytes; at most {MAX_HEADER_BYTES} are read"
        raise ValueError(msg)
    text = start if len(start) >= at + n else first(at + n)
    if len(text) < at + n:
        msg = f"the member ends after {len(text)} bytes, in its header"
        raise ValueError(msg)
    header, most = _parsed(text[at : at + n], encoding, at + n), limits().rank
    if len(header.shape) > most:
        msg = f"the shape has {len(header.shape)} axes; at most {most} are read"
        raise OverLimitError(msg, "rank")
    return header


@functools.lru_cache(maxsize=256)  # models have many arrays of few shapes
def _parsed(header: bytes, encoding: str, n_bytes: int) -> Header:
    """Return what a header's text says: a Python dict of a string, a bool and a tuple."""
    text = header.decode(encoding).strip()
    found: dict[str, str] = {}
    n_items, at = 0, 1
    while match := _ITEM.match(text, at):
        found[match[1] or match[2]] = match[3]
        n_items, at = n_items + 1, match.end()
    if re.search(r"['\"]descr['\"]\s*:\s*\[", text):
        msg = "structured arrays are not read"
        raise ValueError(msg)
    descr, order, axes = (found.get(key, "") for key in ("descr", "fortran_order", "shape"))
    is_dict = text[:1] == "{" and text[at:].strip() == "}" and n_items == len(found) == 3  # noqa: PLR2004
    if not is_dict or descr[:1] not in {"'", '"'} or order not in {"True", "False"} or axes[:1] != "(":
        msg = f"the header is not that of an .npy array: {text[:80]!r}"
        raise ValueError(msg)
    shape = tuple(int(axis) for axis in re.findall(r"\d+", axes))
    if max(shape, default=0) > MAX_AXIS:
        msg = "the shape is not one of axes in 0..2^63-1"
        raise ValueError(msg)
    # With one axis that is longer than 1, or with no element, both orders are the same.
    fortran = order == "True" and sum(axis > 1 for axis in shape) > 1 and math.prod(shape) > 0
    return Header(*_dtype(descr[1:-1]), shape, fortran, n_bytes)


def _dtype(descr: str) -> tuple[str, int, int]:
    """Return the name of a dtype, its bytes, and those of its numbers if they are big-endian."""
    if descr.lstrip("<>|=").startswith("O"):
        msg = "pickle formats are not read, and an array of Python objects is one"
        raise ValueError(msg)
    match = _DESCR.fullmatch(descr)
    if match is None:
        msg = f"the dtype {descr[:64]!r} is unknown"
        raise ValueError(msg)
    order, kind, digits, unit = match.groups()
    n = int(digits)
    name = kind + str(n) + unit
    if name in _DTYPES or (kind in "mM" and n == 8):  # noqa: PLR2004 - of 64 bits
        width = n // 2 if kind == "c" else n
        name = _DTYPES.get(name, name)
    elif kind in "SVU" and not unit:
        width = _UCS_4 if kind == "U" else 1
        n *= width
    else:
        msg = f"the dtype {descr[:64]!r} is unknown"
        raise ValueError(msg)
    if order == "|" and width > 1:
        msg = f"the dtype {descr[:64]!r} has no byte order"
        raise ValueError(msg)
    return name, n, width if order == ">" and width > 1 else 0
