"""The initializers of an ONNX model: which tensors there are and where their bytes lie, checked before one is read.

The model is walked as bytes, so that neither the graph nor a tensor is loaded.
Numbers are Python integers throughout, so that no product or sum of a hostile
file wraps. The fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.locations import check_location, file_at, stamp_at
from aq2_pipeline.io.onnx.protobuf import BYTES, Wire
from aq2_pipeline.io.onnx.tensor import Aside, checked_shape, dims_of, pair_of, tensor_of
from aq2_pipeline.io.paths import Stamp, bad_file, stamp_of
from aq2_pipeline.io.tables.parts import Tensor

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    from aq2_pipeline.io.onnx.varints import Packed

__all__ = ["Model", "read_model"]

_GRAPH, _METADATA = 7, 14
_INITIALIZER, _SPARSE_INITIALIZER = 5, 15
_SPARSE_VALUES, _SPARSE_DIMS = 1, 3


class Model(NamedTuple):
    """What a model holds.

    Attributes
    ----------
    tensors : tuple of Tensor
        In the order of the graph. What is in `packed`, and what no bytes are of,
        begins at 0.
    packed : dict of str to Packed
        Where the numbers of a tensor are that has them as varints.
    metadata : dict of str to str
        The model's own ``metadata_props``.
    files : tuple of Path
        The model, then those of external data.
    stamps : tuple of (int, int)
        Of each file, to notice one that changes.
    """

    tensors: tuple[Tensor, ...]
    packed: dict[str, Packed]
    metadata: dict[str, str]
    files: tuple[Path, ...]
    stamps: tuple[Stamp, ...]


def read_model(file: FileIO, path: Path) -> Model:
    """List the initializers of an open model.

    Parameters
    ----------
    file : FileIO
        Unbuffered; its position stays.
    path : Path
        What messages call it, and whose folder has the external data.

    Raises
    ------
    FormatError
        Naming the file and the place in it, and the tensor where one is at fault.
    """
    stamp = stamp_of(file)
    wire = Wire(file, path, stamp[0])
    graph, metadata = _parts(wire)
    tensors: dict[str, Tensor] = {}
    aside, most = Aside({}, {}), limits().tensors
    for number, kind, begin, end in wire.fields(*graph):
        if number not in (_INITIALIZER, _SPARSE_INITIALIZER):
            continue
        if kind != BYTES:
            raise wire.error(begin, "an initializer is no message")
        read = tensor_of if number == _INITIALIZER else _sparse
        tensor = read(wire, begin, end, aside)
        if tensor.name in tensors:
            raise wire.error(begin, "a second initializer has the name").at(layer=tensor.name)
        tensors[tensor.name] = tensor
        if len(tensors) > most:
            raise bad_file(path, f"the graph has more than {most} initializers", to_change("tensors"))
    files, stamps = _place_external(path, stamp, tensors, aside)
    return Model(tuple(tensors.values()), aside.packed, metadata, files, stamps)


def _parts(wire: Wire) -> tuple[tuple[int, int], dict[str, str]]:
    """Return where the graph is, and the metadata."""
    if not wire.size:
        raise bad_file(wire.path, "the file is empty")
    graph, metadata, n_bytes, most = None, {}, 0, limits().header_bytes
    for number, kind, begin, end in wire.fields(0, wire.size):
        if number == _GRAPH:
            if kind != BYTES or graph:
                raise wire.error(begin, "the graph is there twice, or no message")
            graph = begin, end
        elif number == _METADATA:
            n_bytes += end - begin
            if kind != BYTES:
                raise wire.error(begin, "the metadata is no message")
            if n_bytes > most:
                raise wire.error(begin, f"the metadata has more than {most} bytes", to_change("header_bytes"))
            key, value = pair_of(wire, begin, end, most)
            if key in metadata:
                raise wire.error(begin, f"the metadata has the key {key[:64]!r} twice")
            metadata[key] = value
    if graph is None:
        raise bad_file(wire.path, "the file has no graph", "is it an ONNX model?")
    return graph, metadata


def _sparse(wire: Wire, begin: int, end: int, _: Aside) -> Tensor:
    """Return a SparseTensorProto as a tensor that is told of: its values are not spread."""
    values: tuple[int, int] | None = None
    shape: list[int] = []
    for number, kind, a, b in wire.fields(begin, end):
        if number == _SPARSE_VALUES:
            if kind != BYTES or values:
                raise wire.error(a, "the values of a sparse initializer are there twice, or no message")
            values = a, b
        elif number == _SPARSE_DIMS:
            shape = (shape + dims_of(wire, (number, kind, a, b)))[: limits().rank + 1]
    if values is None:
        raise wire.error(begin, "a sparse initializer has no values")
    tensor = tensor_of(wire, *values, Aside({}, {}))
    return Tensor(tensor.name, f"SPARSE_{tensor.dtype}", checked_shape(wire, shape, begin), 0, 0)


def _place_external(
    path: Path, stamp: Stamp, tensors: dict[str, Tensor], aside: Aside
) -> tuple[tuple[Path, ...], tuple[Stamp, ...]]:
    """Give tensors of external data the number of their file; every name is checked before a file is touched."""
    for name, location in aside.locations.items():
        check_location(path, location, name)
    number_of: dict[str, int] = {}
    files, stamps = [path], [stamp]
    for name, location in aside.locations.items():
        if location not in number_of:
            number_of[location] = len(files)
            files.append(file_at(path, location, name))
            stamps.append(stamp_at(files[-1]))
        tensor, size = tensors[name], stamps[number_of[location]][0]
        if tensor.end > size:
            reason = f"its data is the bytes {tensor.begin} to {tensor.end} of {location!r}, which has {size}"
            raise bad_file(path, reason, "a file is cut, or another", name)
        tensors[name] = tensor._replace(file=number_of[location])
    return tuple(files), tuple(stamps)
