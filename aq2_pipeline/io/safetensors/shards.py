"""Models in several safetensors files: which files, in which order, and whether they are what their index says."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from aq2_pipeline.errors import InputValueError
from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import bad_file, open_regular, source_path
from aq2_pipeline.io.safetensors.entries import strict_json
from aq2_pipeline.io.tables.parts import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aq2_pipeline.errors import FormatError
    from aq2_pipeline.io.safetensors.header import Header

__all__ = ["INDEX_SUFFIX", "Index", "Shards", "find_shards", "joined"]

INDEX_SUFFIX = ".index.json"
_USUAL_INDEX = "model.safetensors.index.json"


class Index(NamedTuple):
    """What an index says.

    Attributes
    ----------
    path : Path
    shard_of : dict of str to int
        Tensor name -> which of the shards holds it.
    total_size : int, float or None
        Bytes of all tensors; None where it is not told.
    """

    path: Path
    shard_of: dict[str, int]
    total_size: float | None


class Shards(NamedTuple):
    """The files of a model.

    Attributes
    ----------
    path : Path
        What the user gave; the first of a list.
    files : tuple of Path
        In the order of the table.
    told : Index or None
        What their index says.
    """

    path: Path
    files: tuple[Path, ...]
    told: Index | None = None


def find_shards(source: Any, function: str) -> Shards:
    """Return the files that a path, a folder, an index or a list of paths stands for; no shard is opened.

    A folder stands for its index, ``model.safetensors.index.json`` or else its
    only one for safetensors, and without one for all its ``*.safetensors`` in
    the order of their names. The shards of an index are in the order of their
    names too.

    Raises
    ------
    InputTypeError, InputValueError
        If it is no path, and for an empty list.
    FormatError
        If the folder has no such file, or the index is wrong.
    OSError
    """
    if isinstance(source, list | tuple):
        if not source:
            msg = f"{function}: the list of files is empty"
            raise InputValueError(msg, "give at least one path")
        files = tuple(source_path(one, function) for one in source)
        return Shards(files[0], _distinct(files))
    path = source_path(source, function)
    if path.is_dir():
        index = _index_of(path)
        return _indexed(path, index) if index else Shards(path, _all_of(path))
    if path.name.lower().endswith(INDEX_SUFFIX):
        return _indexed(path, path)
    return Shards(path, (path,))


def _index_of(folder: Path) -> Path | None:
    if (folder / _USUAL_INDEX).exists():
        return folder / _USUAL_INDEX
    found = sorted(path for path in folder.glob(f"*{INDEX_SUFFIX}") if not path.name.endswith(f".bin{INDEX_SUFFIX}"))
    if len(found) > 1:
        raise bad_file(folder, f"the folder has {len(found)} indexes: {[path.name for path in found]}", "give one")
    return found[0] if found else None


def _all_of(folder: Path) -> tuple[Path, ...]:
    files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        raise bad_file(folder, "the folder has no safetensors files", "give a file, or the folder of a model")
    return _distinct(files)


def _distinct(files: tuple[Path, ...]) -> tuple[Path, ...]:
    seen: dict[tuple[int, int], Path] = {}
    for path in files:
        status = path.stat()
        other = seen.setdefault((status.st_dev, status.st_ino), path)
        if other is not path:
            raise bad_file(path, f"is the same file as {str(other)!r}", "give each file once")
    return files


def _indexed(given: Path, path: Path) -> Shards:
    """Read an index and check it, before any shard is opened."""
    taken = limits()
    with open_regular(path) as file:
        content = file.read(taken.header_bytes + 1) or b""
    if len(content) > taken.header_bytes:
        raise bad_file(path, f"the index has more than {taken.header_bytes} bytes", to_change("header_bytes"))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_file(path, f"the index is not UTF-8: byte {error.start}") from None
    told = strict_json(text, path, "the index")
    entries = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise bad_file(path, "the index has no object 'weight_map' of names and files", "is it another model's?")
    if len(entries) > taken.tensors:
        reason = f"the index names {len(entries)} tensors; at most {taken.tensors} are read"
        raise bad_file(path, reason, to_change("tensors"))
    metadata = told.get("metadata", {})
    total_size = metadata.get("total_size") if isinstance(metadata, dict) else ""
    if isinstance(total_size, bool) or not isinstance(total_size, int | float | None):
        raise bad_file(path, "the index's 'metadata' is no object with a number 'total_size'")
    files = _files(path, entries)
    number = {entry: k for k, entry in enumerate(files)}
    shard_of = {name: number[entry] for name, entry in entries.items()}
    return Shards(given, tuple(files.values()), Index(path, shard_of, total_size))


def _files(index: Path, entries: dict[str, Any]) -> dict[str, Path]:
    """Return entry -> file, in the order of the entries; the links of a cache may lead where the index's own does."""
    allowed = (index.parent.resolve(), index.resolve().parent)
    found: dict[str, Path] = {}
    spelled: dict[tuple[int, int], str] = {}
    for name, entry in entries.items():
        if isinstance(entry, str) and entry in found:
            continue
        fault = _fault(entry)
        if fault:
            raise _bad_entry(index, name, entry, fault)
        path = index.parent / entry
        try:
            status, target = path.stat(), path.resolve(strict=True)
        except OSError as error:
            raise _bad_entry(index, name, entry, error.strerror or "cannot be found") from None
        if not stat.S_ISREG(status.st_mode):
            raise _bad_entry(index, name, entry, "not a regular file")
        if not any(target.is_relative_to(folder) for folder in allowed):
            raise _bad_entry(index, name, entry, "a link that leaves the folder")
        other = spelled.setdefault((status.st_dev, status.st_ino), entry)
        if other != entry:
            raise _bad_entry(index, name, entry, f"the same file as {other!r}")
        found[entry] = path
    return dict(sorted(found.items()))


