"""Paths that users give: what is opened, what is refused by name, and what is said of a bad file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aq2_pipeline.errors import FormatError, InputTypeError

if TYPE_CHECKING:
    from io import FileIO

__all__ = ["Stamp", "bad_file", "open_regular", "source_path", "stamp_of"]

#: The most characters of a layer's name that an error repeats.
_MOST_SHOWN = 1024

_LONGEST_REASON = 2000

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")

#: The size of a file in bytes and the time of its last change in ns, to notice a file that changes.
Stamp = tuple[int, int]


def bad_file(path: Path, reason: str, hint: str | None = None, layer: str | None = None) -> FormatError:
    """Return the error of a file, and of one of its tensors where it is known.

    What others say of a file may hold its own bytes: a terminal shows them escaped, and the first of them.
    """
    error = FormatError(f"{str(path)!r}: {_printable(reason)}", hint)
    if layer is not None:
        error.at(layer=layer if len(layer) <= _MOST_SHOWN else layer[:64] + "...")
    return error


def _printable(text: str) -> str:
    text = text.strip()
    if len(text) > _LONGEST_REASON:
        text = text[:_LONGEST_REASON] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def source_path(source: Any, function: str, reads: tuple[str, ...] = ()) -> Path:
    """Return a path that a user gave; pickles and archives are refused by their names, but for the suffixes `reads`.

    Raises
    ------
    InputTypeError
        If it is no path.
    FormatError
        For pickles and archives: nothing in them is ever run or unpacked.
    """
    if not isinstance(source, str | os.PathLike) or isinstance(os.fspath(source), bytes):
        msg = f"{function}: the source is a {type(source).__name__}"
        raise InputTypeError(msg, "give a path")
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix in reads:
        return path
    if suffix in _PICKLES:
        raise bad_file(path, "pickle formats are not read", "convert it to safetensors where you trust it")
    if suffix in _ARCHIVES:
        raise bad_file(path, "archives are not read", "extract it first")
    return path


def open_regular(path: Path) -> FileIO:
    """Open a regular file without buffering; a FIFO or device never blocks.

    Raises
    ------
    FormatError
        If it is a directory, FIFO, device or socket.
    OSError
        If it is missing or may not be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise bad_file(path, "not a regular file")
    return path.open("rb", buffering=0)


def stamp_of(file: FileIO) -> Stamp:
    """Return what changes when an open file does."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
