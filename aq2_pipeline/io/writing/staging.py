"""A run of a sink: what it has made lies in a folder beside the target, and becomes the target at the end.

Where the layers are known beforehand, bytes are written where they stay, and a
journal says which are there, so that a run that was killed can be taken up again.
Where they are not, bytes are spooled, and copied behind the headers at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.writing.files import begin_sync, name_target, remove, remove_stale, stale, temporary_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aq2_pipeline.weights import Array

__all__ = ["OutFile", "Piece", "Spec", "Staging", "staged"]

#: Bytes that are written or copied between two answers to an interrupt.
_COPY_BYTES = 1 << 26
#: Bytes that are written until the system is told to bring them to the disk.
_SYNC_BYTES = 1 << 25
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Spec(NamedTuple):
    """A tensor of the target, its dtype as the target spells it and its shape with the slowest axis first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int


class Piece(NamedTuple):
    """Bytes of a tensor of the target, and how many of its bytes are before them."""

    tensor: str
    begin: int
    data: Array


class OutFile(NamedTuple):
    """A file of the target.

    Attributes
    ----------
    name : str
        In the target's folder; empty where the target is this file.
    head : bytes
        What it begins with.
    places : dict of str to int
        Where each of its tensors begins; what is between them is zero.
    size : int
        Its bytes.
    """

    name: str
    head: bytes
    places: dict[str, int]
    size: int


class _Span(NamedTuple):
    """A piece that is there: where it begins in its tensor, in which file, where in that, and its bytes."""

    begin: int
    file: int
    offset: int
    size: int


