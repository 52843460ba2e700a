"""Files that appear whole or not at all, and safetensors files written layer by layer."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.headers import MAX_HEADER_BYTES, MAX_NAME_BYTES, open_regular, read_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["replacing", "write_safetensors"]

#: What a full disk is called; such errors do not say which file they are about.
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the target's directory, which becomes the target when the block ends well.

    A symbolic link is followed, so that what it points to is replaced. When the
    block raises, an interrupt included, the temporary file is removed and an
    earlier target stays as it was.

    Raises
    ------
    OSError
        If the target is there and no regular file, or cannot be written.
    """
    path = Path(os.path.realpath(target))
    if path.exists() and not path.is_file():
        msg = f"{str(path)!r} is there and is no regular file"
        raise OSError(msg)
    # A short name of its own: the target's may already have the 255 bytes that file systems allow.
    temporary = path.parent / f".aq2.tmp-{secrets.token_hex(8)}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and (error.errno in _FULL or error.filename in (temporary, str(temporary))):
            error.filename, error.filename2 = str(path), None  # the name that the user knows
        raise
    if os.name == "posix":  # the new name survives a power cut only once its directory is written
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_safetensors(
    target: str | os.PathLike[str],
    layers: Sequence[tuple[str, Sequence[int]]],
    arrays: Iterable[Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write float32 tensors, one in memory at a time.

    Parameters
    ----------
    target : str or Path
    layers : sequence of (name, shape)
        All of them, in order: the header comes first.
    arrays : iterable of ndarray
        float32, of each layer in turn, contiguous.
    metadata : mapping of str to str, optional
        The file's ``__metadata__``.

    Raises
    ------
    FormatError
        If a name cannot be written, or an array is not of its layer's size.
    OSError
        If the file cannot be written; an earlier one stays.
    """
    path = Path(target)
    header = _header(path, layers, metadata)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for (name, shape), array in zip(layers, arrays, strict=True):
                if array.size != math.prod(shape):
                    msg = f"{array.size} weights for the shape {list(shape)}"
                    raise FormatError(msg).at(layer=name)
                file.write(array.astype("<f4", copy=False).data)
        with open_regular(temporary) as written:
            read_header(written, path)


def _header(path: Path, layers: Sequence[tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, shape in layers:
        if name in entries or name == "__metadata__" or len(name.encode()) > MAX_NAME_BYTES:
            msg = f"{str(path)!r}: the name cannot be written"
            hint = f"names are unique, not '__metadata__', and have at most {MAX_NAME_BYTES} bytes"
            raise FormatError(msg, hint).at(layer=name[:64])
        size = 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    if len(text) > MAX_HEADER_BYTES:
        msg = f"{str(path)!r}: the header would have {len(text)} bytes; readers take {MAX_HEADER_BYTES}"
        raise FormatError(msg)
    return text
