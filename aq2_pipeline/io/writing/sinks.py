"""What sinks have in common: rows become pieces of tensors, and these a target that is there whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aq2_pipeline.errors import FormatError, SchemeError
from aq2_pipeline.io.tables.rows import rows_of
from aq2_pipeline.io.writing.files import publish
from aq2_pipeline.io.writing.staging import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from aq2_pipeline.io.tables.parts import Part, Tensor
    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.writing.staging import OutFile, Piece, Spec, Staging
    from aq2_pipeline.schemes import Scheme

    Progress = Callable[[str, int], None]

__all__ = [
    "MANIFEST",
    "Layer",
    "Plan",
    "PlannedLayer",
    "Sink",
    "Writer",
    "check_target",
    "described",
    "layer_of",
    "sink_rows",
    "unknown_dtype",
]

#: The file that says which files of a folder are ours.
MANIFEST = "aq2-manifest.json"


class Layer(NamedTuple):
    """A layer as a sink is to hold it.

    Attributes
    ----------
    name : str
    shape : tuple of int
        The whole layer's.
    dtype : str or None
        Of the source.
    scheme : Scheme or None
        None where it is written as it came, or as floats.
    is_float : bool
        Whether a layer without a scheme comes as float32 `weights`, and not as the bytes of its dtype.
    row_length : int or None
        Of a layer with a scheme: the weights of a matrix row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str | None
    scheme: Scheme | None = None
    is_float: bool = False
    row_length: int | None = None


class PlannedLayer(NamedTuple):
    """A tensor, what it becomes, and why; without a form there is nothing to read of it."""

    tensor: Tensor
    wanted: str | None
    reason: str | None
    form: str | None
    held: Layer


class Plan(NamedTuple):
    """What a run will do.

    Attributes
    ----------
    layers : list of PlannedLayer
        In the order of the source.
    specs : list of Spec
        The tensors of the target.
    """

    layers: list[PlannedLayer]
    specs: list[Spec]


class Sink:
    """A format that is written.

    Attributes
    ----------
    name : str
        As the command spells it.
    folder : bool
        Whether the target is a folder.
    takes : str
        The schemes that it holds, for messages.
    """

    name = ""
    folder = False
    takes = ""
    #: Whether codes are found again, so that rows must have their weights beside their codes.
    codes_again = False

    def refusal(self, layer: Layer) -> str | None:
        """Return why a layer cannot be held as it is; None where it can."""
        raise NotImplementedError

    def tensors(self, layer: Layer) -> list[Spec]:
        """Return the tensors that a layer becomes."""
        raise NotImplementedError

    def as_written(self, row: Row) -> Row:
        """Return a row as the target will hold it, where that is not as it comes."""
        return row

    def pieces(self, row: Row) -> Iterator[Piece]:
        """Yield what a row, as it is written, becomes: bytes of the tensors of its layer."""
        raise NotImplementedError

    def files(self, specs: Sequence[Spec]) -> list[OutFile]:
        """Return the files that hold the tensors, laid out."""
        raise NotImplementedError

    def finish(self, staging: Staging) -> None:
        """Complete `staging.out`, whose tensors are all written, and check what can be read of it."""
        raise NotImplementedError

    def writer(self, staging: Staging, chosen: Plan, parts: Sequence[Part], identity: str) -> Writer:  # noqa: ARG002
        """Begin to write layers that are known beforehand, or go on where a killed run of the same identity stopped.

        Parameters
        ----------
        staging : Staging
        chosen : Plan
        parts : sequence of Part
            The rows, in the order of the source.
        identity : str
            What is made: the source, the recipe and the options.
        """
        staging.plan(chosen.specs, self.files(chosen.specs), identity, folder=self.folder)
        return TensorWriter(self, staging)

    def size(self, specs: Sequence[Spec]) -> int:
        """Return the bytes of the target, as far as they are known beforehand."""
        return sum(file.size for file in self.files(specs))

    def leaves(self, layer: Layer) -> str | None:  # noqa: ARG002 - formats of engines that know modules do
        """Return why a layer stays as it is unless a rule names it; None where nothing speaks against codes."""
        return None

    def row_length(self, scheme: Scheme, shape: Sequence[int]) -> int:
        """Return the weights of a matrix row, as the target cuts blocks and groups."""
        return scheme.row_length(shape)

    def options(self) -> str:
        """Return what the target depends on beside the rows, for the identity of a run."""
        return repr(sorted(vars(self).items(), key=str))

    def check(self, layer: Layer) -> None:
        """Check that a layer can be held.

        Raises
        ------
        SchemeError
            Naming the layer, with the schemes that the target takes.
        """
        reason = self.refusal(layer)
        if reason:
            raise SchemeError(f"{self.name}: {reason}", f"it takes {self.takes}").at(layer=layer.name)


