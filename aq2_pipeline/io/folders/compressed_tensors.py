"""Layer tables as folders of compressed-tensors, which vLLM, SGLang and transformers load.

Layouts as compressed-tensors 0.20 reads them (`compressors/pack_quantized`, `compressors/nvfp4`,
`compressors/mxfp4`): codes of integers are dense across words. A group of the config names the
modules that it is of: an exact name is true of embeddings and heads, too, where a class such as
"Linear" would also be of a tied head that the files do not hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aq2_pipeline.errors import InputValueError, SchemeError
from aq2_pipeline.io.folders.float4_codes import GROUPS, float4_of
from aq2_pipeline.io.folders.integer_codes import codes_of, integers_of, pack, rounded, without_zeros
from aq2_pipeline.io.folders.model import FLOAT_BYTES, FolderSink, config_of
from aq2_pipeline.io.writing.sinks import sink_rows
from aq2_pipeline.io.writing.staging import Piece, Spec

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from aq2_pipeline.io.folders.integer_codes import Integers
    from aq2_pipeline.io.folders.model import Held, Matrix
    from aq2_pipeline.io.tables.rows import Row
    from aq2_pipeline.io.targets import Options
    from aq2_pipeline.io.writing.sinks import Progress
    from aq2_pipeline.schemes import Scheme
    from aq2_pipeline.stored import Quantized

__all__ = ["CompressedTensorsSink", "sink_compressed_tensors"]

_RANK = 2
#: Zero points are packed along the rows of the matrix: so many take whole words at any width.
_WORD_ROWS = 32
_LARGEST = float(np.finfo(np.float32).max)


def sink_compressed_tensors(
    given: Any,
    folder: str | os.PathLike[str],
    *,
    config_from: str | os.PathLike[str] | None = None,
    scale_dtype: str = "F32",
    progress: Progress | None = None,
) -> None:
    """Write a layer table to a folder of compressed-tensors.

    Parameters
    ----------
    given : LazyFrame, DataFrame, Table, RecordBatch, reader, or anything with ``__arrow_c_stream__``
        A layer table with ``quantized``: matrices ``<module>.weight`` in integer
        schemes, `nvfp4_tensor`, `nvfp4` and `mxfp4`. Rows without codes, and those
        of `f32`, `f16` and `bf16`, are written as they are, and the matrices among
        them listed under ``ignore``.
    folder : str or Path
        Replaced once the new one is complete. A folder with files that are not
        this package's is refused.
    config_from : str or Path, optional
        The model's folder, whose config.json is kept and whose tokenizer and other
        small files are copied; or only its config.json.
    scale_dtype : {"F32", "F16", "BF16"}
        Of the scales of integers. With other than F32 they are rounded first and the
        weights coded with what they became, so that ``weights`` must be there beside
        ``quantized``.
    progress : callable, optional
        Called with a layer's name and the bytes written, row by row.

    Raises
    ------
    SchemeError
        Naming a layer whose scheme, name or shape cannot be held.
    InputTypeError, InputValueError, FormatError
        Naming the layer; nothing is written then.
    OSError
        If the folder cannot be written; an earlier one stays.

    Notes
    -----
    In float32, what compressed-tensors decodes is what this package decodes, bit for
    bit; but of `nvfp4_tensor`, whose scale is stored as its inverse, only within 2**-22.

    transformers 5.23 with compressed-tensors 0.20 loads neither embeddings nor zero
    points in this format; vLLM's kernels take some widths and groups only.

    Examples
    --------
    >>> import json
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> import polars as pl
    >>> import aq2_pipeline
    >>> weights = np.linspace(-1, 1, 256, dtype=np.float32)
    >>> df = pl.DataFrame({"layer_name": ["up.weight"], "shape": [[2, 128]], "weights": [weights]})
    >>> lf = df.lazy().with_columns(quantized=pl.col("weights").aq2.quantize("int4_g64", shape="shape"))
    >>> with TemporaryDirectory() as folder:
    ...     aq2_pipeline.sink_compressed_tensors(lf, f"{folder}/model")
    ...     config = json.loads(Path(folder, "model", "config.json").read_text())
    >>> config["quantization_config"]["config_groups"]["group_0"]["targets"]
    ['up']
    """
    sink = CompressedTensorsSink(config_from, scale_dtype)
    sink_rows(given, folder, sink, "sink_compressed_tensors", progress=progress)


class CompressedTensorsSink(FolderSink):
    """`pack-quantized`, `nvfp4-pack-quantized` and `mxfp4-pack-quantized`."""

    name = "compressed-tensors"
    takes = "int2 to int8 in groups that divide the columns, _channel or _tensor; nvfp4_tensor, nvfp4, mxfp4"
    metadata = {"format": "pt"}  # noqa: RUF012 - it is not changed

    def scheme_refusal(self, scheme: Scheme, columns: int) -> str | None:
        """Return why a scheme is not held."""
        told = integers_of(scheme)
        if told is None and scheme.name not in GROUPS:
            return f"the scheme {scheme} is not held"
        group = GROUPS.get(scheme.name, 0) if told is None else told.group
        if 0 < group < columns and columns % group:
            return f"{scheme} has groups of {group}, which do not divide the {columns} columns"
        return None

    def matrix_tensors(self, name: str, scheme: Scheme, shape: tuple[int, ...]) -> list[Spec]:
        """Return `weight_packed`, `weight_scale`, and what else its format has."""
        (n_rows, columns), told = shape, integers_of(scheme)
        if told is None:
            return _float4_specs(name, scheme.name, n_rows, columns)
        words, n_groups = _words(columns, told.bits), _n_groups(told, columns)
        scales = (1,) if told.group < 0 else (n_rows, n_groups)
        n_scales = 1 if told.group < 0 else n_rows * n_groups
        specs = [
            Spec(f"{name}_packed", "I32", (n_rows, words), 4 * n_rows * words),
            Spec(f"{name}_scale", self.scale_dtype, scales, n_scales * FLOAT_BYTES[self.scale_dtype]),
            Spec(f"{name}_shape", "I64", (_RANK,), 8 * _RANK),
        ]
        if told.asymmetric and told.group < 0:
            specs.append(Spec(f"{name}_zero_point", "I8", (1,), 1))
        elif told.asymmetric:
            words = _words(n_rows, told.bits)
            specs.append(Spec(f"{name}_zero_point", "I32", (words, n_groups), 4 * words * n_groups))
        return specs

    def matrix_pieces(self, row: Row, held: Quantized, matrix: Matrix) -> Iterator[Piece]:
        """Yield the bytes of a row's tensors."""
        told = integers_of(held.scheme)
        if told is None:
            yield from _float4_pieces(row, held, matrix)
            return
        if told.asymmetric:
            _check_zero_points(row, held)
        divisible = without_zeros(held, told)
        packed = codes_of(divisible, told, matrix.columns, 4 * _words(matrix.columns, told.bits))
        stored, _ = rounded(divisible.scales, self.scale_dtype, row.name)
        _check_range(row, held, told)
        yield Piece(f"{row.name}_packed", matrix.first * packed.shape[1], packed)
        begin = matrix.first * _n_groups(told, matrix.columns) * stored.itemsize if told.group >= 0 else 0
        yield Piece(f"{row.name}_scale", begin, stored)
        if matrix.first == 0:
            yield Piece(f"{row.name}_shape", 0, np.array(row.tensor_shape, "<i8"))
        if told.asymmetric:
            yield _zero_points(row, held, told, matrix)

    def with_quantization(self, config: dict[str, Any], layers: Sequence[Held]) -> dict[str, Any]:
        """Return the config with its `quantization_config`."""
        groups: list[dict[str, Any]] = []
        for layer in layers:
            if layer.scheme is None:
                continue
            kind, weights = _arguments(layer.scheme, layer.shape[1])
            known = next((group for group in groups if (group["format"], group["weights"]) == (kind, weights)), None)
            if known is None:
                known = {"targets": [], "weights": weights, "input_activations": None, "output_activations": None}
                groups.append(known | {"format": kind})
                known = groups[-1]
            known["targets"].append(layer.module)
        kinds = {group["format"] for group in groups}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": kinds.pop() if len(kinds) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": {f"group_{k}": group for k, group in enumerate(groups)},
            "ignore": [layer.module for layer in layers if layer.scheme is None and len(layer.shape) == _RANK],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }
        return config


