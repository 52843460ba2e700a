"""Folders that engines load: safetensors, config.json, what came with the model, and a manifest, written last."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aq2_pipeline.codecs import IDENTITY
from aq2_pipeline.errors import FormatError, InputTypeError, InputValueError, SchemeError
from aq2_pipeline.io.folders.integer_codes import SCALE_DTYPES, integers_of, recoded, rounded_scales
from aq2_pipeline.io.limits import limits, to_change
from aq2_pipeline.io.paths import bad_file, open_regular
from aq2_pipeline.io.safetensors.header import read_header
from aq2_pipeline.io.safetensors.layout import index_of, shards
from aq2_pipeline.io.safetensors.sink import FLOATS, float_bytes, plain_piece, plain_spec
from aq2_pipeline.io.tables.dtypes import DTYPE_BITS, decoded, is_float, numpy_dtype
from aq2_pipeline.io.writing.sinks import MANIFEST, Sink, layer_of, unknown_dtype
from aq2_pipeline.io.writing.staging import Piece
from aq2_pipeline.schemes import PER_TENSOR, parse
from aq2_pipeline.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from aq2_pipeline.io.folders.integer_codes import Integers
    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.targets import Options
    from aq2_pipeline.io.writing.sinks import Layer
    from aq2_pipeline.io.writing.staging import OutFile, Spec, Staging
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.stored import Quantized
    from aq2_pipeline.weights import Array

__all__ = ["FLOAT_BYTES", "FolderSink", "Held", "Matrix", "config_of", "matrix_of", "weights_of"]

_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
#: What is copied of a model's folder: tokenizers, generation settings, templates, code; no weights, no pickles.
_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_RANK = 2
#: What embeddings are called that do not say so.
_TABLES = ("wte", "wpe")
#: Bytes a scale.
FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class Matrix(NamedTuple):
    """The rows of a layer's matrix that a row of the table holds."""

    first: int
    n_rows: int
    columns: int


