"""ONNX models as lazy layer tables: the initializers of the graph, external data included."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.errors import FormatError
from aq2_pipeline.io.onnx.header import read_model
from aq2_pipeline.io.onnx.tensor import INTEGERS
from aq2_pipeline.io.onnx.varints import index_of, numbers_of
from aq2_pipeline.io.paths import bad_file, open_regular, source_path
from aq2_pipeline.io.tables.frames import lazy_frame
from aq2_pipeline.io.tables.source import Opened, Source

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from aq2_pipeline.io.onnx.header import Model
    from aq2_pipeline.io.tables.parts import Part, Tensor
    from aq2_pipeline.weights import Array

__all__ = ["OnnxSource", "open_onnx", "scan_onnx"]


class OnnxSource(Source):
    """The initializers of a model; those that are written as varints are converted when they are read.

    Parameters
    ----------
    path : Path
    model : Model
    """

    def __init__(self, path: Path, model: Model) -> None:
        super().__init__(path, model.files, model.stamps, model.tensors, model.metadata, "scan_onnx")
        self._packed = model.packed
        self._indexes: dict[str, Array] = {}
        self._lock = threading.Lock()

    def read(self, opened: Opened, part: Part, offset: int, target: Array) -> None:
        """Fill a uint8 array with bytes of a part."""
        if part.tensor.name not in self._packed:
            super().read(opened, part, offset, target)
            return
        try:
            self._convert_numbers(opened, part.tensor, part.begin + offset, target)
        except FormatError:
            raise
        except ValueError as error:
            raise bad_file(self.path, str(error), None, part.tensor.name) from None

    def _convert_numbers(self, opened: Opened, tensor: Tensor, begin: int, target: Array) -> None:
        packed = self._packed[tensor.name]

        def read(at: int, block: Array) -> None:
            opened.read(tensor, at, block)

        with self._lock:
            if tensor.name not in self._indexes:
                self._indexes[tensor.name] = index_of(read, packed)
        width = tensor.n_bytes // packed.n
        values, at = target.view(f"<u{width}"), 0
        for numbers in numbers_of(read, packed, self._indexes[tensor.name], begin // width, values.size):
            values[at : at + numbers.size] = _narrowed(numbers, tensor.dtype, width)
            at += numbers.size


def _narrowed(numbers: Array, dtype: str, width: int) -> Array:
    """Return the low bytes of 64-bit numbers.

    Raises
    ------
    ValueError
        If more than these is not zero, or not the sign.
    """
    least, most = INTEGERS.get(dtype, (0, (1 << 8 * width) - 1))
    signed = numbers.view(np.int64)
    if width < numbers.itemsize and ((signed < least) | (signed > most)).any():
        wrong = int(signed[(signed < least) | (signed > most)][0])
        msg = f"the number {wrong} is none of {dtype}"
        raise ValueError(msg)
    return numbers.astype(f"<u{width}")


def scan_onnx(source: Any, *, raw: bool = False, chunk_weights: int | None = None) -> pl.LazyFrame:
    """Return the initializers of an ONNX model as a lazy layer table.

    Parameters
    ----------
    source : str or Path
        A regular file, a ModelProto. External data lies in its folder or below.
    raw : bool
        Give `weights` as Binary, little-endian bytes, for schemes such as
        ``'int4_g64@bf16'``; of any dtype. Null where a tensor has no bytes of its
        own (strings, sparse initializers).
    chunk_weights : int, optional
        The most weights of a row: longer tensors are cut along their first axis,
        and come as chunk rows, with the columns ``chunk``, ``start`` and
        ``tensor_shape``.

    Returns
    -------
    LazyFrame
        ``layer_name: String, shape: List(Int64), dtype: String`` (F32, BF16,
        I64, ...), ``weights: List(Float32)``, a row an initializer, in the order
        of the graph. F16, BF16, F8_E4M3 and F8_E5M2 are exact, F64 is rounded;
        `weights` of other dtypes are null. What safetensors has no dtype for is
        called as in ONNX: INT4, UINT4, INT2, UINT2, STRING, COMPLEX128; sparse
        initializers are ``SPARSE_F32`` and so on. Tensors are read when a query
        wants `weights`, a batch of rows at a time, and only those of the rows
        that it keeps.

    Raises
    ------
    FormatError
        If the file is not what it claims to be; here, or where its data is read
        and is not as many numbers, or has changed since.
    InputValueError
        Where an F64 value does not fit float32, when its layer is read.
    OSError
        If a file is missing or may not be read.

    Notes
    -----
    Tensors in Constant nodes, subgraphs, functions and training information are
    not read. Checksums of external data are not checked. Nothing of the onnx
    package is used: it would load the whole model.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from onnx import helper, numpy_helper, save
    >>> from aq2_pipeline import scan_onnx
    >>> weights = numpy_helper.from_array(np.ones((2, 3), np.float16), "w")
    >>> graph = helper.make_graph([], "g", [], [], [weights])
    >>> with TemporaryDirectory() as folder:
    ...     save(helper.make_model(graph), f"{folder}/m.onnx")
    ...     scan_onnx(f"{folder}/m.onnx").collect().rows()
    [('w', [2, 3], 'F16', [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
    """
    return lazy_frame(open_onnx(source), "raw" if raw else "weights", chunk_weights)


def open_onnx(source: Any) -> Source:
    """Return the initializers of an ONNX model, all that is said of them checked."""
    path = source_path(source, "scan_onnx")
    with open_regular(path) as file:
        return OnnxSource(path, read_model(file, path))