def _words(n: int, bits: int) -> int:
    """Return the words of so many codes."""
    return -(-n * bits // 32)


def _n_groups(told: Integers, columns: int) -> int:
    """Return the groups of a matrix row; one group longer than a row is the row."""
    return columns // told.group if 0 < told.group < columns else 1


def _arguments(scheme: Scheme, columns: int) -> tuple[str, dict[str, Any]]:
    """Return the format of a scheme, and its `QuantizationArgs`."""
    told = integers_of(scheme)
    weights: dict[str, Any] = {"num_bits": 4, "type": "float", "symmetric": True}
    if told is None:
        if scheme.name == "mxfp4":
            kind, strategy, scales = "mxfp4-pack-quantized", "group", "torch.uint8"
        else:
            kind, strategy, scales = "nvfp4-pack-quantized", "tensor_group", "torch.float8_e4m3fn"
        own = {"strategy": strategy, "group_size": GROUPS[scheme.name], "dynamic": False, "scale_dtype": scales}
        return kind, weights | own
    weights = {"num_bits": told.bits, "type": "int", "symmetric": not told.asymmetric}
    if 0 < told.group <= columns:
        weights |= {"strategy": "group", "group_size": told.group}
    else:
        weights |= {"strategy": "tensor" if told.group < 0 else "channel", "group_size": None}
    return "pack-quantized", weights | {"dynamic": False}


def _float4_specs(name: str, scheme: str, n_rows: int, columns: int) -> list[Spec]:
    n_groups = columns // GROUPS[scheme]
    kind = "U8" if scheme == "mxfp4" else "F8_E4M3"
    specs = [
        Spec(f"{name}_packed", "U8", (n_rows, columns // 2), n_rows * columns // 2),
        Spec(f"{name}_scale", kind, (n_rows, n_groups), n_rows * n_groups),
    ]
    return specs if scheme == "mxfp4" else [*specs, Spec(f"{name}_global_scale", "F32", (1,), 4)]


def _float4_pieces(row: Row, held: Quantized, matrix: Matrix) -> Iterator[Piece]:
    found, first = float4_of(held, row.name), matrix.first * matrix.columns
    yield Piece(f"{row.name}_packed", first // 2, found.codes)
    yield Piece(f"{row.name}_scale", first // GROUPS[held.scheme.name], found.scales)
    if held.scheme.name != "mxfp4" and matrix.first == 0:
        with np.errstate(over="ignore"):
            inverse = np.float32(1 / np.float64(found.scale))
        if not np.isfinite(inverse):
            msg = f"the inverse of the scale, {float(found.scale)!r}, does not fit float32"
            raise InputValueError(msg, "leave it alone").at(layer=row.name)
        yield Piece(f"{row.name}_global_scale", 0, np.array([inverse], "<f4"))


def _check_zero_points(row: Row, held: Quantized) -> None:
    bad = np.flatnonzero(held.zero_points != np.rint(held.zero_points))
    if bad.size:
        group, value = int(bad[0]), float(held.zero_points[bad[0]])
        msg = f"{CompressedTensorsSink.name}: the zero point of group {group} is {value!r}, and is packed as an integer"
        raise SchemeError(msg, "the method hqq has others: take minmax or mse").at(layer=row.name, position=group)


def _check_range(row: Row, held: Quantized, told: Integers) -> None:
    """Check that no code decodes to an infinity: other software does not clamp."""
    most = float(np.abs(held.scales).max()) * told.middle * (2 if told.asymmetric else 1)
    if most > _LARGEST:
        group = int(np.abs(held.scales).argmax())
        msg = f"the scale of group {group}, {float(held.scales[group])!r}, gives infinities in other software"
        raise InputValueError(msg, "leave it alone").at(layer=row.name, position=group)


def _zero_points(row: Row, held: Quantized, told: Integers, matrix: Matrix) -> Piece:
    name, points = f"{row.name}_zero_point", held.zero_points.astype(np.uint8)
    if told.group < 0:
        return Piece(name, 0, (points.astype(np.int16) - told.middle).astype(np.int8))
    if matrix.first % _WORD_ROWS:
        msg = f"the chunk begins at matrix row {matrix.first}, and zero points are packed by {_WORD_ROWS} rows"
        hint = f"take chunk_weights= a multiple of {_WORD_ROWS * matrix.columns}"
        raise InputValueError(msg, hint).at(layer=row.name)
    by_group = points.reshape(matrix.n_rows, -1).T
    words = pack(by_group, told.bits, 4 * _words(matrix.n_rows, told.bits)).view("<u4").T
    return Piece(name, matrix.first * told.bits // 8 * len(by_group), np.ascontiguousarray(words))


def from_options(options: Options) -> CompressedTensorsSink:
    """Return the sink of a command."""
    return CompressedTensorsSink(config_of(options), options.scale_dtype or "F32")