class Held(NamedTuple):
    """A layer of a target: its scheme, or why it has none.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str or None
        Of the source.
    scheme : Scheme or None
        None where it was left alone.
    reason : str or None
        Why it was.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str | None
    scheme: Scheme | None
    reason: str | None

    @property
    def module(self) -> str:
        """What engines call the module whose weight it is."""
        return self.name.removesuffix(".weight")


class FolderSink(Sink):
    """A folder of quantized matrices `X.weight`, and of layers that were left alone.

    Parameters
    ----------
    config_from : str or Path, optional
        A model's folder, or its config.json.
    scale_dtype : {"F32", "F16", "BF16"}
        Of the scales of integers.

    Raises
    ------
    InputValueError
        If the dtype is another.
    FormatError, OSError
        If there is no such config, or it holds no JSON object.
    """

    folder = True
    #: Of the safetensors files: the framework whose names the tensors have.
    metadata: dict[str, str]

    def __init__(self, config_from: str | os.PathLike[str] | None = None, scale_dtype: str = "F32") -> None:
        if scale_dtype not in SCALE_DTYPES:
            msg = f"{self.name}: the scale_dtype {scale_dtype!r} is not written"
            raise InputValueError(msg, f"one of {', '.join(SCALE_DTYPES)}")
        self.scale_dtype, self.codes_again = scale_dtype, scale_dtype != "F32"
        self.config, self.copied = _read_config(config_from)

    def leaves(self, layer: Layer) -> str | None:
        """Return why a table that engines look rows up in stays as it is unless a rule names it."""
        module = layer.name.removesuffix(".weight").rpartition(".")[2]
        return "an embedding" if "embed" in module or module in _TABLES else None

    def scheme_refusal(self, scheme: Scheme, columns: int) -> str | None:
        """Return why matrices of so many columns are not held in a scheme; None where they are."""
        raise NotImplementedError

    def matrix_tensors(self, name: str, scheme: Scheme, shape: tuple[int, ...]) -> list[Spec]:
        """Return the tensors that a quantized matrix becomes."""
        raise NotImplementedError

    def matrix_pieces(self, row: Row, held: Quantized, matrix: Matrix) -> Iterator[Piece]:
        """Yield what a row of codes becomes."""
        raise NotImplementedError

    def offsets(self, held: Quantized, told: Integers, scales: Array, zeros: Array, layer: str) -> Array:  # noqa: ARG002
        """Return the zero of each group's codes with scales as they are stored, float64; `zeros` are zero groups."""
        return held.zero_points.astype(np.float64) if told.asymmetric else np.full(scales.size, float(told.middle))

    def as_written(self, row: Row) -> Row:
        """Return a row with its scales rounded as they are stored, and the codes that are nearest with these."""
        held = row.quantized
        told = None if held is None else integers_of(held.scheme)
        if self.scale_dtype == "F32" or held is None or told is None:
            return row
        weights = weights_of(row)
        _, scales, zeros = rounded_scales(held.scales, self.scale_dtype, row.name)
        offsets = self.offsets(held, told, scales, zeros, row.name)
        steps = np.where(zeros, np.float32(np.inf), scales)
        data = recoded(weights, told, steps, offsets, matrix_of(row, held).columns)
        zero_points = offsets.astype(np.float32) if told.asymmetric else held.zero_points
        return row._replace(quantized=held._replace(data=data, scales=scales, zero_points=zero_points))

    def with_quantization(self, config: dict[str, Any], layers: Sequence[Held]) -> dict[str, Any]:
        """Return config.json with what engines are told of the layers, some of which are quantized."""
        raise NotImplementedError

    def refusal(self, layer: Layer) -> str | None:
        """Return why a layer is not written as it is."""
        scheme = layer.scheme
        if scheme is None or _is_plain(scheme):
            return unknown_dtype(layer, DTYPE_BITS)
        what = f"{scheme} is for matrices '<module>.weight'"
        if not layer.name.endswith(".weight"):
            return f"{what}, and this is no '.weight': leave it alone"
        if len(layer.shape) != _RANK or not math.prod(layer.shape):
            return f"{what}, and the shape is {list(layer.shape)}: leave it alone"
        return self.scheme_refusal(scheme, layer.shape[1])

    def tensors(self, layer: Layer) -> list[Spec]:
        """Return the tensors that a layer becomes."""
        if layer.scheme is None or _is_plain(layer.scheme):
            return [plain_spec(layer, _plain_dtype(layer))]
        return self.matrix_tensors(layer.name, layer.scheme, layer.shape)

    def pieces(self, row: Row) -> Iterator[Piece]:
        """Yield what a row becomes."""
        layer, held = layer_of(row), row.quantized
        if held is not None and not _is_plain(layer.scheme):
            yield from self.matrix_pieces(row, held, matrix_of(row, held))
        elif held is not None:
            yield Piece(row.name, row.start * DTYPE_BITS[_plain_dtype(layer)] // 8, held.data)
        elif row.weights is None:
            yield plain_piece(row)
        else:
            dtype = _plain_dtype(layer)
            yield Piece(row.name, row.start * DTYPE_BITS[dtype] // 8, float_bytes(row.weights, dtype, row.name))

    def files(self, specs: Sequence[Spec]) -> list[OutFile]:
        """Lay out one file, or shards."""
        return shards(specs, self.metadata)

    def finish(self, staging: Staging) -> None:
        """Check the headers, and write the config, the index, what is copied, and the manifest."""
        layers = _layers_of(staging.rows)
        if not any(layer.scheme for layer in layers):
            msg = f"{self.name}: 0 of {len(layers)} layers are quantized"
            raise FormatError(msg, "quantize some of them first, or write them with sink_safetensors")
        specs = list(staging.specs.values())
        files = self.files(specs)
        for file in files:
            with open_regular(staging.out / file.name) as written:
                read_header(written, staging.out / file.name)
        for path in self.copied:
            shutil.copyfile(path, staging.out / path.name)
        _write_json(staging.out / _CONFIG, self.with_quantization(dict(self.config), layers))
        if len(files) > 1:
            _write_json(staging.out / _INDEX, index_of(files, specs))
        _write_json(staging.out / MANIFEST, self._manifest(staging.out, layers))

    def _manifest(self, folder: Path, layers: Sequence[Held]) -> dict[str, Any]:
        told = []
        for layer in layers:
            entry: dict[str, Any] = {"name": layer.name, "shape": list(layer.shape), "dtype": layer.dtype}
            told.append(entry | ({"scheme": layer.scheme.name} if layer.scheme else {"left_alone": layer.reason}))
        return {
            "package": f"aq2-pipeline {__version__}",
            "format": self.name,
            "scale_dtype": self.scale_dtype,
            "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            "layers": told,
        }


def matrix_of(row: Row, held: Quantized) -> Matrix:
    """Return which rows of the matrix a row of the table holds.

    Raises
    ------
    SchemeError, FormatError
        Naming the layer, if it is a chunk that does not hold whole ones, or has groups across them.
    """
    columns = row.tensor_shape[1]
    if row.chunk is not None and (held.scheme.group == PER_TENSOR):
        msg = f"{held.scheme} has one scale a tensor, and the row is a chunk of one"
        raise SchemeError(msg, "read the tensor as a whole").at(layer=row.name)
    if row.start % columns or held.length % columns:
        msg = f"the chunk from weight {row.start} on does not hold whole matrix rows of {columns}"
        raise FormatError(msg).at(layer=row.name)
    by_row = held.scheme.group == 0 or held.scheme.group > columns
    if held.row_length != columns if by_row else held.row_length % columns:
        msg = f"{held.scheme} was given rows of {held.row_length} weights, and the matrix has {columns} columns"
        raise FormatError(msg, "quantize with shape=").at(layer=row.name)
    return Matrix(row.start // columns, held.length // columns, columns)


def weights_of(row: Row) -> Array:
    """Return a row's weights, which are coded again.

    Raises
    ------
    InputTypeError
        If it has none.
    InputValueError
        If one of them is not finite.
    """
    weights = row.weights
    if weights is None and row.raw is not None and row.dtype is not None and is_float(row.dtype):
        weights = decoded(row.raw.view(numpy_dtype(row.dtype)), row.dtype)
    if weights is None:
        error = InputTypeError(
            "scales other than F32 are rounded before the weights are coded, and the row has no weights",
            "keep the column 'weights' beside 'quantized', or take scale_dtype='F32'",
        )
        raise error.at(layer=row.name)
    bad = np.flatnonzero(~np.isfinite(weights))
    if bad.size:
        position, value = int(bad[0]), float(weights[bad[0]])
        msg = f"the weight at position {position} is {value!r}"
        raise InputValueError(msg).at(layer=row.name, position=position, value=value)
    return weights


def _is_plain(scheme: Scheme | None) -> bool:
    """Whether a layer is written under its own name, as floats or bytes."""
    return scheme is None or scheme.codec == IDENTITY


def _plain_dtype(layer: Layer) -> str:
    if layer.scheme is not None:
        return layer.scheme.name.upper()
    if not layer.is_float:
        return str(layer.dtype)
    return layer.dtype if layer.dtype in FLOATS else "F32"


def _layers_of(rows: Sequence[dict[str, Any]]) -> list[Held]:
    """Return each layer once, of what `described` told of the rows."""
    found: dict[str, Held] = {}
    for row in rows:
        name, dtype, shape = row["layer_name"], row["dtype"], tuple(row.get("tensor_shape", row["shape"]))
        scheme = parse(row["scheme"]) if "scheme" in row else None
        if not _is_plain(scheme):
            found.setdefault(name, Held(name, shape, dtype, scheme, None))
            continue
        said = f"the scheme {scheme.name!r} keeps floats" if scheme else "the table has no codes of it"
        reason = row.get("reason", said)
        found.setdefault(name, Held(name, shape, dtype, None, reason))
    return list(found.values())


def config_of(options: Options) -> Path | None:
    """Return the folder whose config goes along: the one that is named, else the source's own."""
    if options.config_from is not None:
        return options.config_from
    folder = options.source.files[0].parent
    return folder if (folder / _CONFIG).is_file() else None


def _read_config(source: str | os.PathLike[str] | None) -> tuple[dict[str, Any], list[Path]]:
    """Return the content of a config.json, and the files beside it that go with the model."""
    if source is None:
        return {}, []
    path = Path(source).expanduser()
    folder = path if path.is_dir() else None
    path, most = path / _CONFIG if folder else path, limits().header_bytes
    with open_regular(path) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise bad_file(path, f"the file has more than {most} bytes", to_change("header_bytes"))
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise bad_file(path, "no JSON object, as a model's config.json is")
    beside = sorted(folder.iterdir()) if folder else []
    return config, [each for each in beside if _is_copied(each)]


def _is_copied(path: Path) -> bool:
    """Whether a file of a model's folder goes with the model, however it is quantized."""
    ours = path.name in {_CONFIG, MANIFEST} or path.name.endswith(".index.json") or path.name.startswith(".")
    return not ours and path.suffix in _COPIED and path.is_file()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
