"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["begin_sync", "name_target", "publish", "remove", "remove_stale", "replacing", "stale", "temporary_of"]

#: Of Linux: `fcntl.h` and `linux/fs.h`.
_AT_FDCWD, _RENAME_EXCHANGE, _SYNC_FILE_RANGE_WRITE = -100, 2, 2
#: What a full disk is called; such errors do not say which file they are about.
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
#: The most bytes of a target's name that its temporary file repeats, adding 34: file systems take 255.
_MOST_NAME_BYTES = 220
#: Where a folder that is replaced is put aside, in the folder of the run.
_OLD = "old"
#: Temporary files that this process is writing now.
_ours: set[str] = set()


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the target's directory, which becomes the target when the block ends well.

    A symbolic link is followed, so that what it points to is replaced. When the
    block raises, an interrupt included, the temporary file is removed and an
    earlier target stays as it was. What a killed process left,
    ``<target>.tmp-<host>-<pid>-<random>``, goes when the same target is written again.

    Raises
    ------
    OSError
        If the target is there and no regular file, or cannot be written.
    """
    path = Path(os.path.realpath(target))
    if path.exists() and not path.is_file():
        msg = f"{str(path)!r} is there and is no regular file"
        raise OSError(msg)
    remove_stale(path)
    temporary = temporary_of(path)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        name_target(error, path, temporary)
        raise
    finally:
        remove(temporary)


def name_target(error: OSError, path: Path, temporary: Path, n_bytes: int = 0) -> None:
    """Have an error name the target, which the user knows, instead of a temporary file, or of nothing.

    Parameters
    ----------
    error : OSError
    path : Path
        The target.
    temporary : Path
    n_bytes : int
        What the target takes, if it is known, for the message of a full disk.
    """
    if error.errno is None:  # ours, with a whole sentence
        return
    if error.errno in _FULL or error.filename is None or str(error.filename).startswith(str(temporary)):
        error.filename, error.filename2 = str(path), None
    if error.errno in _FULL:  # libraries say it in more words
        error.strerror = os.strerror(error.errno) + (f": {n_bytes} bytes are needed" if n_bytes else "")


def remove(temporary: Path) -> None:
    """Remove a temporary file or folder that is ours, also where an interrupt comes into it."""
    try:
        _remove(temporary)
    finally:
        _remove(temporary)  # again: the first is where an interrupt may have come
        _ours.discard(temporary.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path, ignore_errors=True)
        except OSError as error:  # it closed a descriptor twice, because an interrupt came between closing and noting
            raise error.__context__ or error from None
    else:
        with suppress(OSError):
            path.unlink()


def publish(made: Path, path: Path) -> None:
    """Give a complete file or folder the target's name; what was there is there, whole, until then.

    A folder that is there is exchanged with the new one in one step where the
    system can (renameat2 of Linux), and goes.
    """
    _sync(made)
    if made.is_dir() and path.exists():
        aside = made.with_name("exchanged")  # a run that is taken up must not find the old one as its own
        for left in (aside, made.with_name(_OLD)):
            shutil.rmtree(left, ignore_errors=True)
        made = made.rename(aside)
        if not _exchanged(made, path):
            _swap(made, path)
    else:
        made.replace(path)
    sync_folder(path.parent)


def _swap(made: Path, path: Path) -> None:
    """Exchange two names in two steps; whoever stops between them, and leaves no target, is made good."""
    try:
        path.rename(made.with_name(_OLD))
        made.rename(path)
    except BaseException:
        _make_good(made.parent, path)
        raise


def _make_good(folder: Path, path: Path) -> None:
    """Give a target that is gone between two steps its name again, from the folder where it was put aside."""
    old = folder / _OLD
    if old.exists() and not path.exists():
        old.rename(path)


def _sync(made: Path) -> None:
    """Write a file, or all files of a folder, to the disk."""
    for path in [*made.rglob("*"), made] if made.is_dir() else [made]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                _fsync(file.fileno(), path)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step, if the system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old C library
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def begin_sync(descriptor: int) -> None:
    """Have Linux begin to write a file to the disk, so that less is left for the sync at the end.

    Nobody waits for it, and it does not fail: errors of the disk come with the sync.
    """
    with suppress(AttributeError, OSError, TypeError):  # another system, or an old C library
        whole = ctypes.c_int64(0)
        ctypes.CDLL(None).sync_file_range(descriptor, whole, whole, _SYNC_FILE_RANGE_WRITE)


def sync_folder(folder: Path) -> None:
    """Write a directory: a new name survives a power cut only then."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _fsync(descriptor, folder)
        finally:
            os.close(descriptor)


def _fsync(descriptor: int, path: Path) -> None:
    """Write a file to the disk; an error says which, as those of the system do not."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise


def temporary_of(path: Path) -> Path:
    """Return a new temporary path beside a target, ours until `remove`."""
    temporary = path.parent / f"{_temporary_stem(path)}{os.getpid()}-{secrets.token_hex(4)}"
    _ours.add(temporary.name)
    return temporary


def _temporary_stem(path: Path) -> str:
    """Return how the names of a target's temporary files on this host begin; a pid means nothing on another."""
    name = os.fsencode(path.name)
    told = path.name if len(name) <= _MOST_NAME_BYTES else f".aq2-{hashlib.sha256(name).hexdigest()[:32]}"
    return f"{told}.tmp-{hashlib.sha256(socket.gethostname().encode(errors='replace')).hexdigest()[:8]}-"


def stale(path: Path) -> list[Path]:
    """Return the temporary files and folders of a target whose processes are gone."""
    pattern = re.compile(re.escape(_temporary_stem(path)) + "([1-9][0-9]{0,9})-[0-9a-f]{8}")
    found = []
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match and not _is_written(entry.name, int(match[1])):
                found.append(path.with_name(entry.name))
    return found


def remove_stale(path: Path) -> None:
    """Remove them; of a process that was killed between two names, the target comes back first."""
    for left in stale(path):
        with suppress(OSError):
            _make_good(left, path)
        _remove(left)


def _is_written(name: str, pid: int) -> bool:
    """Whether the process that made a temporary file may still write it."""
    if pid == os.getpid():  # in a container every run may have the same
        return name in _ours
    if os.name != "posix":  # where signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