class Staging:
    """The folder of a run.

    Parameters
    ----------
    folder : Path
        It is there, empty or as a killed run left it.

    Attributes
    ----------
    out : Path
        What becomes the target: a file or a folder.
    specs : dict of str to Spec
        The tensors of the target.
    rows : list of dict
        What `add` was told of each row.
    n_bytes : int
        What the target takes, once it is known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.n_bytes = 0
        self.specs: dict[str, Spec] = {}
        self.rows: list[dict[str, Any]] = []
        self._spans: dict[str, list[_Span]] = {}
        self._ordered: dict[str, list[_Span]] = {}
        self._files: list[FileIO] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._journal: Any = None
        self._end: int | None = None
        self._unsynced = 0
        self._stack = ExitStack()

    def close(self) -> None:
        """Close its files."""
        self._stack.close()

    def _open(self, path: Path) -> None:
        path.touch()
        self._files.append(self._stack.enter_context(FileIO(path, "r+")))

    def spool(self) -> None:
        """Take pieces of tensors that are not known yet, one behind the other."""
        self._open(self.folder / "spool")
        self._end = 0

    def begin(self, identity: str) -> list[dict[str, Any]]:
        """Begin the journal of a run, and return what one of the same identity that was killed had kept."""
        head = {"identity": identity, "boot": _BOOT.read_text().strip() if _BOOT.exists() else ""}
        kept = _taken_up(self.folder / "journal", head) if self.out.exists() else []
        if not kept:
            _remove(self.out)
        begun = self.folder / "journal.new"  # a kill before all of it is there must not lose what is kept
        self._journal = self._stack.enter_context(begun.open("w", encoding="utf-8"))
        self._journal.writelines(json.dumps(entry) + "\n" for entry in [head, *kept])
        self._journal.flush()
        begun.replace(self.folder / "journal")
        return kept

    def keep(self, entry: dict[str, Any]) -> None:
        """Note in the journal what is written now; a run that takes this one up finds it."""
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()

    def plan(self, specs: Sequence[Spec], files: Sequence[OutFile], identity: str, *, folder: bool) -> None:
        """Lay out the target; pieces that a killed run of the same identity has left are there, and in `rows`.

        Parameters
        ----------
        specs : sequence of Spec
            All tensors.
        files : sequence of OutFile
        identity : str
            What is made: the source, the recipe and the options.
        folder : bool
            Whether the target is one.
        """
        kept = self.begin(identity)
        self.specs = {spec.name: spec for spec in specs}
        self.n_bytes = sum(file.size for file in files)
        if folder:
            self.out.mkdir(exist_ok=True)
        for k, file in enumerate(files):
            path = self.out / file.name if file.name else self.out
            self._open(path)
            _write(self._files[k], 0, memoryview(file.head))
            self._files[k].truncate(file.size)
            self._places |= {name: (k, offset) for name, offset in file.places.items()}
        for entry in kept:
            self._note(entry)

    def add(self, row: dict[str, Any], specs: Iterable[Spec], pieces: Iterable[Piece]) -> int:
        """Keep what a row became, and return its bytes.

        Parameters
        ----------
        row : dict
            Anything that JSON holds; it comes back in `rows`, after a kill too.
        specs : iterable of Spec
            The tensors that the row is of.
        pieces : iterable of Piece
        """
        for spec in specs:
            self._check_spec(spec)
        told: list[list[Any]] = []
        for piece in pieces:
            data = memoryview(np.ascontiguousarray(piece.data).reshape(-1).view(np.uint8).data)
            file, offset = self._place(piece, len(data))
            _write(self._files[file], offset, data)
            told.append([piece.tensor, piece.begin, file, offset, len(data)])
        n_bytes = sum(int(size) for *_, size in told)
        if self._end is None:  # a spool goes before the target is there
            self._begin_sync(n_bytes)
        entry = {"row": row, "pieces": told}
        if self._journal is not None:
            self.keep(entry)
        self._note(entry)
        return n_bytes

    def _begin_sync(self, n_bytes: int) -> None:
        """Have the disk written to once enough more is there."""
        self._unsynced += n_bytes
        if self._unsynced > _SYNC_BYTES:
            for file in self._files:
                begin_sync(file.fileno())
            self._unsynced = 0

    def _check_spec(self, spec: Spec) -> None:
        known = self.specs.setdefault(spec.name, spec) if self._end is not None else self.specs.get(spec.name)
        if known != spec:
            told = f"{spec.dtype} {list(spec.shape)}" + (f", and {known.dtype} {list(known.shape)}" if known else "")
            error = FormatError(f"its rows say {told}", "the chunks of a layer agree, and a layer is there once")
            raise error.at(layer=spec.name)

    def _place(self, piece: Piece, size: int) -> tuple[int, int]:
        if piece.begin < 0 or piece.begin + size > self.specs[piece.tensor].n_bytes:
            told = f"bytes {piece.begin} to {piece.begin + size}"
            raise FormatError(f"{told} of a tensor of {self.specs[piece.tensor].n_bytes}").at(layer=piece.tensor)
        if self._end is None:
            file, offset = self._places[piece.tensor]
            return file, offset + piece.begin
        offset = self._end
        self._end += size
        return 0, offset

    def _note(self, entry: dict[str, Any]) -> None:
        self.rows.append(entry["row"])
        for tensor, *span in entry["pieces"]:
            self._spans.setdefault(tensor, []).append(_Span(*span))

    def check_complete(self) -> None:
        """Check that every byte of every tensor is there once, before `compose`.

        Raises
        ------
        FormatError
            Naming the tensor.
        """
        self._ordered = {name: self._in_order(name) for name in self.specs}

    def _in_order(self, name: str) -> list[_Span]:
        """Return the pieces of a tensor in its order."""
        at, n_bytes = 0, self.specs[name].n_bytes
        spans = sorted(span for span in self._spans.get(name, []) if span.size)
        for begin, size in [*((span.begin, span.size) for span in spans), (n_bytes, 0)]:
            if begin != at:
                what = "missing" if begin > at else "there twice"
                told = f"the bytes {min(at, begin)} to {max(at, begin)} of {n_bytes} are {what}"
                raise FormatError(told, "a table has every chunk of a layer, each once").at(layer=name)
            at += size
        return spans

    def compose(self, files: Sequence[OutFile], *, folder: bool) -> None:
        """Make the target of what was spooled."""
        self.n_bytes = sum(file.size for file in files)
        if folder:
            self.out.mkdir()
        for file in files:
            with (self.out / file.name if file.name else self.out).open("wb", buffering=0) as target:
                _write(target, 0, memoryview(file.head))
                for name, offset in file.places.items():
                    target.seek(offset)
                    for span in self._ordered[name]:
                        _copy(self._files[0].fileno(), span.offset, span.size, target)
                target.truncate(file.size)
        self._files[0].truncate(0)


def _write(file: FileIO, offset: int, data: memoryview) -> None:
    file.seek(offset)
    at = 0
    try:
        while at < len(data):
            at += file.write(data[at : at + _COPY_BYTES])
    except OSError as error:
        error.filename = str(file.name)
        raise


def _copy(source: int, offset: int, size: int, target: FileIO) -> None:
    """Copy bytes from a file to where another one stands, inside the kernel where it can."""
    while size:
        step = min(size, _COPY_BYTES)
        try:
            n = os.copy_file_range(source, target.fileno(), step, offset)
        except (AttributeError, OSError):  # another system, or a file system that cannot
            data = os.pread(source, step, offset)
            n = len(data)
            _write(target, target.tell(), memoryview(data))
        if not n:
            msg = "a temporary file is cut"
            raise FormatError(msg)
        offset, size = offset + n, size - n


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _taken_up(journal: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what an earlier run of the same has written; since a restart of the machine, nothing is sure."""
    entries: list[dict[str, Any]] = []
    with suppress(OSError, ValueError, KeyError), journal.open(encoding="utf-8") as lines:
        if json.loads(next(lines, "null")) != head:
            return []
        entries.extend(json.loads(line) for line in lines if line.endswith("\n"))
    return entries


@contextmanager
def staged(target: str | os.PathLike[str], resume: str | None = None) -> Iterator[Staging]:
    """Give the staging folder of a target; it goes when the block ends, however it does, but for a kill.

    Parameters
    ----------
    target : str or Path
        A symbolic link is followed.
    resume : str, optional
        Take up what a killed run of this identity has left. All else that killed runs left goes.
    """
    path = Path(os.path.realpath(target))
    folder = temporary_of(path)
    staging = Staging(folder)
    try:
        if resume is not None:
            _adopt(path, folder, resume)
        remove_stale(path)
        folder.mkdir(exist_ok=True)
        try:
            yield staging
        finally:
            staging.close()
    except OSError as error:
        name_target(error, path, folder, staging.n_bytes)
        raise
    finally:
        remove(folder)


def _adopt(path: Path, folder: Path, identity: str) -> None:
    """Give the folder of a killed run of the same identity a new name; of several, that which came farthest."""
    found = []
    for left in stale(path):
        with suppress(OSError, ValueError, TypeError, KeyError):
            journal = left / "journal"
            with journal.open(encoding="utf-8") as lines:
                if json.loads(lines.readline())["identity"] == identity:
                    found.append((journal.stat().st_size, left))
    for _, left in sorted(found, reverse=True):
        with suppress(FileNotFoundError):  # another run was faster
            left.rename(folder)
            return