def _fault(entry: Any) -> str | None:
    """Return what is wrong with the spelling of an index's entry."""
    if not isinstance(entry, str):
        return "not a string"
    parts = entry.split("/")
    if entry.startswith(("/", "~")) or "\\" in entry or "\0" in entry or ":" in entry or ".." in parts:
        return "not a path within the folder"
    return None if entry.endswith(".safetensors") else "no safetensors file"


def _bad_entry(index: Path, name: str, entry: Any, fault: str) -> FormatError:
    hint = "an index names safetensors files of its own folder, each spelled in one way"
    return bad_file(index, f"the index's entry {str(entry)[:256]!r}: {fault}", hint, name)


def joined(shards: Shards, headers: Sequence[Header]) -> tuple[tuple[Tensor, ...], dict[str, str]]:
    """Return the tensors of all shards, and their metadata: the first shard's word counts.

    Raises
    ------
    FormatError
        If a tensor is in two shards, or the shards are not what the index says.
    """
    if len(headers) == 1 and shards.told is None:
        return headers[0].tensors, headers[0].metadata
    found: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    most = limits().tensors
    for number, header in enumerate(headers):
        for tensor in header.tensors:
            if tensor.name in found:
                other = str(shards.files[found[tensor.name].file])
                raise bad_file(shards.files[number], f"the tensor is in {other!r} too", layer=tensor.name)
            found[tensor.name] = Tensor(*tensor[:5], number)
        metadata = {**header.metadata, **metadata}
        if len(found) > most:
            raise bad_file(shards.path, f"the files hold more than {most} tensors", to_change("tensors"))
    if shards.told:
        _check_index(shards, shards.told, found)
    return tuple(found.values()), metadata


def _check_index(shards: Shards, index: Index, found: dict[str, Tensor]) -> None:
    """Check that each tensor is where the index says, and no other."""
    for name, number in index.shard_of.items():
        tensor = found.get(name)
        if tensor is None or tensor.file != number:
            where = f"is in {str(shards.files[tensor.file])!r}" if tensor else "is in no shard"
            fault = f"the tensor {where}, the index says {str(shards.files[number])!r}"
            raise bad_file(index.path, fault, "a shard is missing, or another model's", name)
    if len(found) > len(index.shard_of):
        tensor = next(tensor for name, tensor in found.items() if name not in index.shard_of)
        fault = f"the index does not name the tensor, which is in {str(shards.files[tensor.file])!r}"
        raise bad_file(index.path, fault, "give the list of shards to read it too", tensor.name)
    n_bytes = sum(tensor.n_bytes for tensor in found.values())
    if index.total_size is not None and index.total_size != n_bytes:
        fault = f"the index's total_size is {index.total_size}, the tensors have {n_bytes} bytes"
        raise bad_file(index.path, fault, "a shard is another model's; or give the list of shards")