class Writer:
    """A target that is written row by row.

    Attributes
    ----------
    rows : sequence of dict
        What is there of a killed run: the rows, as `add` was told of them.
    """

    rows: Sequence[dict[str, Any]]

    def add(self, told: dict[str, Any], row: Row) -> None:
        """Write a row, and keep what is told of it."""
        raise NotImplementedError

    def finish(self) -> None:
        """Complete and check what becomes the target."""
        raise NotImplementedError


class TensorWriter(Writer):
    """Tensors that have their places, so that rows may come in any order."""

    def __init__(self, sink: Sink, staging: Staging) -> None:
        self._sink, self._staging = sink, staging
        self.rows = tuple(staging.rows)

    def add(self, told: dict[str, Any], row: Row) -> None:
        """Write the pieces of a row where they stay."""
        self._staging.add(told, self._sink.tensors(layer_of(row)), self._sink.pieces(row))

    def finish(self) -> None:
        """Check that nothing is missing, and complete the files."""
        self._staging.check_complete()
        self._sink.finish(self._staging)


def unknown_dtype(layer: Layer, known: Container[str]) -> str | None:
    """Return why a layer that comes as bytes is not written: its dtype is not one of those that are known."""
    if layer.scheme is not None or layer.is_float or layer.dtype in known:
        return None
    return f"tensors of {layer.dtype} are not written"


def layer_of(row: Row) -> Layer:
    """Return the layer that a row is of."""
    if row.quantized is None:
        return Layer(row.name, row.tensor_shape, row.dtype, is_float=row.weights is not None)
    vector = len(row.tensor_shape) <= 1  # its chunks are rows of their own length
    row_length = math.prod(row.tensor_shape) if vector else row.quantized.row_length
    return Layer(row.name, row.tensor_shape, row.dtype, row.quantized.scheme, row_length=row_length)


def described(row: Row) -> dict[str, Any]:
    """Return what a journal and a manifest say of a row."""
    told: dict[str, Any] = {"layer_name": row.name, "shape": list(row.shape), "dtype": row.dtype}
    if row.chunk is not None:
        told |= {"chunk": row.chunk, "start": row.start, "tensor_shape": list(row.tensor_shape)}
    if row.quantized is not None:
        held = row.quantized
        told |= {"scheme": held.scheme.name, "length": held.length, "row_length": held.row_length}
    return told


def sink_rows(
    given: Any, target: str | os.PathLike[str], sink: Sink, function: str, *, progress: Progress | None = None
) -> None:
    """Write a layer table to a target in one pass, a batch of it in memory at a time.

    Parameters
    ----------
    given : table
        As `rows_of` takes it.
    target : str or Path
        Replaced once the new one is complete.
    sink : Sink
    function : str
        What errors name.
    progress : callable, optional
        Called with each row's layer name, and the bytes that it became.

    Raises
    ------
    Aq2Error
        Naming the layer; nothing is written then.
    OSError
        If the target cannot be written; an earlier one stays.
    """
    path = Path(os.path.realpath(target))
    check_target(path, folder=sink.folder)
    with staged(path) as staging:
        staging.spool()
        for row in rows_of(given, function):
            layer = layer_of(row)
            sink.check(layer)
            n_bytes = staging.add(described(row), sink.tensors(layer), sink.pieces(sink.as_written(row)))
            if progress is not None:
                progress(row.name, n_bytes)
            del row, layer  # before the next is made
        staging.check_complete()
        staging.compose(sink.files(list(staging.specs.values())), folder=sink.folder)
        sink.finish(staging)
        publish(staging.out, path)


def check_target(path: Path, *, folder: bool) -> None:
    """Check that a target may be replaced: a regular file, or a folder with nothing but what we wrote.

    Raises
    ------
    OSError
        If the target is there and of another kind.
    FormatError
        If the folder holds files that its manifest does not name.
    """
    if not path.exists():
        return
    if not folder:
        if not path.is_file():
            msg = f"{str(path)!r} is there and is no regular file"
            raise OSError(msg)
        return
    if not path.is_dir():
        msg = f"{str(path)!r} is there and is no folder"
        raise OSError(msg)
    there = {str(entry.relative_to(path)) for entry in path.rglob("*") if not entry.is_dir()}
    foreign = sorted(there - _ours(path)) if there else []
    if foreign:
        told = ", ".join(map(repr, foreign[:3]))
        msg = f"{str(path)!r}: the folder has files that this package did not write: {told}"
        raise FormatError(msg, "give a new folder")


def _ours(folder: Path) -> set[str]:
    """Return the files that a folder's manifest names, and itself."""
    try:
        names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {MANIFEST, *names} if isinstance(names, list | dict) else set()
