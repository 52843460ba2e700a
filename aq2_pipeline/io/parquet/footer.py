"""What a Parquet file's footer claims of its columns, read without the library, which ends the process over some.

pyarrow 26 reads a column's metadata in code that no exception may leave: histograms of the wrong length, or encrypted
columns, terminate Python. The footer is a struct of Thrift's compact protocol; only what is wanted of it is kept.

Sources: github.com/apache/thrift, doc/specs/thrift-compact-protocol.md; github.com/apache/parquet-format,
src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aq2_pipeline.io.paths import bad_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Claim", "read_claims"]

_I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = 5, 6, 7, 8, 9, 10, 11, 12, 13
_TRUE, _FALSE, _BYTE = 1, 2, 3
#: Bytes of kinds whose values are always as long, in a struct; flags are in the field's own byte.
_FIXED = {_TRUE: 0, _FALSE: 0, _BYTE: 1, _DOUBLE: 8, _UUID: 16}
#: Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_ROW_GROUPS, _COLUMNS, _META_DATA, _TYPE, _NUM_VALUES, _UNCOMPRESSED = 4, 1, 3, 1, 5, 6
#: Structs in one another, and bytes of an integer: more is no footer.
_DEEPEST, _LONGEST = 16, 10
#: The file ends with the footer's length and "PAR1".
_TAIL = 8


class Claim(NamedTuple):
    """What the footer says of a column in a row group.

    Attributes
    ----------
    physical_type : int
        As Parquet numbers them: 6 is BYTE_ARRAY.
    n_values : int
        Values, of lists all that they hold, with nulls.
    n_bytes : int
        Bytes of the pages, not compressed.
    """

    physical_type: int
    n_values: int
    n_bytes: int


def read_claims(path: Path) -> list[list[Claim]]:
    """Return for each row group what is claimed of each leaf column, in the order of the schema.

    Raises
    ------
    FormatError
        If the footer ends early, or does not say it of a column.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _TAIL, 0))
        n_bytes = int.from_bytes(file.read(4), "little")
        if n_bytes > size - _TAIL:
            raise bad_file(path, f"the footer claims {n_bytes} bytes, the file has {size}", "it is cut, or damaged")
        file.seek(size - _TAIL - n_bytes)
        cursor = _Cursor(file.read(n_bytes))
    try:
        return list(cursor.row_groups())
    except (IndexError, KeyError, ValueError):
        raise bad_file(path, "the footer is no metadata of columns", "it is damaged, or encrypted") from None


class _Cursor:
    """A place in the footer's bytes; what is read moves it on."""

    def __init__(self, text: bytes) -> None:
        self._text, self._at = text, 0

    def row_groups(self) -> Iterator[list[Claim]]:
        """Yield the claims of each row group."""
        for field, kind in self._fields():
            if (field, kind) == (_ROW_GROUPS, _LIST):
                for _ in self._structs():
                    yield self._row_group()
            else:
                self._skip(kind)

    def _row_group(self) -> list[Claim]:
        claims: list[Claim] = []
        for field, kind in self._fields():
            if (field, kind) == (_COLUMNS, _LIST):
                claims += [self._column() for _ in self._structs()]
            else:
                self._skip(kind)
        return claims

    def _column(self) -> Claim:
        found: dict[int, int] = {}
        for field, kind in self._fields():
            if (field, kind) == (_META_DATA, _STRUCT):
                for number, what in self._fields():
                    if what in (_I32, _I64):
                        found[number] = self._integer()
                    else:
                        self._skip(what)
            else:
                self._skip(kind)
        return Claim(found[_TYPE], found[_NUM_VALUES], found[_UNCOMPRESSED])

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Yield the number and kind of each field of a struct; who asks reads the value before the next."""
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            yield field, head & 15

    def _structs(self) -> range:
        """Return a range of as many structs as follow in a list."""
        n, kind = self._list()
        if n and kind != _STRUCT:
            msg = f"a list of kind {kind}"
            raise ValueError(msg)
        return range(n)

    def _list(self) -> tuple[int, int]:
        head = self._byte()
        n = head >> 4
        return (self._unsigned() if n == 15 else n), head & 15  # noqa: PLR2004 - all four bits

    def _skip(self, kind: int, depth: int = 0) -> None:
        if depth > _DEEPEST:
            msg = "too deep"
            raise ValueError(msg)
        if kind in _FIXED:
            self._at += _FIXED[kind]
        elif kind <= _I64:
            self._unsigned()
        elif kind == _BINARY:
            n = self._unsigned()
            self._at += n
        elif kind in (_LIST, _SET):
            n, of = self._list()
            self._skip_items(n, (of,), depth)
        elif kind == _MAP:
            n = self._unsigned()
            kinds = self._byte() if n else 0
            self._skip_items(n, (kinds >> 4, kinds & 15), depth)
        elif kind == _STRUCT:
            for _, of in self._fields():
                self._skip(of, depth + 1)
        else:
            msg = f"the kind {kind} is unknown"
            raise ValueError(msg)

    def _skip_items(self, n: int, kinds: tuple[int, ...], depth: int) -> None:
        for _ in range(n):
            for kind in kinds:
                self._skip(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)
            if self._at > len(self._text):
                raise IndexError

    def _byte(self) -> int:
        byte = self._text[self._at]
        self._at += 1
        return byte

    def _unsigned(self) -> int:
        number = 0
        for k in range(_LONGEST):
            byte = self._byte()
            number |= (byte & 127) << 7 * k
            if byte < 128:  # noqa: PLR2004 - the last byte's highest bit is 0
                return number
        msg = "a number without an end"
        raise ValueError(msg)

    def _integer(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)
